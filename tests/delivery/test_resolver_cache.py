"""How long the resolver's cache keeps which answer (RFC 1035 section 3.2.1, RFC 2308), and that it stays bounded."""

from __future__ import annotations

import asyncio

import pytest

from pillarbox.dns import Answer, CachingResolver, Status
from pillarbox.testing import ManualClock
from tests.conftest import run_async


class Asked:
    """Gives one answer; counts the questions."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.questions: list[tuple[str, str]] = []

    async def resolve(self, name: str, kind: str) -> Answer:
        self.questions.append((name, kind))
        return self.answer


@pytest.mark.parametrize(
    ("answer", "kept_s"),
    [
        (Answer(Status.FOUND, ("192.0.2.1",), 300.0), 300.0),
        (Answer(Status.FOUND, ("192.0.2.1",), 10 * 86400.0), 86400.0),
        (Answer(Status.NO_NAME, ttl_s=60.0), 60.0),
        (Answer(Status.NO_DATA, ttl_s=60.0), 60.0),
        (Answer(Status.NO_NAME, ttl_s=86400.0), 3600.0),
        (Answer(Status.NO_DATA, ttl_s=86400.0), 3600.0),
        # A failure is asked again after a moment, whatever it carries.
        (Answer(Status.FAILED, ttl_s=86400.0), 1.0),
        (Answer(Status.FAILED), 1.0),
    ],
)
def test_answer_is_kept_for_its_ttl_within_bounds(answer: Answer, kept_s: float) -> None:
    async def main() -> None:
        clock, inner = ManualClock(), Asked(answer)
        cache = CachingResolver(inner, clock)
        assert await cache.resolve("d.test", "A") == answer
        clock.advance(kept_s - 0.01)
        assert await cache.resolve("d.test", "A") == answer and len(inner.questions) == 1
        clock.advance(0.02)
        assert await cache.resolve("d.test", "A") == answer and len(inner.questions) == 2
        assert (cache.hits, cache.misses) == (1, 2)

    run_async(main)


@pytest.mark.parametrize("status", [Status.FOUND, Status.NO_NAME, Status.NO_DATA])
def test_answer_without_ttl_is_not_kept(status: Status) -> None:
    async def main() -> None:
        inner = Asked(Answer(status))
        cache = CachingResolver(inner, ManualClock())
        await cache.resolve("d.test", "A")
        await cache.resolve("d.test", "A")
        assert len(inner.questions) == 2 and len(cache) == 0

    run_async(main)


def test_key_is_the_name_in_one_form_and_the_kind() -> None:
    async def main() -> None:
        inner = Asked(Answer(Status.FOUND, ("x",), 300.0))
        cache = CachingResolver(inner, ManualClock())
        for name, kind in (("D.Test", "A"), ("d.test", "A"), ("d.test", "MX"), ("d.test", "AAAA"), ("e.test", "A")):
            await cache.resolve(name, kind)
        assert inner.questions == [("d.test", "A"), ("d.test", "MX"), ("d.test", "AAAA"), ("e.test", "A")]

    run_async(main)


def test_cache_forgets_what_was_used_longest_ago() -> None:
    async def main() -> None:
        inner = Asked(Answer(Status.FOUND, ("x",), 300.0))
        cache = CachingResolver(inner, ManualClock(), max_entries=2)
        for name in ("a.test", "b.test", "a.test", "c.test"):
            await cache.resolve(name, "A")
        assert len(cache) == 2
        await cache.resolve("a.test", "A")
        assert [name for name, _ in inner.questions] == ["a.test", "b.test", "c.test"]

    run_async(main)


def test_question_that_hangs_is_a_failure_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.dns.LONGEST_S", 0.02)

    class Hangs:
        async def resolve(self, name: str, kind: str) -> Answer:
            await asyncio.Event().wait()
            raise AssertionError

    async def main() -> None:
        assert (await CachingResolver(Hangs(), ManualClock()).resolve("a.test", "A")).status is Status.FAILED

    run_async(main)
