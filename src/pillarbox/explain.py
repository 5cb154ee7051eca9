"""Why: a dry run for a sender, a recipient and a peer, or what holds up a message that is queued. Nothing is changed by it.

The rules are asked that decide for real, in their order; plugins of the program are named, for what they would say only
they know. `Explainer` is given the parts of a server, running or not.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .delivery.client import ClientConnection, ConnectFault
from .delivery.relayhosts import resolve_targets
from .delivery.route import HANDLER, MX, NOWHERE, RELAY, UNMATCHED, WHY_UNMATCHED, Target
from .events.session import Endpoint, Session
from .places import LOGIN_SCHEMES
from .plugins.dnsbl import DnsblPlugin
from .plugins.recipient_verify import RecipientVerifyPlugin
from .plugins.sender_verify import SenderVerifyPlugin
from .plugins.simple import RelayRule, may_send_as
from .queue.model import ACTIVE, Query
from .smtp.command import Command, Grammar, parse_command
from .smtp.reply import Reply

if TYPE_CHECKING:
    from .parts import Parts

_BUILT_IN = ("simple", "greeting", "dnsbl", "sender_verify", "recipient_verify")
_GRAMMAR = Grammar(is_strict=False)
_LAST_OUTCOMES = 3
# Verdicts of a step that end the story, the first of them tells the reason.
DECIDING = ("refuses", "defers", "bounces", "holds", "waits")


@dataclass(slots=True)
class Story:
    """What was found, step by step: (rule, verdict, text)."""

    steps: list[dict[str, str]] = field(default_factory=list)
    reply: str | None = None

    def tell(self, rule: str, verdict: str, text: str) -> None:
        """One step: passes, notes, or one of DECIDING."""
        self.steps.append({"rule": rule, "verdict": verdict, "text": text})

    def refuse(self, rule: str, reply: Reply, why: str = "") -> None:
        """The client would get this reply."""
        self.reply = self.reply or str(reply)
        verdict = "defers" if reply.is_transient else "refuses"
        self.tell(rule, verdict, f"{why}: {reply}" if why else str(reply))

    @property
    def deciding(self) -> dict[str, str] | None:
        """The step that the reason is."""
        return next((step for step in self.steps if step["verdict"] in DECIDING), None)

    def ended(self, **more: Any) -> dict[str, Any]:
        """As JSON."""
        step = self.deciding
        may_differ = any(one["rule"] == "plugins" for one in self.steps)
        fine = "no rule is in the way, unless a plugin decides otherwise" if may_differ else "no rule is in the way"
        verdict, reason = (step["verdict"], f"{step['rule']}: {step['text']}") if step else ("delivers", fine)
        return {**more, "verdict": verdict, "reason": reason, "reply": self.reply, "steps": self.steps}


class Explainer:
    """See the module's text. What it gives is fit for JSON."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def explain(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """{recipient, sender, peer, user} or {uid}; None for a uid that is not here. ValueError for what makes no sense."""
        for name in ("recipient", "sender", "peer", "user", "uid"):
            if request.get(name) is not None and not isinstance(request[name], str):
                raise ValueError(f"explain: {name} is text")
        if request.get("uid") is not None:
            found = await self._parts.queue.own.show(request["uid"])
            return None if found is None else await self.message(found, is_running=self._parts.scheduler.is_running)
        if not request.get("recipient"):
            raise ValueError("explain wants a recipient, or a uid")
        return await self.recipient(
            request["recipient"],
            request.get("sender") if request.get("sender") is not None else self._usual_sender(request.get("user")),
            request.get("peer") or "127.0.0.1",
            request.get("user"),
            with_probe=bool(request.get("probe")),
        )

    def _usual_sender(self, user: str | None) -> str:
        """Whoever logs in sends as itself, unless somebody says otherwise."""
        if user is None:
            return "sender@example.org"
        return user if "@" in user else f"{user}@{self._parts.options.hostname}"

    # ------------------------------------------------------------------- a dry run

    async def recipient(
        self, recipient: str, sender: str | None, peer: str, user: str | None = None, *, with_probe: bool = False
    ) -> dict[str, Any]:
        """As if `peer` said MAIL and RCPT now (as `user`, where it had logged in)."""
        try:
            peer = str(ipaddress.ip_address(peer))
        except ValueError:
            raise ValueError(f"--peer {peer!r} is no IP address: give one such as 192.0.2.1") from None
        story = Story()
        sender = None if sender in ("", "<>") else sender
        address = self._syntax(story, sender, recipient)
        asked = {"recipient": recipient, "sender": sender or "<>", "peer": peer, "user": user}
        if address is None:
            return story.ended(asked=asked, route=None)
        session = self._session(story, peer, user)
        await self._dns_lists(story, peer)
        self._senders(story, session, sender)
        await self._sender_verify(story, session, sender)
        self._relay_rule(story, session, address)
        await self._recipient_verify(story, session, address)
        self._plugins(story)
        if story.reply is None:
            story.reply = "250 2.1.5 Recipient OK"
        route = await self._route(story, address, with_probe=with_probe)
        if self._parts.options.capture:
            story.tell("capture", "holds", "every message stays in the inbox until it is released")
        self._limits(story, route["next_hop"])
        await self._history(story, address)
        return story.ended(asked=asked, route=route)

    def _syntax(self, story: Story, sender: str | None, recipient: str) -> str | None:
        commands: list[Command] = []
        for line in (f"MAIL FROM:<{sender or ''}>", f"RCPT TO:<{recipient}>"):
            command, _ = parse_command(line.encode("utf-8", "replace"), _GRAMMAR)
            if command.error is not None:
                story.refuse("address", command.error, line)
                return None
            commands.append(command)
        story.tell("address", "passes", "both addresses are well-formed")
        return commands[1].address or ""

    def _session(self, story: Story, peer: str, user: str | None) -> Session:
        parts = self._parts
        session = Session("explain", Endpoint(peer, 0), Endpoint("", 0))
        session.is_trusted = parts.rule.is_trusted(peer)
        session.username = user
        if parts.context.is_closing:
            story.refuse("server", Reply(421, "4.3.2", "Shutting down"))
        parts.context.room.look()
        if not parts.context.room.is_enough:
            story.refuse("disk", Reply(452, "4.3.1", "No room left for mail: try again later"), "below reserve_bytes")
        options = parts.options
        if len(parts.context.sessions) >= parts.context.admission.max_sessions:
            story.refuse("sessions", Reply(421, "4.7.0", f"{options.max_sessions} sessions are open (max_sessions)"))
        if session.is_trusted:
            story.tell("peer", "passes", f"{peer} is in a trusted network ({', '.join(options.trust)})")
        else:
            text = f"{peer} is in no trusted network ({', '.join(options.trust) or 'there is none'})"
            story.tell("peer", "notes", f"{text}, and logged in as {user}" if user else text)
        if any(scheme in LOGIN_SCHEMES for scheme, _, _ in options.listeners) and user is None:
            story.tell(
                "listeners", "notes", "at the submission listeners MAIL wants a login: --user NAME tries as somebody"
            )
        return session

    async def _dns_lists(self, story: Story, peer: str) -> None:
        plugin = self._parts.dispatcher.pipeline.get("dnsbl") or self._parts.checks.dnsbl()
        if not isinstance(plugin, DnsblPlugin):
            return
        decided, verdicts = await plugin.judge(peer)
        for one in verdicts:
            codes = f" ({', '.join(one.codes)})" if one.codes else ""
            story.tell("dnsbl", "notes", f"{one.zone}: {one.result}{codes} {one.reason}".rstrip())
        if decided is None:
            story.tell("dnsbl", "passes", f"no list is asked about {peer}: dnsbl_allow")
        elif decided.result == "listed":
            story.refuse("dnsbl", plugin.refusal(peer, decided), f"{peer} is listed by {decided.zone}")
        else:
            story.tell("dnsbl", "passes", f"{peer} is not refused by the DNS lists ({decided.result})")

    def _senders(self, story: Story, session: Session, sender: str | None) -> None:
        if session.username is None or sender is None:
            return
        parts = self._parts
        from .server.accounts import Account

        session.senders = parts.context.default_senders(Account(session.username))
        named = ", ".join(session.senders)
        if not may_send_as(session, sender):
            reply = Reply(553, "5.7.1", f"{session.username} may not send as this address")
            story.refuse("sender", reply, f"an account of that name may send as {named}")
        else:
            story.tell("sender", "passes", f"{session.username} may send as {named}")

    async def _sender_verify(self, story: Story, session: Session, sender: str | None) -> None:
        plugin = self._parts.dispatcher.pipeline.get("sender_verify") or self._parts.checks.sender_verify()
        if not isinstance(plugin, SenderVerifyPlugin):
            return
        reply, error = await plugin.judge(sender)
        if reply is not None:
            story.refuse("sender_verify", reply, error)
        else:
            story.tell("sender_verify", "passes", "the sender's domain takes mail")

    def _relay_rule(self, story: Story, session: Session, address: str) -> None:
        rule: RelayRule = self._parts.rule
        if not self._parts.options.simple:
            story.tell("relay rule", "notes", "simple=False: the program itself answers")
            return
        domain = address.rpartition("@")[2] if "@" in address else ""
        is_ours = bool(domain) and rule.is_ours(domain)
        ours = (
            f"{domain} is one of our domains"
            if is_ours
            else f"{domain or 'no domain'} is none of our domains ({', '.join(rule.domains) or 'there are none'})"
        )
        reply = rule.judge(session, address)
        if reply is not None and is_ours:
            story.refuse(
                "relay rule",
                reply,
                f"{ours}, but no handler matches and domains_via is {self._parts.options.domains_via}",
            )
        elif reply is not None:
            story.refuse("relay rule", reply, f"{ours}, and this client may not relay")
        elif is_ours:
            story.tell("relay rule", "passes", ours)
        else:
            story.tell("relay rule", "passes", f"{ours}; this client may relay")

    async def _recipient_verify(self, story: Story, session: Session, address: str) -> None:
        plugin = self._parts.dispatcher.pipeline.get("recipient_verify")
        if not isinstance(plugin, RecipientVerifyPlugin):
            return
        refusal, said = await plugin.judge(session, address)
        if refusal is not None:
            story.refuse("recipient_verify", refusal, f"the next hop says {said}")

    def _plugins(self, story: Story) -> None:
        names = [name for name in self._parts.dispatcher.pipeline.list() if name not in _BUILT_IN]
        names = names or [name for name in self._parts.options.plugins if name not in _BUILT_IN]
        if names:
            story.tell("plugins", "notes", f"may say otherwise: {', '.join(dict.fromkeys(names))}")

    # ------------------------------------------------------------------- the route

    async def _route(
        self, story: Story, address: str, *, with_probe: bool, queued: str | None = None
    ) -> dict[str, Any]:
        ways = self._parts.lanes.ways
        key = ways.router.next_hop(address, queued)
        route: dict[str, Any] = {"next_hop": key or None, "kind": "none", "servers": [], "tls": None}
        if key == NOWHERE:
            story.tell("route", "waits", ways.router.why_nowhere)
        elif key == UNMATCHED:
            route["kind"] = "handler"
            pattern = (queued or "").removeprefix(HANDLER)
            story.tell("route", "waits", f"{WHY_UNMATCHED} (was queued for {pattern})" if pattern else WHY_UNMATCHED)
        elif key.startswith(HANDLER):
            route["kind"] = "handler"
            story.tell("route", "passes", f"to the handler {key.removeprefix(HANDLER)}")
        else:
            is_relay = key.startswith(RELAY)
            client = ways.relay_client if is_relay else ways.mx_client
            route |= {"kind": "relay" if is_relay else "mx", "tls": client.policy.value}
            found = await self._targets(key)
            if isinstance(found, Reply):
                story.tell("route", "waits" if found.is_transient else "bounces", f"{key}: {found}")
                return route
            route["servers"] = [
                {"host": t.host, "port": t.port, "address": t.address or None, "tls": t.is_tls} for t in found
            ]
            names = ", ".join(target.name for target in found[:5]) + (
                f" and {len(found) - 5} more" if len(found) > 5 else ""
            )
            where = "to the smart host" if is_relay else f"to the MX of {key.removeprefix(MX)}"
            story.tell("route", "passes", f"{where}: {names}")
            story.tell("tls", "notes", _TLS_TEXT[client.policy.value])
            if with_probe:
                await self._probe(story, found, client)
        return route

    async def _targets(self, key: str) -> list[Target] | Reply:
        ways = self._parts.lanes.ways
        if key.startswith(RELAY) and ways.router.relay is not None:
            return await resolve_targets(ways.router.relay.targets)
        if key.startswith(MX) and ways.mx is not None:
            return await ways.mx.targets(key.removeprefix(MX))
        return Reply(451, "4.4.4", "There is no way to go: " + ways.router.why_nowhere)

    async def _probe(self, story: Story, targets: list[Target], client: Any) -> None:
        """Connects up to where a transaction would begin, and hangs up."""
        for target in targets[:3]:
            connection = ClientConnection(_Nobody(), target, client, self._parts.clock)
            try:
                await connection.open()
            except ConnectFault as fault:
                story.tell(
                    "probe",
                    "waits" if target is targets[min(len(targets), 3) - 1] else "notes",
                    f"{target.name}: {fault.reply}",
                )
                continue
            tls = "with TLS" if connection.smtp.is_tls else "in clear"
            story.tell("probe", "passes", f"{target.name} answers, {tls}")
            connection.quit()
            return

    def _limits(self, story: Story, next_hop: str | None) -> None:
        """What would hold it in the queue now."""
        parts = self._parts
        if parts.scheduler.is_paused:
            story.tell("queue", "holds", "the queue is paused: pillarbox queue resume")
        if next_hop in parts.lanes.paused:
            story.tell("queue", "holds", f"{next_hop} is paused: pillarbox queue resume --next-hop {next_hop}")
        for lane in parts.lanes.describe():
            if lane["next_hop"] != next_hop:
                continue
            if lane["reason"]:
                # Back-off, or the rate limit.
                story.tell("next hop", "waits", str(lane["reason"]))
            else:
                story.tell("next hop", "notes", f"{lane['connections']} connections, {lane['waiting']} messages wait")

    async def _history(self, story: Story, address: str) -> None:
        """The last outcomes of this recipient, which no rule foresees."""
        if not self._parts.scheduler.is_running:
            return
        query = Query(recipient=address, is_all=True, limit=_LAST_OUTCOMES, is_newest_first=True)
        for view in await self._parts.commit.read(lambda reader: reader.search(query)):
            for r in view.recipients:
                if r.address == address and r.last_reply:
                    at = _moment(view.received_at)
                    story.tell("history", "notes", f"{view.uid}, received {at}: {r.state}, {r.last_reply}")

    # ------------------------------------------------------------ a queued message

    async def message(self, row: dict[str, Any], *, is_running: bool) -> dict[str, Any]:
        """Why this message is still here, from what `queue show` knows of it, and the route that it would take now."""
        recipients = []
        for found in row["recipients"]:
            attempts = [one for one in row["attempts"] if one["recipient"] == found["address"]]
            recipients.append(await self._one(row, found, attempts, is_running=is_running))
        first = next((one for one in recipients if one["state"] in ("queued", "deferred", "held")), recipients[0])
        return {
            "asked": {"uid": row["uid"]},
            "verdict": first["verdict"],
            "reason": first["reason"],
            "reply": first["last_reply"],
            "message": row,
            "recipients": recipients,
        }

    async def _one(
        self, row: dict[str, Any], found: dict[str, Any], attempts: list[dict[str, Any]], *, is_running: bool
    ) -> dict[str, Any]:
        story = Story()
        state = found["state"]
        for attempt in attempts:
            story.tell("attempt", "notes", _attempt_text(attempt))
        if not attempts and found["last_reply"] and state in ACTIVE:
            story.tell("attempt", "notes", f"not tried itself; its next hop failed: {_reply_and_stage(found)}")
        elif not attempts:
            story.tell("attempt", "notes", "it has not been tried yet")
        route = None
        if state == "held":
            why = row["received"].get("held_for") or "an operator"
            story.tell("held", "holds", f"by {why}: pillarbox queue release {row['uid']}")
        elif state not in ACTIVE:
            story.tell(
                "final",
                "passes" if state == "delivered" else "bounces",
                f"{state}: {found['last_reply'] or 'no reply'}",
            )
        elif found["in_flight"]:
            self._limits(story, found["next_hop"])
            if story.deciding is None:
                story.tell(
                    "queue", "passes", f"it is with {found['next_hop']}: being sent, or waiting for a connection"
                )
        else:
            route = await self._waiting(story, found, is_running=is_running)
        step = story.deciding
        default = (
            ("delivered", f"delivered: {found['last_reply']}")
            if state == "delivered"
            else ("sending", "it is on its way")
        )
        verdict, reason = (step["verdict"], f"{step['rule']}: {step['text']}") if step is not None else default
        return {
            "address": found["address"],
            "state": state,
            "verdict": verdict,
            "reason": reason,
            "attempts": found["attempts"],
            "next_attempt_at": found["due_at"] if state in ACTIVE else None,
            "last_reply": found["last_reply"],
            "last_stage": found["last_stage"],
            "route": route,
            "steps": story.steps,
        }

    async def _waiting(self, story: Story, found: dict[str, Any], *, is_running: bool) -> dict[str, Any]:
        if not is_running:
            story.tell("server", "waits", "it does not run: start `pillarbox serve`")
            if found["next_hop"] and not self._parts.options.relay:
                # The options of the server that stopped are not known here.
                text = f"queued for {found['next_hop']}; --config FILE shows the route that a configuration gives"
                story.tell("route", "notes", text)
                return {"next_hop": found["next_hop"], "kind": "queued", "servers": [], "tls": None}
        dry = Story()
        route = await self._route(dry, found["address"], with_probe=False, queued=found["next_hop"])
        self._limits(dry, route["next_hop"])
        story.steps += [step for step in dry.steps if step["verdict"] in ("holds", "waits", "bounces")]
        if found["state"] == "deferred" or found["attempts"]:
            at = _moment(found["due_at"])
            story.tell("last attempt", "waits", f"{_last(found)}; the next is at {at}")
        elif found["due_at"] is not None and found["due_at"] > self._parts.clock.time() + 1:
            story.tell("queue", "waits", f"its first attempt is at {_moment(found['due_at'])}")
        elif route["next_hop"] is not None:
            story.tell("queue", "waits", f"for a free connection to {route['next_hop']}")
        story.steps += [step for step in dry.steps if step["verdict"] not in ("holds", "waits", "bounces")]
        return route


class _Nobody:
    """The owner of a connection that carries nothing."""

    def transaction_done(self, connection: ClientConnection, transaction: Any) -> None:
        """There is none."""

    def may_send_more(self, connection: ClientConnection) -> None:
        """There is nothing."""

    def connection_closed(self, connection: ClientConnection) -> None:
        """So be it."""


_TLS_TEXT = {
    "none": "never: mail goes in clear",
    "may": "where it is offered, without looking at the certificate; in clear otherwise",
    "encrypt": "always; the certificate is not looked at. Without STARTTLS the mail waits",
    "verify": "always, with a certificate that is valid for the name. Without that the mail waits",
}


def _attempt_text(attempt: dict[str, Any]) -> str:
    where = f" by {attempt['remote']}" if attempt["remote"] else ""
    stage = f" at {attempt['stage']}" if attempt["stage"] else ""
    return f"{_moment(attempt['at'])} {attempt['outcome']}{where}{stage}: {attempt['reply'] or 'no reply'}"


def _reply_and_stage(found: dict[str, Any]) -> str:
    stage = f" at {found['last_stage']}" if found["last_stage"] else ""
    return f"{found['last_reply'] or 'no reply'}{stage}"


def _last(found: dict[str, Any]) -> str:
    return f"{_reply_and_stage(found)} (attempt {found['attempts']})"


def _moment(at: float | None) -> str:
    return "an unknown time" if at is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
