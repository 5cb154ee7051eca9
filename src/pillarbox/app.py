"""MailServer: the only place that builds and connects the rest.

async with MailServer(hostname="mail.example.org", relay="smart.example.org") as server:
    await server.wait_closed()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import signal
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from .clock import Clock, SystemClock, UidSource
from .delivery.bounce import BounceMaker
from .delivery.client import ClientSettings
from .delivery.lanes import LaneLimits, Lanes
from .delivery.route import relay_next_hop
from .delivery.tlspolicy import TlsPolicy, client_context
from .errors import OptionError, StateError
from .events import catalogue as e
from .events.dispatch import Dispatcher
from .events.pipeline import SIMPLE, Pipeline
from .events.subscribers import ALL
from .options import Options, parse_options
from .plugins.simple import RelayRule, Simple
from .queue.commit import GroupCommit
from .queue.control import ControlServer, LiveSteering
from .queue.memory import MemoryStore
from .queue.null import NullStore
from .queue.retry import RetryPolicy
from .queue.scheduler import History, Judged, Scheduler
from .queue.spool import Spool
from .queue.sqlite import SqliteStore
from .queue.store import Store
from .queue.work import Work
from .server.accounts import Account, AuthFile
from .server.context import ServerContext, facts_of_session
from .server.limits import Admission
from .server.listener import Listeners
from .server.tls import server_context
from .smtp.reply import Reply
from .smtp.sasl import Credentials
from .smtp.server import Rules

_log = logging.getLogger("pillarbox")
_SERVERS: weakref.WeakValueDictionary[str, MailServer] = weakref.WeakValueDictionary()


class MailServer:
    """A mail server inside an asyncio program. `MailServer.spawn(**options)` gives one that runs.

    Options are those of `pillarbox.options.Options`. Raises OptionError for what is wrong with them.
    """

    def __init__(self, *, clock: Clock | None = None, rng: random.Random | None = None, **options: Any) -> None:
        self.options: Options = parse_options(options)
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._closed: asyncio.Event | None = None
        self._is_started = self._is_connected = False
        self.dispatcher = Dispatcher(self)
        self._build()

    # -------------------------------------------------------------- building

    def _build(self) -> None:
        options, clock = self.options, self._clock
        self._next_hop = relay_next_hop(options.relay)
        tls = server_context(options.tls_cert, options.tls_key) if options.tls_cert else None
        self._store = self._make_store()
        self.commit = GroupCommit(self._store, self._prefers_inline)
        policy = RetryPolicy(
            first_s=options.retry_first_s,
            longest_s=max(options.retry_first_s, options.retry_longest_s),
            expire_s=options.expire_s,
            delay_notice_s=options.delay_notice_s,
        )
        history = History(options.history_s, options.history_messages)
        self.scheduler = Scheduler(self.commit, clock, policy, history=history, rng=self._rng)
        limits = LaneLimits(options.maxrelay, options.maxrelay_per_next_hop)
        self.lanes = Lanes(self._next_hop, self._client_settings(), limits, clock, self._rng)
        rule = RelayRule(tuple(options.domains), options.trusted_networks, lambda address: self._next_hop is not None)
        new_uid = UidSource(clock)
        self._new_uid = new_uid
        self.context = ServerContext(
            options,
            self.dispatcher,
            clock,
            self.commit,
            self.scheduler,
            None,
            new_uid,
            Admission(options.max_sessions, options.max_sessions_per_peer),
            rule.is_trusted,
            tls=tls,
            authenticate=AuthFile(options.auth_file) if options.auth_file else options.authenticator,
            default_senders=self._default_senders,
            rules=Rules(
                max_line_bytes=options.max_line_bytes,
                normalise_bare=options.bare_line_ends == "normalise",
                accept_bare_lf_commands=options.bare_lf_commands == "accept",
                is_strict=options.strict_envelope,
            ),
        )
        self.listeners = Listeners(self.context, self._listener_failed)
        self.steering = LiveSteering(self.scheduler, self.commit, self.lanes.why_waiting)
        self._control: ControlServer | None = None
        simple = Simple(options.hostname, options.version, rule, options.max_recipients)
        simple.facts_of = facts_of_session(self.context)
        self._simple = simple

    def _make_store(self) -> Store:
        options = self.options
        if options.store == "sqlite":
            store = SqliteStore(options.data_dir)
            self._spool_folder = store.spool
            return store
        # A folder of its own: the real queue of this data directory may have files in "spool".
        self._spool_folder = os.path.join(options.data_dir, f"spool-{options.store}-{os.getpid()}-{id(self):x}")
        return MemoryStore(self._spool_folder) if options.store == "memory" else NullStore(self._spool_folder)

    def _client_settings(self) -> ClientSettings:
        options = self.options
        policy = TlsPolicy(options.relay_tls or ("verify" if options.relay_user else "may"))
        if options.relay_auth_in_clear and options.relay_tls is None:
            policy = TlsPolicy.MAY
        credentials = None
        if options.relay_user and options.relay_pass:
            credentials = Credentials(options.relay_user, options.relay_pass)
        # Made only when there is somebody to speak TLS with: loading the CAs takes its time.
        context = client_context(policy, options.relay_ca) if self._next_hop is not None else None
        return ClientSettings(
            options.hostname, policy, context, credentials, options.relay_auth_in_clear, options.time_out
        )

    def _prefers_inline(self) -> bool:
        return len(self.context.sessions) <= 1 and self.scheduler.in_hand <= 1

    def _default_senders(self, account: Account) -> tuple[str, ...]:
        if account.may_send_as:
            return account.may_send_as
        if "@" in account.name:
            return (account.name,)
        homes = [*(d for d in self.options.domains if not d.startswith(".")), self.options.hostname]
        return tuple(f"{account.name}@{home}" for home in homes)

    # ------------------------------------------------------------------ life

    @classmethod
    async def spawn(cls, **options: Any) -> MailServer:
        """A server that listens. OptionError, ListenError or StoreError say what is in the way."""
        server = cls(**options)
        await server.start()
        return server

    @classmethod
    def run(
        cls, *, on_ready: Callable[[MailServer], None] | None = None, grace_s: float = 30.0, **options: Any
    ) -> None:
        """For scripts: serves until SIGTERM or SIGINT, then shuts down gracefully."""
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(cls._serve(on_ready, grace_s, options))

    @classmethod
    async def _serve(
        cls, on_ready: Callable[[MailServer], None] | None, grace_s: float, options: dict[str, Any]
    ) -> None:
        server = await cls.spawn(**options)
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if on_ready is not None:
            on_ready(server)
        closed = asyncio.ensure_future(server.wait_closed())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((closed, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        await server.shutdown(grace_s=grace_s)
        await closed

    async def start(self) -> None:
        """Opens the queue, binds the listeners, begins to deliver."""
        if self._is_started:
            raise StateError("this server has been started already: make a new one")
        self._is_started = True
        self._closed = asyncio.Event()
        self._store.open()
        try:
            await self._start_parts()
        except BaseException:
            await self._stop_parts(0.0)
            self._closed.set()
            raise
        _SERVERS[self.options.alias] = self
        self.dispatcher.post(e.Registered(self))

    async def _start_parts(self) -> None:
        options = self.options
        self.commit.start()
        spool = self.context.spool = Spool(self._spool_folder)
        spool.collect_orphans(self._store.spool_names())
        bounces = BounceMaker(options.hostname, options.expire_s, self._new_uid)
        self._is_connected = True
        self.scheduler.connect(self.lanes, bounces, self._outcome, spool.remove)
        self.lanes.finished = self.scheduler.finished
        self.lanes.wake = self.scheduler.wake
        self.lanes.is_back = self.scheduler.next_hop_is_back
        for alias, plugin in options.plugins.items():
            self.pipeline().push(alias, plugin)
        self.pipeline().push(SIMPLE, self._simple)
        if options.paused:
            await self.scheduler.pause()
        self.lanes.start()
        await self.scheduler.start()
        if options.control and options.store == "sqlite":
            self._control = ControlServer(options.data_dir, self.steering)
            await self._control.start()
        await self.listeners.start()

    async def shutdown(self, *, grace_s: float = 30.0) -> None:
        """421 to idle sessions, running transactions finish within the grace, then everything is closed. Loses nothing."""
        if self._closed is None or self.context.is_closing:
            await self.wait_closed()
            return
        await self._stop_parts(grace_s)
        self._closed.set()

    async def _stop_parts(self, grace_s: float) -> None:
        options = self.options
        await self.listeners.stop(grace_s)
        if self._control is not None:
            await self._control.stop()
        if self.scheduler.is_running:
            await self.scheduler.stop()
        await self.lanes.stop(grace_s)
        if self._is_connected:
            await self.scheduler.drained()
        await self.commit.stop()
        if self.context.spool is not None:
            self.context.spool.close()
            if options.store != "sqlite":
                shutil.rmtree(self._spool_folder, ignore_errors=True)
        self._store.close()
        self.pipeline().clear()
        _SERVERS.pop(self.options.alias, None)

    async def wait_closed(self) -> None:
        """Returns when the server has been shut down."""
        if self._closed is not None:
            await self._closed.wait()

    async def __aenter__(self) -> MailServer:
        if not self._is_started:
            await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    @staticmethod
    def find(alias: str) -> MailServer | None:
        """The running server of that alias in this process, or None."""
        return _SERVERS.get(alias)

    # --------------------------------------------------------------- looking

    def getsockname(self) -> tuple[str, int]:
        """(host, port) of the first listener, as it was really bound."""
        names = self.listeners.names()
        if not names:
            raise StateError("this server does not listen")
        return names[0]

    def getsocknames(self) -> list[tuple[str, int]]:
        """(host, port) of all listeners."""
        return self.listeners.names()

    # ---------------------------------------------------- plugins and events

    def pipeline(self) -> Pipeline:
        """The pipeline itself: push, pop, shift, unshift, insert_before, insert_after, replace, remove, bump_up, bump_down."""
        return self.dispatcher.pipeline

    def plugin_add(self, alias: str, plugin: Any) -> int:
        """Adds a plugin before the built-in behaviour; the number of plugins. PluginError when the alias is taken."""
        return self.pipeline().push(alias, plugin)

    def plugin_del(self, which: Any) -> Any:
        """Removes a plugin, by alias or itself, and returns it."""
        return self.pipeline().remove(which)

    def plugin_get(self, which: Any) -> Any | None:
        """A plugin by alias, or None."""
        return self.pipeline().get(which)

    def plugin_list(self) -> dict[str, Any]:
        """Plugins by alias."""
        return self.pipeline().list()

    def plugin_order(self) -> list[Any]:
        """Plugins in order."""
        return self.pipeline().order()

    def register(self, callback: Callable[[Any], Any], *names: str | Iterable[str]) -> None:
        """`callback(event)` for each event of these names (`all` for every one); plain or async."""
        self.dispatcher.subscribers.register(callback, _event_names(names))

    def unregister(self, callback: Callable[[Any], Any], *names: str | Iterable[str]) -> bool:
        """The callback hears of these no longer; without names, of nothing. False if it was not registered."""
        return self.dispatcher.subscribers.unregister(callback, _event_names(names) if names else [ALL])

    def events(self, *names: str) -> AsyncIterator[Any]:
        """`async for event in server.events("message_queued")`: from now on, until the loop ends."""
        return self.dispatcher.subscribers.events(_event_names(names))

    def send_to_client(self, client_id: str, reply: Reply | str) -> bool:
        """Answers the command that a plugin ate (Eat.PLUGIN, Eat.ALL); False when that session owes no reply."""
        session = self.context.sessions.get(client_id)
        if isinstance(reply, str):
            code, _, text = reply.partition(" ")
            reply = Reply(int(code), None, text) if code.isdigit() else Reply(250, None, reply)
        return session is not None and session.reply_from_program(reply)

    # ----------------------------------------------------------------- queue

    async def pause_queue(self) -> None:
        """Running sends finish; nothing else is sent until resume_queue, not even after a restart."""
        await self.scheduler.pause()

    async def resume_queue(self) -> None:
        """Goes on."""
        await self.scheduler.resume()

    def paused(self) -> bool:
        """True while paused."""
        return self.scheduler.is_paused

    # ---------------------------------------------------------- what happens

    def _listener_failed(self, error: OSError, address: str) -> None:
        text = os.strerror(error.errno) if error.errno else str(error)
        self.dispatcher.post(e.ListenerFailed("bind", error.errno or 0, text, address))

    def _outcome(self, work: Work, judged: list[Judged]) -> None:
        """Events, counters and a log line for an attempt."""
        counters = self.context.counters
        groups: dict[tuple[str, str], list[Judged]] = {}
        for one in judged:
            state = one.settled.state
            counters.delivered += state == "delivered"
            counters.deferred += state == "deferred"
            counters.bounced += state in ("bounced", "expired")
            groups.setdefault((state, str(one.result.reply)), []).append(one)
        for (state, _), group in groups.items():
            self._tell_outcome(work, state, group)

    def _tell_outcome(self, work: Work, state: str, group: list[Judged]) -> None:
        uid, first = work.message.uid, group[0]
        recipients = [one.result.recipient.address for one in group]
        level = logging.INFO if state == "delivered" else logging.WARNING
        if _log.isEnabledFor(level):
            to, reply = ",".join(recipients[:5]), first.result.reply
            _log.log(
                level, "%s %s to=%s next_hop=%s stage=%s: %s", state, uid, to, work.next_hop, first.result.stage, reply
            )
        event: Any
        if state == "delivered":
            if not self.dispatcher.listens("send_success"):
                return
            attempt = first.result.recipient.attempts + 1
            event = e.SendSuccess(uid, recipients, work.next_hop, first.result.reply, attempt)
        else:
            if not self.dispatcher.listens("send_failed"):
                return
            is_permanent = state in ("bounced", "expired")
            event = e.SendFailed(
                uid,
                recipients,
                work.next_hop,
                first.result.stage,
                first.result.reply,
                is_permanent,
                None if is_permanent else first.settled.due_at,
            )
        self.dispatcher.post(event)


def _event_names(names: Iterable[str | Iterable[str]]) -> list[str]:
    """Names, checked against the catalogue. OptionError names the nearest right one."""
    import difflib

    flat: list[str] = []
    for name in names:
        flat += [name] if isinstance(name, str) else list(name)
    for name in flat:
        if name != ALL and name not in e.CATALOGUE:
            near = difflib.get_close_matches(name, e.CATALOGUE, 1)
            raise OptionError(f"there is no event {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if not flat:
        raise OptionError("name at least one event, or 'all'")
    return flat


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it is installed, else asyncio's own."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop
