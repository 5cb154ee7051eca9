"""MailServer's methods for plugins, subscribers, and events of the program's own. Must not know sessions or the queue."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from .delivery.answers import NoSubscriberError
from .errors import OptionError, StateError
from .events.dispatch import Dispatcher, Verdict
from .events.face import EventFace, OwnEvent
from .events.methods import PluginLike
from .events.names import Names
from .events.pipeline import Pipeline
from .events.subscribers import ALL, EventIterator
from .smtp.reply import Reply

_log = logging.getLogger("pillarbox")


class EventSide(EventFace):
    """See the module's text. MailServer gives the attributes."""

    dispatcher: Dispatcher
    _names: Names
    _loop: asyncio.AbstractEventLoop | None
    _thread: int
    _closed: asyncio.Event | None

    def pipeline(self) -> Pipeline:
        """The pipeline itself: push, pop, shift, unshift, insert_before, insert_after, replace, remove, bump_up, bump_down."""
        return self.dispatcher.pipeline

    def plugin_add(self, alias: str, plugin: PluginLike) -> int:
        """Adds a plugin before the built-in behaviour; the number of plugins. PluginError when the alias is taken."""
        self._check_loop("plugin_add")
        return self.pipeline().push(alias, plugin)

    def plugin_del(self, which: Any) -> Any:
        """Removes a plugin, by alias or itself, and returns it."""
        self._check_loop("plugin_del")
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

    def plugin_register(self, plugin: Any, kind: str, *names: str | Iterable[str]) -> bool:
        """From within a plugin's own `plugin_register`: it gets these events of a kind ("SMTPD", "SMTPC"; `all` works).

        A plugin that does not call it gets every event that it has a method for.
        """
        self._check_loop("plugin_register")
        self.pipeline().want(plugin, _kind(kind), self._names.checked(names))
        return True

    def plugin_unregister(self, plugin: Any, kind: str, *names: str | Iterable[str]) -> list[str]:
        """The plugin gets these no longer; the names that it had not asked for."""
        self._check_loop("plugin_unregister")
        return self.pipeline().unwant(plugin, _kind(kind), self._names.flat(names))

    def _register(self, callback: Callable[[Any], Any], names: Iterable[Any]) -> None:
        self._check_loop("register")
        if not callable(callback):
            raise OptionError(f"register: invalid callback {callback!r}: expected a function, then names of events")
        self.dispatcher.subscribers.register(callback, self._names.checked(names))

    def unregister(self, callback: Callable[[Any], Any], *names: str | Iterable[str]) -> bool:
        """The callback hears of these no longer; without names, of nothing. False if it was not registered."""
        self._check_loop("unregister")
        return self.dispatcher.subscribers.unregister(callback, self._names.checked(names) if names else [ALL])

    def _events(self, names: Iterable[Any]) -> EventIterator[Any]:
        self._check_loop("events")
        return self.dispatcher.subscribers.events(self._names.checked(names))

    def define_event(self, name: str) -> OwnEvent:
        """Declares an event of the program's own, so that it can be registered for. Returns its name, typed."""
        self._names.define(name)
        return OwnEvent(name)

    def send_event(self, name: str, *args: Any) -> Verdict | Any:
        """An event through the pipeline, then to subscribers; own names arrive as `Custom`. What the pipeline said of it."""
        self._check_loop("send_event")
        return self.dispatcher.dispatch(self._names.make(name, args))

    def send_event_threadsafe(self, name: str, *args: Any) -> None:
        """As send_event, from any thread."""
        self._from_anywhere(lambda: self.send_event(name, *args))

    def post(self, name: str, *args: Any) -> None:
        """Runs the method of that name (shutdown, send_event, register, ...) in the server's loop, from any task or thread."""
        if name not in _POSTABLE:
            raise OptionError(self._names.near(f"post: {name!r} is no input event", name, _POSTABLE))
        self._from_anywhere(lambda: self._run_posted(name, args))

    def _run_posted(self, name: str, args: tuple[Any, ...]) -> None:
        try:
            answer = getattr(self, name)(*args)
        except Exception:
            _log.exception("post(%r) failed", name)
            return
        if asyncio.iscoroutine(answer):
            task = asyncio.ensure_future(answer)
            _POSTED.add(task)
            task.add_done_callback(_posted_done)

    def _for_event(self, name: str) -> Callable[[Any], Any]:
        """The callback of a handler that names an event: whoever is registered for it, directly, one after the other."""
        self._names.define(name)
        (name,) = self._names.flat([name])

        async def call_all(item: Any) -> Any:
            callbacks = self.dispatcher.subscribers.callbacks(name)
            if not callbacks:
                raise NoSubscriberError(f"handler: no callback is registered for its event {name!r}")
            for callback in callbacks:
                answer = callback(item)
                if answer is not None and hasattr(answer, "__await__"):
                    answer = await answer
                if answer is not None and not (isinstance(answer, Reply) and answer.code < 300):
                    # A refusal, or what the handler's lane calls a fault: the others do not get the message.
                    return answer
            return None

        return call_all

    def _check_loop(self, method: str) -> None:
        """StateError, before anything happens, for a call from another thread or loop than the server's."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            if asyncio.get_running_loop() is loop:
                return
        except RuntimeError:
            if threading.get_ident() == self._thread:
                # Between two runs of the loop.
                return
        is_coroutine = inspect.iscoroutinefunction(getattr(type(self), method, None))
        way = (
            f"asyncio.run_coroutine_threadsafe(server.{method}(...), loop)"
            if is_coroutine
            else f"loop.call_soon_threadsafe(server.{method}, ...)"
        )
        other = ", or pillarbox.connect(data_dir).enqueue(...)" if method == "enqueue" else ""
        raise StateError(
            f"{method}: called from another thread or event loop than the server's: expected a call from the server's own "
            f"loop; use {way} with that loop{other}"
        )

    def _from_anywhere(self, work: Callable[[], Any]) -> None:
        if self._loop is None or self._closed is None or self._closed.is_set():
            raise StateError("this server does not run")
        self._loop.call_soon_threadsafe(work)


# What `post` may be asked for: the original's input events.
_POSTABLE = (
    "register", "unregister", "shutdown", "send_event", "send_to_client", "start_listener", "pause_queue", "resume_queue",
    "cancel_message", "enqueue",
)  # fmt: skip
_POSTED: set[asyncio.Future[Any]] = set()


def _posted_done(task: asyncio.Future[Any]) -> None:
    _POSTED.discard(task)
    if not task.cancelled() and task.exception() is not None:
        _log.error("what was posted failed: %s", task.exception())


def _kind(kind: str) -> str:
    if kind not in ("SMTPD", "SMTPC"):
        raise OptionError(f"kind {kind!r}: there are 'SMTPD' (events) and 'SMTPC' (replies about to be sent)")
    return kind
