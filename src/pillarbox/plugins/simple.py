"""The built-in behaviour, alias `simple`: what a mail server answers when no plugin has said otherwise.

It decides replies only; what a command does to the session happens when its final reply is positive. Must not know
connections or the queue.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..events import catalogue as e
from ..mail.envelope import Addressed, redirect
from ..options import Network, Options
from ..smtp.address import ascii_name, comparable_domain, comparable_mailbox, domain_of
from ..smtp.command import COMMANDS, Command
from ..smtp.extension import Facts, offered
from ..smtp.reply import Reply
from .recipients import RecipientList, has_route, is_role

Answer = Callable[[e.Session, Command], Reply]

_SENDER_OK = Reply(250, "2.1.0", "Sender OK")
_RECIPIENT_OK = Reply(250, "2.1.5", "Recipient OK")
_START_DATA = Reply(354, None, "End data with <CR><LF>.<CR><LF>")
_RESET = Reply(250, "2.0.0", "OK")
_NOOP = Reply(250, "2.0.0", "OK")
_BYE = Reply(221, "2.0.0", "Bye")
# RFC 5321 section 7.3 and 3.5.3: 252 neither confirms nor denies.
_VRFY = Reply(252, "2.5.2", "Cannot verify, but will take a message and try to deliver it")
_EXPN = Reply(502, "5.7.0", "Lists are not expanded here", reason="not-offered")
_NO_LMTP = Reply(500, "5.5.1", "This is SMTP, not LMTP: say EHLO", reason="not-offered")
_NO_XCLIENT = Reply(550, "5.7.0", "Not for you", reason="not-offered")
_READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")
_TOO_MANY = Reply(
    452, "4.5.3", "Too many recipients: send the rest in a further transaction", reason="too-many-recipients"
)
# RFC 6409 section 4.3 and RFC 3207 section 4
_LOGIN_FIRST = Reply(530, "5.7.0", "Authentication required", reason="auth-required")
_TLS_FIRST = Reply(530, "5.7.0", "Must issue a STARTTLS command first", reason="tls-required")
_NEEDS_UTF8 = Reply(553, "5.6.7", "Address with UTF-8: use SMTPUTF8 with MAIL", reason="needs-smtputf8")
_NO_ROOM = Reply(452, "4.3.1", "No room left for mail: try again later", reason="no-room")
_AWAY = Reply(451, "4.3.0", "The queue is away: try again later", reason="queue-unavailable")
_NOT_TRUSTED = Reply(550, "5.7.1", "Relaying denied: authenticate, or ask the operator", reason="relay-denied")
_NOBODY = Reply(550, "5.1.1", "No such mailbox here", reason="no-such-recipient")
_ROUTED = Reply(550, "5.7.1", "Sender-specified routing denied", reason="relay-denied")


@dataclass(slots=True)
class RelayRule:
    """Who may send where (DESIGN section 6). `can_deliver` says whether mail for `domains` has a way to go."""

    domains: tuple[str, ...]
    networks: tuple[Network, ...]
    can_deliver: Callable[[str], bool]
    # True for an address that a handler takes.
    is_handled: Callable[[str], bool] = lambda address: False
    # The addresses of `domains` that exist; None: all.
    recipients: RecipientList | None = None
    allows_routing: bool = False
    postmaster: str | None = None
    _trusted: dict[str, bool] = field(default_factory=dict)

    def change(self, domains: tuple[str, ...], networks: tuple[Network, ...]) -> None:
        """Other domains and networks, from now on."""
        self.domains, self.networks = domains, networks
        self._trusted.clear()

    def is_trusted(self, host: str) -> bool:
        """True for an IP address inside the trusted networks."""
        known = self._trusted.get(host)
        if known is None:
            if len(self._trusted) > 4096:
                self._trusted.clear()
            known = self._trusted[host] = self._judge_host(host)
        return known

    def _judge_host(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self.networks)

    def is_own(self, domain: str) -> bool:
        """True for what the router keeps for this server: a domain of `domains`, and the postmaster without a domain."""
        # RFC 5321 section 4.5.1: a postmaster without a domain is this host's.
        return bool(self.domains) and (not domain or self.is_ours(domain))

    def is_ours(self, domain: str) -> bool:
        """True for a domain of `domains`, exact or below a `.suffix`, in any case, A-labels or U-labels."""
        domain = comparable_domain(domain)
        return any(domain == ours or (ours[0] == "." and domain.endswith(ours)) for ours in self.domains)

    def judge(self, session: e.Session, address: str) -> Reply | None:
        """A refusal, or None."""
        if not self.domains and session.is_submission:
            # Whoever may relay may send anywhere, and nothing is ours.
            return None
        domain = domain_of(address)
        if not domain and session.is_submission:
            # RFC 5321 section 4.5.1: postmaster without a domain is ours, always. With no way to go it waits in the queue.
            return None
        if not domain or self.is_ours(domain):
            return self._judge_ours(session, address)
        return None if session.is_submission else _NOT_TRUSTED

    def _judge_ours(self, session: e.Session, address: str) -> Reply | None:
        """A refusal of an address in one of our own domains, or None."""
        if self.is_handled(address):
            # Whatever the local-part says, it goes nowhere else.
            return None
        if not session.is_submission and not self.allows_routing and has_route(address):
            # RFC 2505 section 2.7: the next hop trusts this server, and may do what the local-part of a stranger says.
            return _ROUTED
        if is_role(address):
            # RFC 5321 section 4.5.1. With no way to go it waits in the queue.
            return None
        if self.recipients is not None and not self.recipients.has(address):
            return _NOBODY
        return None if self.can_deliver(address) else _NOBODY

    def take_options(self, options: Options) -> None:
        """Which addresses of our domains exist, what strangers may write in them, and where mail for the roles goes."""
        self.recipients = RecipientList(options.recipients) if options.recipients else None
        self.allows_routing = options.allow_untrusted_routing
        self.postmaster = options.postmaster

    def redirect(self, recipients: Sequence[Addressed]) -> None:
        """Gives mail for postmaster and abuse of our domains the address of the option `postmaster`."""
        if self.postmaster is not None:
            redirect((one for one in recipients if self.is_our_role(one.address)), self.postmaster)

    def is_our_role(self, address: str) -> bool:
        """True for postmaster and abuse of our domains, unless a handler takes the address."""
        if not is_role(address) or self.is_handled(address):
            return False
        domain = domain_of(address)
        return not domain or self.is_ours(domain)


class _Room(Protocol):
    """Whether there is room for mail: on the disk, and a queue that takes it."""

    is_enough: bool
    is_away: bool


class _Endless:
    is_enough = True
    is_away = False


class Greeting:
    """The 220. Alone in the pipeline where the program answers everything else."""

    def __init__(self, hostname: str, version: str) -> None:
        self.reply = Reply(220, None, f"{hostname} ESMTP {version}".rstrip())

    def on_connection(self, server: Any, event: e.Connection) -> Reply:
        """The greeting."""
        return self.reply


class Simple:
    """The last plugin of the pipeline. `greeting` None: the program sends it."""

    is_built_in = True

    def __init__(self, hostname: str, greeting: Greeting | None, rule: RelayRule, max_recipients: int) -> None:
        self._hostname = hostname
        self._greeting = greeting.reply if greeting is not None else None
        self._rule = rule
        self._max_recipients = max_recipients
        self._hello_cache: dict[Any, Reply] = {}
        self.facts_of: Callable[[e.Session], Facts] = lambda session: Facts()
        self.room: _Room = _Endless()

        self._answers: dict[str, Reply | Answer] = {
            "cmd_ehlo": self._ehlo,
            "cmd_helo": self._helo,
            "cmd_mail": self._mail,
            "cmd_rcpt": self._rcpt,
            "cmd_data": _START_DATA,
            "cmd_rset": _RESET,
            "cmd_noop": _NOOP,
            "cmd_quit": _BYE,
            "cmd_starttls": _READY_FOR_TLS,
        }
        if self._greeting is not None:
            self._answers["connection"] = self._greeting

    def change(self, max_recipients: int) -> None:
        """Another bound, and other extensions to tell of."""
        self._max_recipients = max_recipients
        self._hello_cache.clear()

    def answer_for(self, name: str, method: Any) -> Reply | Answer | None:
        """For the dispatcher, where nobody else listens: the answer, or what gives one without an event.

        None where that is not all: a subclass, or a method that somebody has put in another's place.
        """
        if type(self) is not Simple or getattr(method, "__func__", None) is not _OWN.get(f"on_{name}"):
            return None
        return self._answers.get(name)

    def on_connection(self, server: Any, event: e.Connection) -> Reply | None:
        """The greeting."""
        return self._greeting

    def on_cmd_ehlo(self, server: Any, event: e.CmdEhlo) -> Reply:
        """Our name and the extensions that are offered now."""
        return self._ehlo(event.session, event)

    def _ehlo(self, session: e.Session, command: e.CmdEhlo | Command) -> Reply:
        facts = self.facts_of(session)
        # All that the lines are made of: sessions from before a reload still say EHLO by what they were told.
        key = (
            facts.max_size_bytes,
            facts.max_recipients,
            facts.tls_offered,
            facts.is_tls,
            facts.auth_mechanisms,
            facts.is_authenticated,
            command.address,
        )
        reply = self._hello_cache.get(key)
        if reply is None:
            lines = (f"{self._hostname} greets {ascii_name(command.address or '')}", *offered(facts))
            reply = self._remember(key, Reply(250, None, *lines))
        return reply

    def on_cmd_helo(self, server: Any, event: e.CmdHelo) -> Reply:
        """Our name."""
        return self._helo(event.session, event)

    def _helo(self, session: e.Session, command: e.CmdHelo | Command) -> Reply:
        reply = self._hello_cache.get(command.address)
        if reply is None:
            text = f"{self._hostname} greets {ascii_name(command.address or '')}"
            reply = self._remember(command.address, Reply(250, None, text))
        return reply

    def _remember(self, key: Any, reply: Reply) -> Reply:
        if len(self._hello_cache) > 1000:
            self._hello_cache.clear()
        self._hello_cache[key] = reply
        return reply

    def on_cmd_mail(self, server: Any, event: e.CmdMail) -> Reply:
        """Every sender, but for who is authenticated and sends as somebody else (RFC 6409 section 6.1)."""
        return self._mail(event.session, event)

    def _mail(self, session: e.Session, command: e.CmdMail | Command) -> Reply:
        if session.wants_login and session.username is None:
            return _LOGIN_FIRST if session.tls else _TLS_FIRST
        if not self.room.is_enough:
            return _AWAY if self.room.is_away else _NO_ROOM
        if session.username is not None and command.address is not None and not may_send_as(session, command.address):
            text = f"{session.username} may not send as this address"
            return Reply(553, "5.7.1", text, reason="sender-not-allowed")
        return _SENDER_OK

    def on_cmd_rcpt(self, server: Any, event: e.CmdRcpt) -> Reply:
        """The relay rule."""
        return self._rcpt(event.session, event)

    def _rcpt(self, session: e.Session, command: e.CmdRcpt | Command) -> Reply:
        envelope, address = session.envelope, command.address or ""
        if envelope is not None:
            if len(envelope.recipients) >= self._max_recipients:
                return _TOO_MANY
            if not address.isascii() and not envelope.is_smtputf8:
                return _NEEDS_UTF8
        return self._rule.judge(session, address) or _RECIPIENT_OK

    def on_cmd_data(self, server: Any, event: e.CmdData) -> Reply:
        """354."""
        return _START_DATA

    def on_cmd_rset(self, server: Any, event: e.CmdRset) -> Reply:
        """250."""
        return _RESET

    def on_cmd_noop(self, server: Any, event: e.CmdNoop) -> Reply:
        """250."""
        return _NOOP

    def on_cmd_vrfy(self, server: Any, event: e.CmdVrfy) -> Reply:
        """252."""
        return _VRFY

    def on_cmd_expn(self, server: Any, event: e.CmdExpn) -> Reply:
        """502."""
        return _EXPN

    def on_cmd_help(self, server: Any, event: e.CmdHelp) -> Reply:
        """The commands, or one command's syntax."""
        row = COMMANDS.get(event.args.strip().upper().encode("ascii", "replace"))
        if row is not None and row.rfc:
            return Reply(214, "2.0.0", f"{row.syntax} (RFC {row.rfc})")
        if event.args.strip():
            return Reply(504, "5.5.4", "No help on that: send HELP alone for the list", reason="not-offered")
        verbs = " ".join(row.verb for row in COMMANDS.values() if row.rfc)
        return Reply(214, "2.0.0", "Pillarbox knows these commands:", verbs, "HELP verb tells the syntax of one")

    def on_cmd_quit(self, server: Any, event: e.CmdQuit) -> Reply:
        """221."""
        return _BYE

    def on_cmd_xclient(self, server: Any, event: e.CmdXclient) -> Reply:
        """550 5.7.0, to everyone."""
        return _NO_XCLIENT

    def on_cmd_lhlo(self, server: Any, event: e.CmdLhlo) -> Reply:
        """This is no LMTP server (RFC 2033 section 4.1)."""
        return _NO_LMTP

    def on_cmd_starttls(self, server: Any, event: e.CmdStarttls) -> Reply:
        """220; the handshake follows."""
        return _READY_FOR_TLS


# As they were written, whatever is put in their place later.
_OWN = dict(vars(Simple))


def may_send_as(session: e.Session, address: str) -> bool:
    """True for an address that the session's account may put into MAIL."""
    own = comparable_mailbox(address)
    for allowed in session.senders:
        if allowed == "*" or comparable_mailbox(allowed) == own:
            return True
        if allowed.startswith("@") and comparable_domain(allowed[1:]) == comparable_domain(domain_of(address)):
            return True
    return False
