"""MailServer: the only place that builds and connects the rest.

async with MailServer(hostname="mail.example.org", relay="smart.example.org") as server:
    await server.wait_closed()
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import IO, Any, Self, TypeVar, Unpack, overload

from .capture.inbox import Inbox
from .clock import Clock, SystemClock, loop_factory
from .config.files import check_folder
from .config.reloadable import RELOADABLE
from .delivery.handlers import Handler, Handlers, Item, check_match, parse_handlers
from .errors import DuplicateUidError, ListenError, OptionError, StateError
from .events import catalogue as e
from .events.check import check_given
from .events.dispatch import Dispatcher
from .events.names import Names
from .eventside import EventSide
from .explain import Explainer
from .keywords import EnqueueKeywords, HandlerKeywords, QueryKeywords, ServerKeywords
from .mail.content import Content
from .option_types import MailServerOptions
from .options import Options, help_text, parse_options
from .parts import Parts
from .places import Slot
from .queue.control import make_query
from .queue.enqueue import Stamp, build_message, parse_enqueue
from .queue.model import Action, Query, View
from .queue.whole import WholeQueue
from .server.diverted import is_writable
from .server.intake import announce
from .server.raw import ReplyLines
from .smtp.reply import Reply

_log = logging.getLogger("pillarbox")
Callback = TypeVar("Callback", bound=Callable[[Item], Any])
_SERVERS: dict[str, list[MailServer]] = {}


class MailServer(EventSide):
    """A mail server inside an asyncio program. `await MailServer.spawn(**options)` returns one that runs.

    Raises OptionError, with a line for each option that is wrong. All are keyword arguments:
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        slot: Slot | None = None,
        **options: Unpack[MailServerOptions],
    ) -> None:
        self.options: Options = parse_options(options)
        check_given(self.options.plugins)
        self._slot = slot or Slot()
        self._clock = clock or SystemClock()
        self._closed: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_started = False
        self._has_failed = False
        self._stopping: asyncio.Future[None] | None = None
        self._id = uuid.uuid4().hex
        self._names = Names(e.CATALOGUE)
        self.dispatcher = Dispatcher(self, self._names.is_own)
        self._handlers = Handlers(parse_handlers(self.options.handlers, self._for_event), self.options.hostname)
        self._raw = ReplyLines()
        self._rng = rng or random.Random()
        self._parts = self._make_parts()

    def _make_parts(self) -> Parts:
        parts = Parts(
            self.options, self.dispatcher, self._handlers, self._clock, self._rng, self._listener_failed, self._slot
        )
        parts.explain = Explainer(parts).explain
        parts.enqueue = self.enqueue
        parts.on_unfit = self._unfit
        return parts

    async def explain(
        self,
        recipient: str | None = None,
        *,
        uid: str | None = None,
        sender: str | None = None,
        peer: str | None = None,
        user: str | None = None,
        probe: bool = False,
    ) -> dict[str, Any] | None:
        """Why mail would be taken, refused, or wait; or why the message `uid` still waits. Changes nothing.

        A dict: verdict, reason, reply, and every step; None for a uid that is not in the queue. `probe` connects to the next
        hop. ValueError for a peer that is no address. Works before the start, too, but for `uid`.
        """
        request = {"recipient": recipient, "uid": uid, "sender": sender, "peer": peer, "user": user, "probe": probe}
        if uid is not None:
            return await self._running("explain").queue.explain(request)
        found: dict[str, Any] = await self._parts.explain(request)
        return found

    # ------------------------------------------------------------------ life

    @classmethod
    async def spawn(cls, **options: Unpack[ServerKeywords]) -> Self:
        """Returns a server that listens. OptionError, ListenError or StoreError say what is in the way."""
        server = cls(**options)
        await server.start()
        return server

    @classmethod
    def run(
        cls,
        *,
        on_ready: Callable[[MailServer], Any] | None = None,
        on_closing: Callable[[MailServer], Any] | None = None,
        grace_s: float = 30.0,
        **options: Unpack[ServerKeywords],
    ) -> None:
        """Serves until SIGTERM or SIGINT, then shuts down gracefully; for scripts.

        `on_ready(server)` and `on_closing(server)` may be plain or async. Without `on_ready`, stderr names the addresses.
        """
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(cls._serve(on_ready or _say_ready, on_closing, grace_s, options))

    @classmethod
    async def _serve(
        cls,
        on_ready: Callable[[MailServer], Any] | None,
        on_closing: Callable[[MailServer], Any] | None,
        grace_s: float,
        options: ServerKeywords,
    ) -> None:
        server = await cls.spawn(**options)
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            await _called(on_ready, server)
            closed = asyncio.ensure_future(server.wait_closed())
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait((closed, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
        finally:
            await _called(on_closing, server)
            await server.shutdown(grace_s=grace_s)

    async def start(self) -> None:
        """Opens the queue, binds the listeners, begins to deliver."""
        if self._is_started:
            raise StateError("this server has been started already: make a new one")
        self._is_started = True
        self._closed = asyncio.Event()
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        parts = self._parts
        given = self.plugin_list()
        for text in check_folder(self.options.data_dir):
            _log.warning("data directory: %s", text)
        if self._slot.sockets is None:
            # The daemon has reported them already.
            for text in self.options.doubts():
                _log.warning("options: %s", text)
        parts.store.open()
        try:
            await parts.start()
            await parts.listeners.start()
        except BaseException as error:
            self._has_failed = isinstance(error, ListenError)
            await parts.stop(0.0)
            for alias, plugin in given.items():
                # They were there before; `start_listener` may still come.
                self.pipeline().push(alias, plugin)
            self._closed.set()
            raise
        _SERVERS.setdefault(self.options.alias, []).append(self)
        self.dispatcher.post(e.Registered(self))

    async def start_listener(self) -> None:
        """Listens, after a failure. StateError when it does listen; ListenError names what is in the way."""
        self._check_loop("start_listener")
        if self._has_failed:
            # `start` could not bind and gave everything up: it is all begun anew.
            self._has_failed = self._is_started = False
            self._parts = self._make_parts()
            await self.start()
            return
        if self._closed is None or self._closed.is_set() or self._parts.context.is_closing:
            raise StateError("this server does not run: make a new one")
        if self._parts.listeners.is_listening:
            raise StateError("this server listens already")
        await self._parts.listeners.start()

    def reload(self, **options: Unpack[MailServerOptions]) -> list[str]:
        """Other options while it runs: for new sessions and connections. The names that only a restart can change.

        All options are given, as at the start; certificates and account files are read again. OptionError, and nothing has
        changed, when one is wrong.
        """
        parts, wanted = self._running("reload"), parse_options(options)
        handlers = parse_handlers(wanted.handlers, self._for_event)
        names = [name for name in type(wanted).model_fields if getattr(wanted, name) != getattr(self.options, name)]
        update = {name: getattr(wanted, name) for name in names if name in RELOADABLE}
        # What stays of before and what is new must go together, too.
        kept = {name: getattr(self.options, name) for name in self.options.model_fields_set if name not in RELOADABLE}
        taken = {name: getattr(wanted, name) for name in wanted.model_fields_set if name in RELOADABLE}
        merged = parse_options({**kept, **taken})
        parts.reload(merged)
        self.options = merged
        if "handlers" in update:
            self._handlers.replace(handlers)
        parts.route_again()
        return [name for name in names if name not in RELOADABLE]

    async def shutdown(self, *, grace_s: float = 30.0) -> None:
        """421 to idle sessions, running transactions finish within the grace, then everything is closed. Loses nothing."""
        self._check_loop("shutdown")
        if self._closed is None or self._closed.is_set():
            return
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(grace_s))
        elif grace_s <= 0:
            # Who asks again, at once, means it.
            self._parts.listeners.cut_off()
        # Whoever gives up waiting does not stop the shutdown.
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        assert self._closed is not None
        try:
            await self._parts.stop(grace_s)
        finally:
            if self in _SERVERS.get(self.options.alias, ()):
                _SERVERS[self.options.alias].remove(self)
            self.dispatcher.subscribers.end()
            self._closed.set()

    async def wait_closed(self) -> None:
        """Returns when the server has been shut down."""
        self._check_loop("wait_closed")
        if self._closed is not None:
            await self._closed.wait()

    async def __aenter__(self) -> MailServer:
        if not self._is_started:
            await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    def session_id(self) -> str:
        """A name of this server that no other has."""
        return self._id

    @staticmethod
    def find(alias: str) -> MailServer | None:
        """The running server of that alias in this process (of several the latest), or None."""
        running = _SERVERS.get(alias)
        return running[-1] if running else None

    # --------------------------------------------------------------- looking

    def getsockname(self) -> tuple[str, int]:
        """(host, port) of the first listener, as it was really bound."""
        names = self._parts.listeners.names()
        if not names:
            raise StateError("this server does not listen")
        return names[0]

    def getsocknames(self) -> list[tuple[str, int]]:
        """(host, port) of all listeners."""
        return self._parts.listeners.names()

    def answer_control(self, verb: str, answer: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """From now on a request `verb` on the control socket gets what `answer` returns; for who runs the server."""
        control = self._parts._control
        if control is not None:
            control.verbs[verb] = answer

    # --------------------------------------------------------------- sessions

    def send_to_client(self, client_id: str, reply: Reply | str | bytes) -> bool:
        """Answers the command that a plugin ate, or that nobody answers (`simple=False`); passes `response`.

        Takes a Reply, or a line as it shall be sent ("250 OK"), without line end: a line "250-first" waits for the last,
        "250 last". False when that session is gone or owes no reply. ValueError for CR, LF or what is no reply.
        """
        self._check_loop("send_to_client")
        session = self._parts.context.sessions.get(client_id)
        is_owed = session is not None and session.owes_program
        if not isinstance(reply, Reply):
            if not is_owed:
                self._raw.forget(client_id)
            complete = self._raw.take(client_id, reply)
            if complete is None:
                if not is_owed:
                    self._raw.forget(client_id)
                return is_owed
            reply = complete
        self._raw.forget(client_id)
        return session is not None and session.reply_from_program(reply)

    def data_mode(self, client_id: str, file: IO[bytes] | None = None) -> bool:
        """The content that follows DATA goes to the program: event `data` with its lines, or `data_fh` once all is in `file`.

        Call it before the 354. The reply to the end of content is the program's. False when the session is gone, or content
        has begun to come: then it goes where it went.
        """
        self._check_loop("data_mode")
        if file is not None and not is_writable(file):
            raise OptionError(
                f"data_mode: {file!r} cannot be written: give a file that is open for writing, in binary mode"
            )
        session = self._parts.context.sessions.get(client_id)
        return session is not None and session.intake.divert(file)

    def disconnect(self, client_id: str) -> bool:
        """Cuts a session's connection without another word; False when it is gone."""
        self._check_loop("disconnect")
        session = self._parts.context.sessions.get(client_id)
        if session is not None:
            session.cut_off()
        return session is not None

    # --------------------------------------------------------------- handlers

    def get_handlers(self) -> list[Handler]:
        """A copy of the list."""
        return self._handlers.list()

    def set_handlers(self, handlers: Sequence[Handler | Mapping[str, Any]]) -> None:
        """These, and no others, from now on. OptionError names index, key and reason, and nothing changes."""
        self._check_loop("set_handlers")
        self._handlers.replace(parse_handlers(handlers, self._for_event))
        self._parts.route_again()

    def handler(
        self, match: str | re.Pattern[str], **options: Unpack[HandlerKeywords]
    ) -> Callable[[Callback], Callback]:
        """`@server.handler(r"@app\\.example$")`: recipients that match go to the function, from the queue.

        Register handlers before the server starts: until then new mail for them is refused.
        """
        self._check_loop("handler")
        check_match(match)

        def add(callback: Callback) -> Callback:
            self._handlers.add(Handler(match, callback, **options))
            self._parts.route_again()
            return callback

        return add

    # ----------------------------------------------------------------- queue

    @property
    def queue(self) -> WholeQueue:
        """The queue of all workers, as the admin API looks at it. StateError when the server does not run."""
        return self._running("queue").queue

    @property
    def inbox(self) -> Inbox:
        """What a server with `capture=True` has caught. StateError on any other."""
        self._check_loop("inbox")
        if self._parts.inbox is None:
            raise StateError("this server has no inbox: give capture=True")
        return self._parts.inbox

    def _running(self, method: str) -> Parts:
        self._check_loop(method)
        if self._closed is None or self._closed.is_set() or self._stopping is not None:
            raise StateError("this server does not run: start it first, and ask before it is shut down")
        return self._parts

    @overload
    async def enqueue(self, item: Mapping[str, Any], /) -> str: ...
    @overload
    async def enqueue(self, **keywords: Unpack[EnqueueKeywords]) -> str: ...
    async def enqueue(self, item: Mapping[str, Any] | None = None, **keywords: Any) -> str:
        """Mail of the program's own: `reverse_path`, `recipients`, `content`; optional `uid`, `ts` (unix seconds), `hold` (a
        reason: it waits for a release). The uid.

        `item` may be a dict with the original's keys: from, rcpt, msg. `content` is str, bytes, an EmailMessage or a
        binary file. Durable when it returns. OptionError names the key at fault, DuplicateUidError a uid that is there.
        """
        parts, options = self._running("enqueue"), self.options
        enqueued = parse_enqueue(item, keywords)
        uid = enqueued.uid or parts.new_uid()
        stamp = Stamp(options.hostname, uid, parts.new_uid(), self._clock.time(), options.expire_s, options.origin)
        message = await build_message(enqueued, stamp, parts.context.spool, options.spool_above_bytes)
        if enqueued.hold:
            message.hold(enqueued.hold)
        if parts.context.redirect is not None:
            parts.context.redirect(message.recipients)
        parts.scheduler.prepare(message)
        try:
            await parts.commit.run(lambda store: store.accept([message]))
        except BaseException as error:
            if message.content.path and parts.context.spool is not None:
                parts.context.spool.remove([message.content.path])
            if isinstance(error, DuplicateUidError):
                raise DuplicateUidError(
                    f"enqueue: key 'uid': {uid!r} is queued already, or was lately (`queue list --all` shows it): choose another"
                ) from None
            raise
        parts.context.counters.accepted += 1
        announce(parts.context, message, None)
        parts.scheduler.accepted(message)
        return message.uid

    async def mail_queue(self, *, limit: int | None = 1000, **query: Unpack[QueryKeywords]) -> list[View]:
        """What is queued, oldest first: uid, reverse_path, recipients (state, attempts, due time), subject and more.

        Bounded by `limit`; other keywords are those of `pillarbox.queue.model.Query` (state=, recipient=, ...). The content
        comes by `queued_content(uid)`.
        """
        wanted = make_query({"limit": limit, **query})
        return await self._running("mail_queue").queue.search(wanted)

    async def queued_content(self, uid: str) -> Content | None:
        """The content of a message that is not final yet, None for any other."""
        return await self._running("queued_content").queue.content(uid)

    async def cancel_message(self, uid: str) -> bool:
        """Takes a message out of the queue: True if it was there. One in flight is not sent again."""
        return bool(await self._running("cancel_message").queue.change(Action.CANCEL, Query(uids=[uid])))

    async def reroute_message(self, uid: str) -> bool:
        """Routes a message anew, as if it had just come: also mail that waits for a handler. True if it was queued.

        `domains` and `domains_via` still decide where mail for an own domain goes.
        """
        return bool(await self._running("reroute_message").queue.change(Action.REROUTE, Query(uids=[uid])))

    async def pause_queue(self, next_hop: str | None = None) -> None:
        """Running sends finish; nothing else is sent until resume_queue, not even after a restart.

        `next_hop`, a key as `queue show` tells it ("mx:example.org"): to that one alone.
        """
        await self._running("pause_queue").queue.pause(next_hop)

    async def resume_queue(self, next_hop: str | None = None) -> None:
        """Goes on; with everything that was not paused by its next hop, or with that one."""
        await self._running("resume_queue").queue.resume(next_hop)

    def paused(self) -> bool:
        """True while paused."""
        return self._parts.scheduler.is_paused

    def _unfit(self, why: str) -> None:
        _log.critical("this server cannot go on with its queue, and stops: %s", why)
        self._stopping = self._stopping or asyncio.ensure_future(self._stop(30.0))

    def _listener_failed(self, error: OSError, address: str) -> None:
        text = os.strerror(error.errno) if error.errno else str(error)
        self.dispatcher.post(e.ListenerFailed("bind", error.errno or 0, text, address))


async def _called(callback: Callable[[MailServer], Any] | None, server: MailServer) -> None:
    result = callback(server) if callback is not None else None
    if result is not None:
        await result


def _say_ready(server: MailServer) -> None:
    names = " ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in server.getsocknames())
    sys.stderr.write(f"pillarbox: ready on {names}; Ctrl-C ends it\n")


if MailServer.__doc__:
    MailServer.__doc__ += "\n" + help_text()
