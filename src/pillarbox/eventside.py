"""MailServer's methods for plugins, subscribers, and events of the program's own. Must not know sessions or the queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from .errors import OptionError, StateError
from .events.dispatch import Dispatcher, Verdict
from .events.face import EventFace, OwnEvent
from .events.methods import PluginLike
from .events.names import Names
from .events.pipeline import Pipeline
from .events.subscribers import ALL, EventIterator

_log = logging.getLogger("pillarbox")


class EventSide(EventFace):
    """See the module's text. MailServer gives the attributes."""

    dispatcher: Dispatcher
    _names: Names
    _loop: asyncio.AbstractEventLoop | None
    _closed: asyncio.Event | None

    def pipeline(self) -> Pipeline:
        """The pipeline itself: push, pop, shift, unshift, insert_before, insert_after, replace, remove, bump_up, bump_down."""
        return self.dispatcher.pipeline

    def plugin_add(self, alias: str, plugin: PluginLike) -> int:
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

    def plugin_register(self, plugin: Any, kind: str, *names: str | Iterable[str]) -> bool:
        """From within a plugin's own `plugin_register`: it gets these events of a kind ("SMTPD", "SMTPC"; `all` works).

        A plugin that does not call it gets every event that it has a method for.
        """
        self.pipeline().want(plugin, _kind(kind), self._names.checked(names))
        return True

    def plugin_unregister(self, plugin: Any, kind: str, *names: str | Iterable[str]) -> list[str]:
        """The plugin gets these no longer; the names that it had not asked for."""
        return self.pipeline().unwant(plugin, _kind(kind), self._names.flat(names))

    def _register(self, callback: Callable[[Any], Any], names: Iterable[Any]) -> None:
        if not callable(callback):
            raise OptionError(f"register: invalid callback {callback!r}: expected a function, then names of events")
        self.dispatcher.subscribers.register(callback, self._names.checked(names))

    def unregister(self, callback: Callable[[Any], Any], *names: str | Iterable[str]) -> bool:
        """The callback hears of these no longer; without names, of nothing. False if it was not registered."""
        return self.dispatcher.subscribers.unregister(callback, self._names.checked(names) if names else [ALL])

    def _events(self, names: Iterable[Any]) -> EventIterator[Any]:
        return self.dispatcher.subscribers.events(self._names.checked(names))

    def define_event(self, name: str) -> OwnEvent:
        """Declares an event of the program's own, so that it can be registered for. Returns its name, typed."""
        self._names.define(name)
        return OwnEvent(name)

    def send_event(self, name: str, *args: Any) -> Verdict | Any:
        """An event through the pipeline, then to subscribers; own names arrive as `Custom`. What the pipeline said of it."""
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
