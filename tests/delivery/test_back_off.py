"""When a next hop counts as in trouble, when it is probed again, and when an attempt goes on elsewhere."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pillarbox.delivery.backoff import EMPTY_PROBES, LONGEST_S, TROUBLE, BackOff
from pillarbox.delivery.course import MOST_MOVES, Course, Ended, Way, is_too_many, most_recipients, way_on
from pillarbox.delivery.route import Target
from pillarbox.queue.model import Recipient as Queued
from pillarbox.queue.work import Result
from pillarbox.smtp.client import Outcome, Recipient, Stage, Transaction
from pillarbox.smtp.reply import Reply
from pillarbox.testing import ManualClock

LOST = Reply(451, "4.4.2", "Connection lost")


def back_off() -> tuple[BackOff, ManualClock]:
    clock = ManualClock()
    return BackOff(clock, random.Random(1)), clock


def test_trouble_begins_with_faults_in_a_row_only() -> None:
    one, _ = back_off()
    for _ in range(3):
        assert [one.is_one_more(LOST) for _ in range(TROUBLE - 1)] == [False] * (TROUBLE - 1)
        # A success between them: they are single faults.
        assert not one.is_over() and not one.is_worried
    assert [one.is_one_more(LOST) for _ in range(TROUBLE)] == [False] * (TROUBLE - 1) + [True]
    one.begin()
    assert one.is_one_more(LOST), "while it is in trouble each fault means that it goes on"


def test_pauses_grow_up_to_the_longest_and_begin_anew_after_a_success() -> None:
    one, clock = back_off()
    pauses = []
    for _ in range(12):
        pause = one.begin()
        assert pause is not None and one.is_on and one.is_down
        assert one.begin() is None, "the rest of the same incident"
        pauses.append(pause)
        clock.advance(pause - 0.01)
        assert one.is_down and one.retry_at_wall() == pytest.approx(clock.time() + 0.01)
        clock.advance(0.02)
        assert not one.is_down and one.is_on and one.retry_at_wall() is None
    for number, pause in enumerate(pauses):
        whole = min(5.0 * 2**number, LONGEST_S)
        assert 0.9 * whole <= pause <= 1.1 * whole
    assert one.is_over() and not one.is_on and one.retry_at is None and one.why("x") is None
    assert (one.begin() or 99) <= 5.5


def test_operator_ends_the_pause_and_not_the_trouble() -> None:
    one, _ = back_off()
    one.is_one_more(LOST)
    one.begin()
    one.forget_pause()
    assert one.is_on and not one.is_down and "Connection lost" in str(one.why("mx:d.test"))


def test_trouble_that_nothing_is_queued_for_is_forgotten() -> None:
    one, clock = back_off()
    one.begin()
    clock.advance(10)
    assert [one.wants_empty_probe() for _ in range(EMPTY_PROBES)] == [True] * EMPTY_PROBES
    one.has_work()
    assert [one.wants_empty_probe() for _ in range(EMPTY_PROBES + 1)] == [True] * EMPTY_PROBES + [False]
    assert not one.is_on


# ------------------------------------------------------------------------- course


def ended(outcomes: list[Outcome], *, begun: bool = False, results: list[Any] | None = None, **given: Any) -> Ended:
    one = Transaction("a@b.test", [Recipient(f"r{n}@d.test") for n in range(len(outcomes))], [])
    one.outcomes, one.is_content_begun = list(outcomes), begun
    stage = given.pop("result_stage", None)
    made = results or [
        Result(Queued(n, ""), o.reply, stage or o.stage.value, o.is_delivered, o.is_permanent)
        for n, o in enumerate(outcomes)
    ]
    facts = {"is_lost": False, "was_cut": False, "taken": 0, "has_optional_tls": False, **given}
    return Ended(one, made, **facts)


def said(code: int, stage: Stage, enhanced: str | None = None) -> Outcome:
    return Outcome(Reply(code, enhanced), stage)


CONNECTION = "connection"


@pytest.mark.parametrize(
    ("outcomes", "given", "has_other", "expected"),
    [
        # The server takes no mail now: the next one may.
        ([said(451, Stage.MAIL)], {}, True, (Way.NEXT_SERVER, [0])),
        ([said(451, Stage.MAIL)], {}, False, (Way.ENDS, [])),
        ([said(451, Stage.DATA)], {}, True, (Way.NEXT_SERVER, [0])),
        ([said(451, Stage.RCPT)], {}, True, (Way.NEXT_SERVER, [0])),
        ([said(451, Stage.CONTENT)], {"is_lost": True, "result_stage": CONNECTION}, True, (Way.NEXT_SERVER, [0])),
        # 5yz is a verdict: no other server is asked for another one.
        ([said(550, Stage.MAIL)], {}, True, (Way.ENDS, [])),
        ([said(550, Stage.RCPT)], {}, True, (Way.ENDS, [])),
        ([said(554, Stage.DATA)], {}, True, (Way.AGAIN, [])),
        ([said(550, Stage.RCPT), said(451, Stage.RCPT)], {}, True, (Way.NEXT_SERVER, [1])),
        # Content was begun: it may have been taken, nothing goes on.
        ([said(451, Stage.FINAL)], {"begun": True}, True, (Way.AGAIN, [])),
        ([said(451, Stage.FINAL)], {"begun": True, "is_lost": True, "result_stage": CONNECTION}, True, (Way.ENDS, [])),
        ([said(451, Stage.CONTENT)], {"begun": True, "is_lost": True, "taken": 3, "result_stage": CONNECTION}, True, (Way.ENDS, [])),
        # A session that has taken mail wants no more of it: another one, no attempt.
        ([said(421, Stage.MAIL)], {"taken": 1, "is_lost": True, "result_stage": CONNECTION}, False, (Way.MOVES, [0])),
        ([said(451, Stage.MAIL)], {"taken": 1}, False, (Way.MOVES, [0])),
        ([said(550, Stage.MAIL)], {"taken": 1}, False, (Way.ENDS, [])),
        ([said(451, Stage.RCPT)], {"taken": 1}, False, (Way.ENDS, [])),
        ([said(451, Stage.MAIL)], {"gave_way": True}, False, (Way.MOVES, [0])),
        # TLS is left out where the session breaks at MAIL, and it may be.
        ([said(451, Stage.MAIL)], {"was_cut": True, "is_lost": True, "has_optional_tls": True}, False, (Way.IN_CLEAR, [0])),
        ([said(451, Stage.MAIL)], {"was_cut": True, "is_lost": True}, False, (Way.ENDS, [])),
        ([said(451, Stage.RCPT)], {"was_cut": True, "is_lost": True, "has_optional_tls": True}, False, (Way.ENDS, [])),
        # Some were too many: they go in a further transaction, others keep their outcomes.
        ([said(250, Stage.FINAL), said(452, Stage.RCPT)], {"begun": True}, True, (Way.AGAIN, [1])),
        ([said(250, Stage.FINAL), said(452, Stage.RCPT, "4.2.2")], {"begun": True}, True, (Way.AGAIN, [])),
        ([said(250, Stage.FINAL), said(450, Stage.RCPT)], {"begun": True}, True, (Way.AGAIN, [])),
        ([said(250, Stage.FINAL), said(452, Stage.RCPT)], {"begun": True, "is_lost": True}, True, (Way.ENDS, [])),
    ],
)  # fmt: skip
def test_way_on_follows_from_how_far_the_attempt_came(
    outcomes: list[Outcome], given: dict[str, Any], has_other: bool, expected: tuple[Way, list[int]]
) -> None:
    way, places = way_on(ended(outcomes, **given), None, has_other)
    assert (way, list(places)) == expected


def test_moves_without_an_attempt_are_bounded() -> None:
    one = ended([said(421, Stage.MAIL)], taken=1, is_lost=True, result_stage=CONNECTION)
    assert way_on(one, Course(moves=MOST_MOVES - 1), False)[0] is Way.MOVES
    assert way_on(one, Course(moves=MOST_MOVES), False)[0] is Way.ENDS


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (said(452, Stage.RCPT, "4.5.3"), True),
        (said(452, Stage.RCPT), True),
        (said(552, Stage.RCPT), True),
        (said(452, Stage.RCPT, "4.2.2"), False),
        (said(452, Stage.FINAL, "4.5.3"), False),
        (said(450, Stage.RCPT), False),
    ],
)
def test_too_many_recipients_is_452_or_552_to_rcpt(outcome: Outcome, expected: bool) -> None:
    assert is_too_many(outcome) is expected


@pytest.mark.parametrize(
    ("limits", "course", "expected"),
    [
        ({}, None, 4),
        ({"RCPTMAX": 3}, None, 3),
        ({"RCPTMAX": 30}, None, 4),
        ({"RCPTDOMAINMAX": 1}, None, 2),
        ({"RCPTDOMAINMAX": 2}, None, 4),
        ({"RCPTMAX": 1, "RCPTDOMAINMAX": 2}, None, 1),
        ({}, Course(most_recipients=2), 2),
        ({"RCPTMAX": 1}, Course(most_recipients=2), 1),
    ],
)
def test_recipients_of_one_transaction_keep_to_the_limits(
    limits: dict[str, int], course: Course | None, expected: int
) -> None:
    recipients = [Queued(n, address) for n, address in enumerate(("a@x.test", "b@X.test", "c@y.test", "d@x.test"))]
    assert most_recipients(limits, course, recipients) == expected


def test_results_of_tried_servers_stand_only_for_all_recipients() -> None:
    course, (one, other) = Course({Target("h", 25)}), (Queued(0, "a@d.test"), Queued(1, "b@d.test"))
    course.keep([Result(one, LOST, "mail")])
    assert course.results_for([one]) is not None
    assert course.results_for([one, other]) is None and course.results_for([]) is None
