"""What every sequence of plugins' answers means, against a model: who sees the event, what the session gets, who is told."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from pillarbox import Eat, Reply
from pillarbox.errors import PluginError
from pillarbox.events.catalogue import CmdNoop, Connection, PluginFailed
from pillarbox.events.dispatch import FAILED, FAILED_AT_CONNECTION, Dispatcher, Parked
from pillarbox.events.pipeline import SIMPLE
from pillarbox.events.session import Endpoint, Session
from pillarbox.events.subscribers import BUFFER, Subscribers
from tests.conftest import run_async, until

NO = Reply(550, "5.7.1", "No")
SESSION = Session("s1", Endpoint("192.0.2.7", 4000), Endpoint("192.0.2.1", 25))
FAULT = "fault"
ANSWERS = [None, Eat.NONE, Eat.CLIENT, Eat.PLUGIN, Eat.ALL, NO, FAULT, "550 5.7.1 No", "250 2.0.0 OK", 42]


def noop() -> CmdNoop:
    return CmdNoop("s1", SESSION, "")


def connection() -> Connection:
    return Connection("s1", SESSION, SESSION.peer, SESSION.local)


def model(answers: tuple[Any, ...]) -> tuple[Any, int, bool]:
    """(verdict, how many plugins saw the event, subscribers were told)."""
    eaten = Eat.NONE
    for count, answer in enumerate(answers, 1):
        if answer is FAULT or answer == 42 or answer == "250 2.0.0 OK":
            # A text may refuse, never accept.
            return FAILED, count, False
        if isinstance(answer, (Reply, str)):
            return NO, count, False
        if answer is Eat.ALL:
            return Eat.ALL, count, False
        if answer is Eat.PLUGIN:
            return (Eat.PLUGIN, count, True) if eaten is Eat.NONE else (Eat.ALL, count, False)
        if answer is Eat.CLIENT:
            eaten = Eat.CLIENT
    return (None, len(answers), True) if eaten is Eat.NONE else (Eat.CLIENT, len(answers), False)


class Answering:
    """Gives its answer plainly, from a coroutine, or after a wait."""

    def __init__(self, answer: Any, how: str, seen: list[Any]) -> None:
        self.answer, self.seen = answer, seen
        self.on_cmd_noop = {"plain": self.plain, "async": self.driven, "later": self.later}[how]

    def plain(self, server: Any, event: Any) -> Any:
        self.seen.append(self)
        if self.answer is FAULT:
            raise ValueError("a fault")
        return self.answer

    async def driven(self, server: Any, event: Any) -> Any:
        return self.plain(server, event)

    async def later(self, server: Any, event: Any) -> Any:
        await asyncio.sleep(0)
        return self.plain(server, event)


async def walk(dispatcher: Dispatcher, event: Any) -> Any:
    """The verdict, however late."""
    verdict = dispatcher.dispatch(event)
    if isinstance(verdict, Parked):
        late: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        verdict.done = late.set_result
        verdict = await late
    await asyncio.sleep(0)
    return verdict


@pytest.mark.parametrize("how", ["plain", "async", "later", "mixed"])
def test_answers_of_plugins_mean_what_the_model_says(how: str) -> None:
    async def main() -> None:
        for answers in [*itertools.product(ANSWERS, repeat=2), *itertools.product(ANSWERS[:5], repeat=3)]:
            dispatcher, seen, told = Dispatcher(None), [], []
            dispatcher.subscribers.register(told.append, ["cmd_noop"])
            ways = itertools.cycle(["later", "plain", "async"] if how == "mixed" else [how])
            for number, answer in enumerate(answers):
                dispatcher.pipeline.push(f"p{number}", Answering(answer, next(ways), seen))
            verdict = await walk(dispatcher, noop())
            found = (verdict, len(seen), bool(told))
            expected = model(answers)
            assert (str(found[0]), *found[1:]) == (str(expected[0]), *expected[1:]), answers
            assert len(told) <= 1

    run_async(main)


def test_failure_is_answered_by_the_policy_of_its_plugin_and_told_to_all_others() -> None:
    async def main() -> None:
        seen: list[Any] = []
        told: list[Any] = []

        class Watching:
            def on_plugin_error(self, server: Any, event: PluginFailed) -> None:
                seen.append((event.alias, event.event_name, type(event.exception)))

        class Failing(Answering):
            ignores_failures = False

            def on_plugin_error(self, server: Any, event: PluginFailed) -> None:
                seen.append("the culprit itself")

            def on_connection(self, server: Any, event: Any) -> None:
                raise ValueError("a fault")

        for how in ("plain", "async", "later"):
            for ignores in (False, True):
                dispatcher, calls = Dispatcher(None), []
                dispatcher.subscribers.register(told.append, ["plugin_error"])
                failing = Failing(FAULT, how, calls)
                failing.ignores_failures = ignores
                dispatcher.pipeline.push("failing", failing)
                dispatcher.pipeline.push("next", Answering(NO, "plain", calls))
                dispatcher.pipeline.push("watching", Watching())
                verdict = await walk(dispatcher, noop())
                assert verdict is (NO if ignores else FAILED) and len(calls) == (2 if ignores else 1)
                assert seen == [("failing", "cmd_noop", ValueError)]
                await asyncio.sleep(0)
                assert [event.alias for event in told] == ["failing"]
                failing.ignores_failures = False
                assert await walk(dispatcher, connection()) is FAILED_AT_CONNECTION
                seen.clear(), told.clear()

    run_async(main)


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, RecursionError]
)
@pytest.mark.parametrize("how", ["plain", "async", "later"])
def test_no_exception_of_a_plugin_leaves_the_dispatcher(error: type[BaseException], how: str) -> None:
    class Ending(Answering):
        def plain(self, server: Any, event: Any) -> Any:
            raise error("no more")

    async def main() -> None:
        dispatcher = Dispatcher(None)
        dispatcher.pipeline.push("ending", Ending(None, how, []))
        assert await walk(dispatcher, noop()) is FAILED

    run_async(main)


@pytest.mark.parametrize(("deadline_s", "is_in_time"), [(0.01, False), (30.0, True)])
def test_deadline_is_that_of_the_plugin(deadline_s: float, is_in_time: bool) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        class Slow:
            async def on_cmd_noop(self, server: Any, event: Any) -> Reply:
                await gate.wait()
                return NO

        slow = Slow()
        slow.deadline_s = deadline_s  # type: ignore[attr-defined]
        dispatcher = Dispatcher(None)
        dispatcher.pipeline.push("slow", slow)
        waiting = asyncio.ensure_future(walk(dispatcher, noop()))
        if is_in_time:
            await asyncio.sleep(0.02)
            gate.set()
        assert await waiting is (NO if is_in_time else FAILED)
        await dispatcher.settle()
        assert not dispatcher._running

    run_async(main)


def test_plugin_without_a_deadline_has_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float | None] = []
    real = asyncio.wait_for

    async def noting(work: Any, timeout: float | None) -> Any:
        given.append(timeout)
        return await real(work, timeout)

    async def main() -> None:
        monkeypatch.setattr(asyncio, "wait_for", noting)
        dispatcher = Dispatcher(None)
        dispatcher.pipeline.push("p", Answering(None, "later", []))
        await walk(dispatcher, noop())

    run_async(main)
    assert 60.0 in given


def test_fault_within_the_walk_itself_is_answered_451() -> None:
    class Worse(Answering):
        @property
        def ignores_failures(self) -> bool:
            raise OSError("a fault where failures are judged")

    async def main() -> None:
        dispatcher = Dispatcher(None)
        dispatcher.pipeline.push("worse", Worse(FAULT, "later", []))
        assert await walk(dispatcher, noop()) is FAILED

    run_async(main)


def test_settle_waits_for_plugins_that_are_parked() -> None:
    async def main() -> None:
        seen: list[Any] = []
        dispatcher = Dispatcher(None)
        dispatcher.pipeline.push("p", Answering(None, "later", seen))
        for _ in range(5):
            dispatcher.post(noop())
        assert seen == []
        await dispatcher.settle()
        assert len(seen) == 5

    run_async(main)


# ------------------------------------------------------------------------- the pipeline


class Quiet:
    def on_cmd_noop(self, server: Any, event: Any) -> None: ...


def test_built_in_behaviour_stays_at_the_end_whatever_is_moved() -> None:
    pipeline = Dispatcher(None).pipeline
    pipeline.push(SIMPLE, Quiet())
    one, two, three = Quiet(), Quiet(), Quiet()
    pipeline.push("one", one)
    pipeline.insert_after(SIMPLE, "two", two)
    pipeline.unshift("three", three)
    assert list(pipeline.list()) == ["three", "one", "two", SIMPLE]
    assert (
        pipeline.bump_down("three", 9) == 2 and pipeline.bump_up(SIMPLE, 2) == 3 and pipeline.bump_up("three", 9) == 0
    )
    assert list(pipeline.list()) == ["three", "one", "two", SIMPLE]
    assert [pipeline.pop(), pipeline.shift(), pipeline.pop(), pipeline.pop(), pipeline.shift()] == [
        two,
        three,
        one,
        None,
        None,
    ]
    assert list(pipeline.list()) == [SIMPLE] and pipeline.remove(SIMPLE) is not None


def test_plugin_or_alias_is_in_the_pipeline_once() -> None:
    pipeline, one = Dispatcher(None).pipeline, Quiet()
    pipeline.push("one", one)
    for alias, plugin in (("one", Quiet()), ("two", one), ("", Quiet())):
        with pytest.raises(PluginError):
            pipeline.push(alias, plugin)
        with pytest.raises(PluginError):
            pipeline.unshift(alias, plugin)
    assert list(pipeline.list()) == ["one"]


@pytest.mark.parametrize("way", ["returns False", "raises", "raises PluginError", "is async"])
def test_plugin_that_refuses_to_register_leaves_no_trace(way: str) -> None:
    class Refusing(Quiet):
        def plugin_register(self, server: Any) -> Any:
            if way == "is async":
                return asyncio.sleep(0)
            if way == "returns False":
                return False
            raise PluginError("no") if way == "raises PluginError" else OSError("no")

    pipeline, kept = Dispatcher(None).pipeline, Quiet()
    pipeline.push("kept", kept)
    for call in (lambda: pipeline.push("new", Refusing()), lambda: pipeline.replace("kept", "new", Refusing())):
        with pytest.raises(PluginError, match="'new'"):
            call()
        assert pipeline.list() == {"kept": kept} and [step.plugin for step in pipeline.steps("cmd_noop")] == [kept]


def test_plugin_that_leaves_is_told_once_and_hears_no_more() -> None:
    left: list[str] = []

    class Leaving(Quiet):
        def __init__(self, name: str) -> None:
            self.name = name

        def plugin_unregister(self, server: Any) -> None:
            left.append(self.name)

    pipeline = Dispatcher(None).pipeline
    one, two, three = Leaving("one"), Leaving("two"), Leaving("three")
    pipeline.push("one", one)
    assert pipeline.replace("one", "two", two) is one and left == ["one"]
    assert [step.plugin for step in pipeline.steps("cmd_noop")] == [two]
    assert pipeline.remove("two") is two and pipeline.steps("cmd_noop") == ()
    pipeline.push("three", three)
    pipeline.clear()
    assert left == ["one", "two", "three"] and pipeline.order() == []


def test_plugin_gets_the_events_that_it_has_asked_for_and_no_other() -> None:
    class Both(Quiet):
        def on_cmd_rset(self, server: Any, event: Any) -> None: ...

    pipeline, both = Dispatcher(None).pipeline, Both()
    pipeline.push("both", both)
    pipeline.want(both, "SMTPD", ["cmd_noop"])
    assert pipeline.steps("cmd_noop") and not pipeline.steps("cmd_rset")
    assert pipeline.unwant(both, "SMTPD", ["cmd_noop", "cmd_quit"]) == ["cmd_quit"] and not pipeline.steps("cmd_noop")
    pipeline.want(both, "SMTPD", ["all"])
    assert pipeline.steps("cmd_noop") and pipeline.steps("cmd_rset")
    pipeline.want(both, "SMTPC", ["cmd_noop"])
    other = Both()
    pipeline.push("other", other)
    assert pipeline.unwant(other, "SMTPD", ["cmd_noop"]) == []
    assert [step.alias for step in pipeline.steps("cmd_rset")] == ["both", "other"]
    assert [step.alias for step in pipeline.steps("cmd_noop")] == ["both"]


# ------------------------------------------------------------------------- subscribers


def test_subscriber_has_a_bounded_buffer_and_counts_what_it_dropped() -> None:
    async def main() -> None:
        subscribers, heard = Subscribers(), []
        subscribers.register(heard.append, ["cmd_noop"])
        for _ in range(BUFFER + 7):
            subscribers.notify(noop())
        assert subscribers.dropped == 7 and heard == []
        await until(lambda: len(heard) == BUFFER)
        subscribers.notify(noop())
        await until(lambda: len(heard) == BUFFER + 1)

    run_async(main)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_subscriber_that_fails_hears_the_next_event(is_async: bool, error: type[BaseException]) -> None:
    async def main() -> None:
        heard: list[Any] = []

        def plain(event: Any) -> None:
            heard.append(event)
            raise error("no")

        async def later(event: Any) -> None:
            await asyncio.sleep(0)
            plain(event)

        subscribers = Subscribers()
        subscribers.register(later if is_async else plain, ["cmd_noop"])
        for _ in range(3):
            subscribers.notify(noop())
        await until(lambda: len(heard) == 3)

    run_async(main)


def test_subscriber_gets_its_names_or_all_until_it_leaves() -> None:
    async def main() -> None:
        subscribers = Subscribers()
        every: list[Any] = []
        some: list[Any] = []
        subscribers.register(every.append, ["all"])
        subscribers.register(some.append, ["connection"])
        subscribers.notify(noop())
        subscribers.notify(connection())
        await until(lambda: len(every) == 2)
        assert [event.name for event in every] == ["cmd_noop", "connection"] and [event.name for event in some] == [
            "connection"
        ]
        assert subscribers.listens("cmd_noop") and subscribers.unregister(every.append, ["all"])
        assert not subscribers.listens("cmd_noop") and subscribers.listens("connection")
        assert subscribers.unregister(some.append, ["connection"]) and not subscribers.unregister(
            some.append, ["connection"]
        )
        subscribers.notify(connection())
        await asyncio.sleep(0)
        assert len(every) == 2 and len(some) == 1

    run_async(main)
