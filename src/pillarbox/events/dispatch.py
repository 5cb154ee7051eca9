"""Dispatch: one event through the plugins, then to the subscribers, with as few turns of the loop as possible.

A plain call while nobody suspends; an async method is driven inline by `send(None)` and gets a task only when it truly
suspends. Failures of plugins end here, sys.exit() among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import types
from collections.abc import Callable, Generator
from types import CoroutineType
from typing import Any

from ..errors import contained
from ..smtp.reply import Reply, parse_reply
from .catalogue import CATALOGUE, Kind, PluginFailed
from .pipeline import SIMPLE, Pipeline, Step
from .plugin import Eat
from .subscribers import Subscribers

_log = logging.getLogger("pillarbox.plugins")


Verdict = Reply | Eat | None
Done = Callable[[Verdict], None]


class Parked:
    """What dispatch gives back when a plugin suspended: the verdict comes in a later turn, through `done`.

    Who has asked may still say so now: what nearly always is not needed need not be made before.
    """

    __slots__ = ("done",)

    def __init__(self, done: Done | None) -> None:
        self.done = done


FAILED = Reply(451, "4.3.0", "Temporary failure: try again later", reason="plugin-failed")
FAILED_AT_CONNECTION = Reply(421, "4.3.0", "Temporary failure: try again later", reason="plugin-failed")
_SMTPC = Kind.SMTPC
_WANTED = 'expected None, an Eat, a Reply, an awaitable, or a text of 4yz or 5yz such as "550 5.7.1 Not accepted"'
# Who eats one of these owes a reply.
_OWES = ("cmd_", "connection", "data")
# A failure at one of these cannot be answered; it is only logged.
_UNANSWERED = frozenset(("disconnected", "response", "message_queued", "send_success", "send_failed", "registered"))


class Dispatcher:
    """Pipeline and subscribers of one server, and the walk through them."""

    def __init__(self, server: Any, is_own: Callable[[str], bool] | None = None) -> None:
        self.server = server
        self.pipeline = Pipeline(server, self._pipeline_changed, lambda: self.compile(), is_own)
        self.subscribers = Subscribers(self.compile)
        # By event name: is anybody there; and, where only the built-in behaviour is, its answer, or what gives one when
        # it is called with the session and the command: then no event is built, and nobody walks.
        self.heard: dict[str, bool] = dict.fromkeys(CATALOGUE, False)
        self.direct: dict[str, Reply | Callable[[Any, Any], Reply] | None] = dict.fromkeys(CATALOGUE)
        self.has_direct = False
        # What sessions make of `direct` for lines that come again, to have it at hand: forgotten when that changes.
        self.ways: dict[bytes, Any] = {}
        self._steps: dict[str, tuple[Step, ...]] = {}
        # The same by the event's class: asking an object for what its class says costs more.
        self._steps_of: dict[type[Any], tuple[Step, ...]] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._eater: str | None = None
        # At hand for the next coroutine, while none is driven.
        self._driver: Generator[Any, Any, Any] | None = None

    def compile(self) -> None:
        """Looks at pipeline and subscribers once, so that an event need not: after each change of either."""
        self.ways.clear()
        for name in CATALOGUE:
            steps, is_subscribed = self.pipeline.steps(name), self.subscribers.listens(name)
            self._steps[name] = self._steps_of[CATALOGUE[name]] = steps
            self.heard[name] = bool(steps) or is_subscribed
            self.direct[name] = None
            if len(steps) == 1 and steps[0].alias == SIMPLE and not is_subscribed:
                self.direct[name] = _answer_of(steps[0], name)
        if self.heard["response"]:
            # Somebody wants to see each reply on its way out.
            self.direct = dict.fromkeys(CATALOGUE)
        self.has_direct = any(answer is not None for answer in self.direct.values())

    def begin_ways(self) -> None:
        """Lines are read otherwise from now on: sessions that have the old `ways` find them empty for good."""
        self.ways.clear()
        self.ways = {}

    def listens(self, name: str) -> bool:
        """False when an event of that name need not even be built."""
        heard = self.heard.get(name)
        return bool(self.pipeline.steps(name)) or self.subscribers.listens(name) if heard is None else heard

    def dispatch(self, event: Any, done: Done | None = None) -> Verdict | Parked:
        """Takes the event to everyone who may see it.

        A Reply: the answer. An Eat: the event was eaten without an answer. None: nobody objected. A Parked: its `done` gets
        one of these later (without one the rest simply happens later).
        """
        server, steps = self.server, self._steps_of.get(type(event))
        if steps is None:
            # An event of the program's own, or one that is like one of ours.
            steps = self._steps.get(event.name) or self.pipeline.steps(event.name)
        # Nearly all have nothing to say, and then the built-in behaviour answers: that way is kept short. (A step's fields by
        # place, alias, method and needs_task: by name they cost as much as a call.)
        for step in steps:
            try:
                result = step[2](server, event)
                if result is None:
                    continue
                if type(result) is CoroutineType and not step[3]:
                    # As `_drive` does it: most have never to wait. (Whoever sends an event from within has another driver.)
                    driver, self._driver = self._driver or _begun(_drive_each()), None
                    given = driver.send(result)
                    if given is _NOTHING:
                        self._driver = driver
                        continue
                    if type(given) is not _Ended:
                        result = _Suspended(driver, given, is_begun=True)
                    else:
                        self._driver = driver
                        result = self._checked(step, event, given.value)
                        if result is None:
                            continue
            except BaseException as error:
                result = self._failed(step, event, error)
                if result is None:
                    continue
            if type(result) is Reply and step[0] == SIMPLE and event.kind is not _SMTPC:
                if self.subscribers.by_name:
                    self.subscribers.notify(event)
                return result
            return self._take(event, steps, steps.index(step), Eat.NONE, done, result)
        if self.subscribers.by_name:
            self.subscribers.notify(event)
        return None

    def post(self, event: Any) -> None:
        """For events that nobody can answer."""
        self.dispatch(event)

    # --------------------------------------------------------------------- walk

    def _walk(self, event: Any, steps: tuple[Step, ...], start: int, eaten: Eat, done: Done | None) -> Verdict | Parked:
        server = self.server
        for index in range(start, len(steps)):
            step = steps[index]
            try:
                result = step.method(server, event)
            except BaseException as error:
                result = self._failed(step, event, error)
            if result is not None:
                return self._take(event, steps, index, eaten, done, result)
        return self._end(event, eaten)

    def _take(
        self, event: Any, steps: tuple[Step, ...], index: int, eaten: Eat, done: Done | None, result: Any
    ) -> Verdict | Parked:
        """What the plugin at `index` gave, then the rest of the walk."""
        step = steps[index]
        if result.__class__ is not Reply and result.__class__ is not Eat:
            if result.__class__ is not _Suspended:
                result = self._drive(step, event, result)
            if result.__class__ is _Suspended:
                return self._park(event, steps, index, eaten, done, result)
        if result is not None:
            verdict, eaten, is_over = self._judge(step, event, result, eaten)
            if is_over:
                return verdict
        return self._walk(event, steps, index + 1, eaten, done)

    def _judge(self, step: Step, event: Any, result: Any, eaten: Eat) -> tuple[Verdict, Eat, bool]:
        """What one plugin's answer means: (verdict, eaten from now on, the walk is over)."""
        if result.__class__ is Reply:
            if event.kind is Kind.SMTPC:
                event.reply = result
                return None, eaten, False
            # A plugin's answer eats the event; the built-in behaviour is what subscribers are meant to see.
            if step.alias == SIMPLE:
                self._end(event, eaten)
            return result, eaten, True
        if result is not Eat.NONE and event.name.startswith(_OWES):
            self._eater = step.alias
        if result is Eat.ALL:
            return Eat.ALL, eaten, True
        if result is Eat.PLUGIN:
            if eaten is Eat.NONE:
                self.subscribers.notify(event)
            return Eat.PLUGIN if eaten is Eat.NONE else Eat.ALL, eaten, True
        return None, (Eat.CLIENT if result is Eat.CLIENT else eaten), False

    def take_eater(self) -> str | None:
        """Returns the plugin that ate the last event, for whoever waits for the reply that it owes."""
        eater, self._eater = self._eater, None
        return eater

    def _end(self, event: Any, eaten: Eat) -> Verdict:
        if eaten is Eat.NONE:
            self.subscribers.notify(event)
            return None
        return eaten

    # -------------------------------------------------------------------- async

    def _drive(self, step: Step, event: Any, awaitable: Any) -> Any:
        """An awaitable's result, when it has one without waiting; a _Suspended when it truly waits."""
        if awaitable.__class__ is not CoroutineType and not asyncio.iscoroutine(awaitable):
            if hasattr(awaitable, "__await__"):
                return _Suspended(_await(awaitable), None, is_begun=False)
            return self._checked(step, event, awaitable)
        if step.needs_task:
            return _Suspended(awaitable, None, is_begun=False)
        try:
            first = awaitable.send(None)
        except StopIteration as stop:
            return None if stop.value is None else self._checked(step, event, stop.value)
        except BaseException as error:
            return self._failed(step, event, error)
        return _Suspended(awaitable, first, is_begun=True)

    def _checked(self, step: Step, event: Any, result: Any) -> Verdict:
        if result is None or result.__class__ is Reply or result.__class__ is Eat:
            return result
        if isinstance(result, str):
            # A text may refuse, never accept: a plugin that returns some string by mistake must not let mail in.
            with contextlib.suppress(ValueError):
                if (reply := parse_reply(result)).code >= 400:
                    return reply
        return self._failed(step, event, TypeError(f"returned {result!r}: {_WANTED}"))

    def _park(
        self, event: Any, steps: tuple[Step, ...], index: int, eaten: Eat, done: Done | None, waiting: _Suspended
    ) -> Parked:
        """The rest of the walk happens in a task; the plugin's deadline runs from now."""
        parked = Parked(done)

        async def rest() -> None:
            step = steps[index]
            verdict: Verdict = None
            try:
                result = await self._wait(step, event, waiting)
                if result is None:
                    is_over, now_eaten = False, eaten
                else:
                    verdict, now_eaten, is_over = self._judge(step, event, result, eaten)
                if not is_over:
                    further = self._walk(event, steps, index + 1, now_eaten, parked.done)
                    if isinstance(further, Parked):
                        return
                    verdict = further
            except Exception:
                _log.exception("dispatch of %s failed", event.name)
                verdict = FAILED
            if parked.done is not None:
                parked.done(verdict)

        # Not by the loop's factory, which may be an eager one: who gets the Parked must be able to say what follows.
        task = asyncio.Task(rest(), loop=asyncio.get_running_loop())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return parked

    async def _wait(self, step: Step, event: Any, waiting: _Suspended) -> Verdict:
        deadline_s = getattr(step.plugin, "deadline_s", 60.0)
        inner = asyncio.get_running_loop().create_task(contained(waiting.rest()))
        try:
            return self._checked(step, event, await asyncio.wait_for(inner, deadline_s))
        except TimeoutError:
            return self._failed(step, event, TimeoutError(f"no answer within {deadline_s} s"))
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return self._failed(step, event, asyncio.CancelledError("the plugin cancelled itself"))
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not inner.done():
                # This coroutine is closed: the plugin has not failed.
                raise
            return self._failed(step, event, error)

    # ------------------------------------------------------------------ failures

    def _failed(self, step: Step, event: Any, error: BaseException) -> Verdict:
        """One log line, a `plugin_error` event, and the plugin's failure policy. The peer never sees the text."""
        client_id = getattr(event, "client_id", None) or "-"
        told = {"session": client_id, "reason": f"{type(error).__name__}: {error}"}
        words = "plugin %r failed on %s (session %s): %r"
        _log.error(words, step.alias, event.name, client_id, error, exc_info=error, extra=told)
        if event.name != PluginFailed.name:
            self._tell(PluginFailed(step.alias, step.plugin, event.name, error), step.plugin)
        if event.name in _UNANSWERED or getattr(step.plugin, "ignores_failures", False):
            return None
        if event.kind is Kind.SMTPC or event.name.startswith("plugin_"):
            return None
        return FAILED_AT_CONNECTION if event.name == "connection" else FAILED

    def _tell(self, event: Any, culprit: Any) -> None:
        steps = tuple(s for s in self.pipeline.steps(event.name) if s.plugin is not culprit)
        if steps:
            self._walk(event, steps, 0, Eat.NONE, None)
        else:
            self.subscribers.notify(event)

    def _pipeline_changed(self, name: str, alias: str, plugin: Any) -> None:
        if self.listens(name):
            self.dispatch(CATALOGUE[name](alias, plugin))

    async def settle(self) -> None:
        """Waits for what is parked; at shutdown."""
        while self._running:
            await asyncio.wait(set(self._running))


def _answer_of(step: Step, name: str) -> Any:
    """Only the real built-in behaviour is known to be plain: another under its alias is walked to."""
    if getattr(step.plugin, "is_built_in", False) is not True:
        return None
    answer_for = getattr(step.plugin, "answer_for", None)
    return answer_for(name, step.method) if callable(answer_for) else None


async def _await(awaitable: Any) -> Any:
    return await awaitable


class _Ended:
    """What a coroutine gave that never had to wait, where that is not None."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


_NOTHING = object()


@types.coroutine
def _drive_each() -> Generator[Any, Any, Any]:
    """Drives the coroutines that `send` brings, one after the other: gives _NOTHING or an _Ended for each that ends.

    Anything else is what one waits for; from then on this is that one's alone. (An end that is told by StopIteration
    costs as much as all the rest, and `yield from` hears of it without.)
    """
    given: Any = None
    while True:
        coroutine = yield given
        value = yield from coroutine
        given = _NOTHING if value is None else _Ended(value)


def _begun(driver: Any) -> Generator[Any, Any, Any]:
    driver.send(None)
    begun: Generator[Any, Any, Any] = driver
    return begun


class _Suspended:
    """A coroutine that waits, or its driver; `first` is what it yielded when it was driven by hand (None also for sleep(0))."""

    __slots__ = ("_coroutine", "_first", "_is_begun")

    def __init__(self, coroutine: Any, first: Any, *, is_begun: bool) -> None:
        self._coroutine = coroutine
        self._first = first
        self._is_begun = is_begun

    async def rest(self) -> Any:
        """Goes on with it, in a task."""
        if not self._is_begun:
            return await self._coroutine
        return await _resume(self._coroutine, self._first)


@types.coroutine
def _resume(coroutine: Any, first: Any) -> Generator[Any, Any, Any]:
    """Yields again what the coroutine had yielded before it had a task, then goes on with it as `await` would."""
    waited = first
    while waited is not _NOTHING and type(waited) is not _Ended:
        try:
            sent = yield waited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            try:
                waited = coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
        else:
            try:
                waited = coroutine.send(sent)
            except StopIteration as stop:
                return stop.value
    return waited.value if isinstance(waited, _Ended) else None
