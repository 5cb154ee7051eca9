"""The parts of a server, built and connected: queue, scheduler, lanes, sessions' context, listeners. app.py is their face.

This is the one place that knows how they fit; a part knows only what it is given here.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from .capture.inbox import Inbox
from .checks import CheckPlugins
from .clock import Clock, UidSource
from .config.units import interval_s
from .delivery.bounce import BounceMaker
from .delivery.client import ClientSettings
from .delivery.handlers import Handlers
from .delivery.lanes import LaneLimits, Lanes, Ways
from .delivery.mx import MxLookup, MxPolicy
from .delivery.outcomes import Outcomes
from .delivery.pool import PER_ADDRESS
from .delivery.route import UNMATCHED, Router, relay_next_hop
from .delivery.tlspolicy import TlsPolicy, client_context
from .dns import CachingResolver, DnsResolver, Resolver
from .events.dispatch import Dispatcher
from .events.pipeline import SIMPLE
from .options import Options, parse_networks
from .places import Slot
from .plugins.simple import Greeting, RelayRule, Simple
from .queue.adopt import Adopter
from .queue.commit import GroupCommit
from .queue.control import ControlServer, LiveSteering
from .queue.enqueue import spooled_content
from .queue.follow import Follower, Pulse
from .queue.kept import parse as parse_kept
from .queue.memory import MemoryStore
from .queue.model import CAPTURED
from .queue.null import NullStore
from .queue.retry import RetryPolicy
from .queue.scheduler import Scheduler
from .queue.shared import open_postgres
from .queue.slots import Slots
from .queue.spool import Spool
from .queue.sqlite import SqliteStore
from .queue.store import Store
from .queue.upkeep import History
from .queue.whole import Place, WholeQueue, paused_next_hops
from .server import wiretap
from .server.accounts import Account, AuthFile
from .server.connection import Outbox
from .server.context import ServerContext, facts_of_session, session_prefix
from .server.describe import describe
from .server.guesses import Guesses
from .server.limits import Admission
from .server.listener import Listeners
from .server.profiles import device_rules, session_rules
from .server.rates import Rates
from .server.room import Room
from .server.tls import renewed, replace_context, server_context
from .smtp.sasl import Credentials
from .watchdog import LoopWatchdog

Explain = Callable[[dict[str, Any]], Awaitable[Any]]


async def _explains_nothing(request: dict[str, Any]) -> None:
    """Until somebody is there who can."""


# Sessions that are told of one by one.
MOST_SESSIONS = 1000
ListenerFailed = Callable[[OSError, str], None]


class Parts:
    """Everything behind a MailServer. Building opens nothing: `start` does."""

    def __init__(
        self,
        options: Options,
        dispatcher: Dispatcher,
        handlers: Handlers,
        clock: Clock,
        rng: random.Random,
        listener_failed: ListenerFailed,
        slot: Slot,
    ) -> None:
        self.options = options
        self._slot = slot
        self.dispatcher = dispatcher
        self.handlers = handlers
        self.clock = clock
        self._rng = rng
        self.new_uid = UidSource(clock)
        self._pulse: Pulse | None = None
        self.store = self._make_store()
        self.commit = GroupCommit(self.store)
        self.scheduler = self._make_scheduler()
        self.resolver = self._make_resolver()
        relay = relay_next_hop(options.relay)
        self.router = Router(
            relay,
            handlers.find,
            options.direct,
            lambda domain: self.rule.is_own(domain),
            is_own_relayed=options.domains_via == "relay",
        )
        self.rule = RelayRule(tuple(options.domains), options.trusted_networks, self.router.takes_ours)
        self.rule.is_handled = lambda address: handlers.find(address) is not None
        self.rule.take_options(options)
        self.context = self._make_context()
        self.watchdog = LoopWatchdog()
        # What listeners were opened with, over every change of certificates.
        self._facade = self.context.tls
        self.listeners = Listeners(self.context, listener_failed, slot.sockets)
        self.lanes = Lanes(self._ways(), clock, rng)
        # Both are the server's own; it names them when it has built us.
        self.explain: Explain = _explains_nothing
        self.enqueue: Callable[[dict[str, Any]], Awaitable[str]]
        self._steering = LiveSteering(
            self.scheduler, self.commit, self.lanes, self._live, lambda request: self.explain(request)
        )
        place = Place(
            options.data_dir, slot.number, slot.count if options.keeps_mail else 1, is_shared=bool(options.queue)
        )
        self.queue = WholeQueue(self._steering, self.commit, place)
        self.inbox: Inbox | None = None
        if options.capture:
            self.scheduler.hold_new = CAPTURED
            self.inbox = Inbox(self.queue, options.capture_messages)
            self.scheduler.on_held = self.inbox.hear
        self._follower = Follower(self.scheduler, self.commit)
        # This version cannot go on with the queue: the text says why.
        self.on_unfit: Callable[[str], None] = lambda why: None
        self._control: ControlServer | None = None
        self._adopter: Adopter | None = None
        self._is_connected = False

    # ---------------------------------------------------------------- building

    def _make_store(self) -> Store:
        options = self.options
        if options.queue:
            shared = open_postgres(
                options.queue, options.data_dir, self._slot.number, options.node_lease_s, self.clock.time
            )
            self._pulse = shared.heart
            self._spool_folder = shared.spool
            return shared
        if options.store == "sqlite":
            # A daemon makes its journal (32 MB) at the start. Without history, deleted mail has to be gone from the disk.
            given = {"has_journal_ready": self._slot.sockets is not None, "forgets": options.history_messages == 0}
            store = SqliteStore(options.data_dir, self._slot.number, **given)
            self._spool_folder = store.spool
            return store
        # A folder of its own: the real queue of this data directory may have files in "spool".
        self._spool_folder = os.path.join(options.data_dir, f"spool-{options.store}-{os.getpid()}-{id(self):x}")
        return MemoryStore(self._spool_folder) if options.store == "memory" else NullStore(self._spool_folder)

    def _make_scheduler(self) -> Scheduler:
        return Scheduler(self.commit, self.clock, self._retry_policy(), history=self._history(), rng=self._rng)

    def _retry_policy(self) -> RetryPolicy:
        options = self.options
        return RetryPolicy(
            first_s=options.retry_first_s,
            longest_s=max(options.retry_first_s, options.retry_longest_s),
            expire_s=options.expire_s,
            delay_notice_s=options.delay_notice_s,
        )

    def _history(self) -> History:
        return History(self.options.history_s, self.options.history_messages)

    def _make_resolver(self) -> CachingResolver:
        given: Resolver | None = self.options.resolver
        return CachingResolver(given or DnsResolver(self.options.nameservers), self.clock)

    def _make_context(self) -> ServerContext:
        options = self.options
        return ServerContext(
            options,
            self.dispatcher,
            self.clock,
            self.commit,
            self.scheduler,
            None,
            self.new_uid,
            Outbox(self.commit.company),
            Admission(options, self._slot.count),
            self.rule.is_trusted,
            tls=self._slot.tls or (server_context(options.tls_cert, options.tls_key) if options.tls_cert else None),
            authenticate=AuthFile(options.auth_file) if options.auth_file else options.authenticator,
            default_senders=self._default_senders,
            device_tls=server_context(options.tls_cert, options.tls_key, is_device=True) if options.tls_cert else None,
            redirect=self.rule.redirect if options.postmaster else None,
            device_rules=device_rules(options),
            device_networks=parse_networks(options.device_networks),
            rules=session_rules(options),
            room=Room(options.data_dir, options.reserve_bytes if options.keeps_mail else 0),
            wiretap=wiretap.tap if options.options.get("trace") else None,
            guesses=Guesses(self._slot.count),
            rates=Rates(options, self._slot.count),
            client_prefix=session_prefix(self.clock.time(), self._slot.number),
        )

    def _ways(self) -> Ways:
        """How mail leaves."""
        options = self.options
        mx = None
        if options.direct:
            policy = MxPolicy(
                options.mx_port,
                parse_networks(options.mx_networks),
                options.mx_cname,
                options.ip_preference,
                self._is_ourselves,
            )
            mx = MxLookup(self.resolver, policy, self._rng)
        share = self._slot.share
        per_hop = options.maxrelay_per_next_hop
        # Over the nodes of a shared queue it is leased (queue.slots), over the workers of one server divided.
        is_shared = bool(options.queue)
        interval = interval_s(options.rate_per_next_hop) if options.rate_per_next_hop else 0.0
        limits = LaneLimits(
            share(options.maxrelay),
            per_hop if is_shared else share(per_hop),
            interval * (1 if is_shared else self._slot.count),
            share(max(PER_ADDRESS, per_hop)),
        )
        return Ways(self.router, self.handlers, limits, self._relay_client(), self._mx_client(), mx)

    def _is_ourselves(self, host: str, address: str) -> bool:
        if host.lower() == self.options.hostname.lower():
            return True
        # Without an address the name alone is asked about: a listener on every address is no answer to that.
        return bool(address) and self.listeners.is_ours(address, self.options.mx_port)

    def _relay_client(self) -> ClientSettings:
        options = self.options
        policy = TlsPolicy(options.relay_tls or ("verify" if options.relay_user else "may"))
        if options.relay_auth_in_clear and options.relay_tls is None:
            policy = TlsPolicy.MAY
        credentials = None
        if options.relay_user and options.relay_pass:
            credentials = Credentials(options.relay_user, options.relay_pass)
        # Made only when there is somebody to speak TLS with: loading the CAs takes its time.
        context = client_context(policy, options.relay_ca, options.outgoing_tls_oldest) if options.relay else None
        return ClientSettings(
            options.hostname,
            policy,
            context,
            credentials,
            options.relay_auth_in_clear,
            options.relay_auth,
            options.time_out,
        )

    def _mx_client(self) -> ClientSettings:
        options = self.options
        policy = TlsPolicy(options.mx_tls)
        is_used = options.direct and not options.relay
        context = client_context(policy, None, options.outgoing_tls_oldest) if is_used else None
        return ClientSettings(options.hostname, policy, context, time_out_s=options.time_out)

    def _default_senders(self, account: Account) -> tuple[str, ...]:
        if account.may_send_as:
            return account.may_send_as
        if "@" in account.name:
            return (account.name,)
        homes = [*(d for d in self.options.domains if not d.startswith(".")), self.options.hostname]
        return tuple(f"{account.name}@{home}" for home in homes)

    def _live(self) -> dict[str, Any]:
        """What goes on in this process now, as JSON."""
        counters = asdict(self.context.counters)
        counters |= {
            "commits": self.commit.commits,
            "committed": self.commit.committed,
            "open": len(self.context.sessions),
        }
        if self._pulse is not None:
            counters |= self._pulse.counters
        now = self.clock.monotonic()
        sessions = [describe(session, now) for session in list(self.context.sessions.values())[:MOST_SESSIONS]]
        return {"counters": counters, "sessions": sessions, "lanes": self.lanes.describe()}

    # ------------------------------------------------------------------ reload

    def reload(self, options: Options) -> None:
        """Other options while the server runs, for what begins from now on. OptionError, and nothing has changed."""
        before = self.options
        self.options = options
        try:
            cert, key = options.tls_cert, options.tls_key
            tls = server_context(cert, key) if cert else None
            device_tls = server_context(cert, key, is_device=True) if cert else None
            authenticate = AuthFile(options.auth_file) if options.auth_file else options.authenticator
            self.router.relay, old_relay = relay_next_hop(options.relay), self.router.relay
            try:
                ways = self._ways()
            except BaseException:
                self.router.relay = old_relay
                raise
        except BaseException:
            self.options = before
            raise
        context = self.context
        if tls is None or self._facade is None:
            context.tls = tls
            self._facade = self._facade or tls
        else:
            # The listeners that begin with TLS have this very context, and keep it.
            replace_context(self._facade, tls)
            context.tls = self._facade
        context.device_tls = renewed(context.device_tls, device_tls)
        context.authenticate = authenticate
        self.router.is_direct = options.direct
        self.router.is_own_relayed = options.domains_via == "relay"
        self.rule.change(tuple(options.domains), options.trusted_networks)
        self.rule.take_options(options)
        context.redirect = self.rule.redirect if options.postmaster else None
        self.lanes.change(ways)
        self.scheduler.change_policy(self._retry_policy(), self._history())
        context.change(options, session_rules(options), device_rules(options))
        context.admission.change(options)
        simple = self.dispatcher.pipeline.get(SIMPLE)
        if isinstance(simple, Simple):
            simple.change(options.max_recipients)
        self.scheduler.wake()

    def route_again(self) -> None:
        """Mail that waits for a handler is due now: handlers, domains or the queue's content have changed."""
        if not self.scheduler.is_running:
            return
        if self.handlers.list() or self.router.is_own_relayed:
            self.scheduler.next_hop_is_back(UNMATCHED, ("lookup",))
        self.scheduler.wake()

    # -------------------------------------------------------------------- life

    async def start(self) -> None:
        """Everything but the listeners: the store is open, nothing is accepted yet."""
        options = self.options
        self.commit.start()
        spool = self.context.spool = Spool(self._spool_folder)
        spool.collect_orphans(self.store.spool_names())
        bounces = BounceMaker(lambda: self.options, self.new_uid)
        self._is_connected = True
        outcomes = Outcomes(self.dispatcher, self.context.counters, self.clock.time)
        self.scheduler.connect(self.lanes, bounces, outcomes, spool.remove)
        self.scheduler.on_stuck = outcomes.stuck
        self.lanes.finished = self.scheduler.finished
        self.lanes.wake = self.scheduler.wake
        self.lanes.is_back = self.scheduler.next_hop_is_back
        self._fill_pipeline()
        self.watchdog.start()
        if options.paused:
            await self.scheduler.pause()
        if options.has_shards:
            # Of other workers, too: a new one begins as they are.
            self.lanes.paused |= await asyncio.to_thread(paused_next_hops, options.data_dir)
        self.lanes.start()
        if self._pulse is not None:
            self.lanes.may_begin = lambda pulse=self._pulse: pulse.is_alive  # type: ignore[misc]
            lanes = self.lanes
            limit = self.options.maxrelay_per_next_hop
            lanes.slots = Slots(self.commit, self.clock, limit, lanes.in_use, lanes.feed, self.scheduler.let_others)
            lanes.slots.change(limit, lanes.ways.limits.interval_s)
            self._follower.on_unfit = self.on_unfit
            self._follower.start(self._pulse, self.context.room.set_away)
        await self.scheduler.start()
        self.route_again()
        if options.keeps_mail:
            await self._open_to_others()

    async def _open_to_others(self) -> None:
        """The control socket, and the mail of workers that are no more."""
        options, slot = self.options, self._slot
        if options.control:
            self._control = ControlServer(
                options.data_dir,
                self._steering,
                whole=self.queue,
                shard=slot.number,
                enqueue=lambda item: self._restore(item) if "kept" in item else self.enqueue(item),
                max_content_bytes=options.max_size_bytes,
            )
            await self._control.start()
        if slot.number == 0 and options.has_shards:
            self._adopter = Adopter(self.commit, self.route_again, self.clock, options.data_dir, slot.count)
            self._adopter.start()

    async def _restore(self, item: dict[str, Any]) -> str:
        """A message that another queue had, as it was there (`queue import --format jsonl`)."""
        message, options, spool = parse_kept(item["kept"]), self.options, self.context.spool
        message.content = await spooled_content(item["content"], self.new_uid(), spool, options.spool_above_bytes)
        try:
            await self.commit.run(lambda store: store.restore([message], self.clock.time()))
        except BaseException:
            if message.content.path and spool is not None:
                spool.remove([message.content.path])
            raise
        self.scheduler.wake()
        return message.uid

    @property
    def checks(self) -> CheckPlugins:
        """Makes the checks that the present options ask for."""
        return CheckPlugins(
            self.options, self.clock, self.resolver, self.dispatcher.post, self.rule, self.router, self._relay_client
        )

    def _fill_pipeline(self) -> None:
        """The program's plugins first, then what options ask for, then the built-in behaviour."""
        options, pipeline = self.options, self.dispatcher.pipeline
        for alias, plugin in options.plugins.items():
            pipeline.push(alias, plugin)
        for alias, check in self.checks.all():
            pipeline.push(alias, check)
        if options.options.get("trace"):
            self.dispatcher.subscribers.register(wiretap.log_event, ["all"])
        greeting = Greeting(options.hostname, options.version) if options.handle_connects else None
        if options.simple:
            simple = Simple(options.hostname, greeting, self.rule, options.max_recipients)
            simple.facts_of = facts_of_session(self.context)
            simple.room = self.context.room
            pipeline.push(SIMPLE, simple)
        elif greeting is not None:
            pipeline.push("greeting", greeting)

    async def stop(self, grace_s: float) -> None:
        """Everything, in the order in which nothing is lost."""
        await self.listeners.stop(grace_s)
        self.watchdog.stop()
        if self._adopter is not None:
            await self._adopter.stop()
        self.queue.close()
        if self.scheduler.is_running:
            await self.scheduler.stop()
        await self._follower.stop()
        if self.lanes.slots is not None:
            await self.lanes.slots.stop()
        await self.lanes.stop(grace_s)
        if self._is_connected:
            await self.scheduler.drained()
        if self._control is not None:
            # Until now whoever asks has an answer.
            await self._control.stop()
        await self.commit.stop()
        self.context.hashing.close()
        await self.resolver.close()
        if self.context.spool is not None:
            self.context.spool.close()
            if not self.options.keeps_mail:
                shutil.rmtree(self._spool_folder, ignore_errors=True)
        if self._pulse is not None:
            # Waits for the database, and for the heart's thread.
            await asyncio.to_thread(self.store.close)
        else:
            self.store.close()
        self.dispatcher.pipeline.clear()
