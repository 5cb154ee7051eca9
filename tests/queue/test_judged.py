"""What an attempt's result means for a recipient: its state, its history, its next time, and whether its sender hears of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope, EnvelopeRecipient
from pillarbox.queue.judged import Judged, calls_for_report, judge, parse_kept
from pillarbox.queue.model import Message
from pillarbox.queue.retry import RetryPolicy, pause_s
from pillarbox.queue.work import Result, Work
from pillarbox.smtp.reply import Reply

NOW, AGE, LIFE = 1_000_000.0, 1000.0, 100_000.0
POLICY = RetryPolicy(jitter=0.0, delay_notice_s=5000.0)
LATER = Reply(451, "4.2.0", "later")


def judged(policy: RetryPolicy = POLICY, now: float = NOW, state: str = "queued", **given: Any) -> Judged:
    """One recipient that came `AGE` seconds before NOW and expires `LIFE` seconds after it came."""
    about = {"attempts": 0, "is_delay_reported": False, **given.pop("recipient", {})}
    received_at = NOW - AGE
    envelope = Envelope("a@b.test", [EnvelopeRecipient("c@d.test")])
    message = Message("Q", envelope, Content(b"x"), received_at, received_at + LIFE)
    recipient = message.recipients[0]
    recipient.state, recipient.attempts, recipient.is_delay_reported = (
        state,
        about["attempts"],
        about["is_delay_reported"],
    )
    result = Result(recipient, given.pop("reply", LATER), given.pop("stage", "rcpt"), **given)
    return judge(Work(message, "relay", started_at=now - 2), result, policy, random.Random(1), now, 2.0)


EXPIRES_AT = NOW - AGE + LIFE


@pytest.mark.parametrize(
    ("result", "state", "outcome"),
    [
        ({"is_delivered": True}, "delivered", "delivered"),
        ({"is_permanent": True}, "bounced", "bounced"),
        ({}, "deferred", "deferred"),
        ({"is_ambiguous": True}, "deferred", "ambiguous"),
    ],
)
@pytest.mark.parametrize("is_late", [False, True])
def test_result_decides_the_state(result: dict[str, Any], state: str, outcome: str, is_late: bool) -> None:
    """Delivered and refused stay so, however late; only what would be tried again expires."""
    settled = judged(now=EXPIRES_AT if is_late else NOW, **result).settled
    if is_late and state == "deferred":
        state = outcome = "expired"
    assert (settled.state, settled.outcome) == (state, outcome)
    assert (settled.due_at is not None) is (state == "deferred")
    assert settled.is_attempt and settled.reply == "451 4.2.0 later" and settled.next_hop == "relay"


@pytest.mark.parametrize(("now", "state"), [(EXPIRES_AT - 0.001, "deferred"), (EXPIRES_AT, "expired")])
def test_message_expires_at_its_time_and_not_before(now: float, state: str) -> None:
    assert judged(now=now).settled.state == state


@pytest.mark.parametrize(
    ("attempts", "pause"), [(0, 300.0), (1, 600.0), (2, 1200.0), (5, 9600.0), (6, 14400.0), (60, 14400.0)]
)
def test_pause_doubles_with_each_attempt_up_to_the_longest(attempts: int, pause: float) -> None:
    assert judged(recipient={"attempts": attempts}).settled.due_at == NOW + pause


def test_pause_does_not_pass_the_expiry_and_is_never_now() -> None:
    """The last try comes when the message expires; a retry time in the past does not make a loop without a pause."""
    assert judged(now=EXPIRES_AT - 10).settled.due_at == EXPIRES_AT
    assert judged(now=EXPIRES_AT - 0.1).settled.due_at == EXPIRES_AT + 0.9
    assert judged(retry_at=EXPIRES_AT + 1000).settled.due_at == EXPIRES_AT


@pytest.mark.parametrize("state", ["queued", "deferred"])
def test_what_was_not_tried_is_no_attempt_and_keeps_its_state(state: str) -> None:
    one = judged(state=state, is_attempt=False, retry_at=NOW + 7)
    assert (one.settled.state, one.settled.is_attempt, one.settled.due_at) == (state, False, NOW + 7)


@pytest.mark.parametrize(
    ("policy", "now", "recipient", "expected"),
    [
        (POLICY, NOW, {}, False),
        (POLICY, NOW - AGE + 4999.0, {}, False),
        (POLICY, NOW - AGE + 5000.0, {}, True),
        (POLICY, NOW - AGE + 9000.0, {"is_delay_reported": True}, False),
        (RetryPolicy(jitter=0.0), EXPIRES_AT - 1, {}, False),
    ],
)
def test_delay_is_reported_once_after_its_time(
    policy: RetryPolicy, now: float, recipient: dict[str, Any], expected: bool
) -> None:
    one = judged(policy, now, recipient=recipient)
    assert one.is_delay_report is expected and one.settled.is_delay_reported is expected
    assert one.settled.state == "deferred" and calls_for_report([one]) is expected


@pytest.mark.parametrize("result", [{"is_delivered": True}, {"is_permanent": True}])
def test_final_outcome_is_no_delay(result: dict[str, Any]) -> None:
    assert not judged(now=NOW - AGE + 9000, **result).is_delay_report


@pytest.mark.parametrize(
    ("result", "now", "notify", "expected"),
    [
        ({"is_delivered": True}, NOW, (), False),
        ({"is_delivered": True}, NOW, ("SUCCESS",), True),
        ({"is_permanent": True}, NOW, (), True),
        ({}, NOW, (), False),
        ({}, EXPIRES_AT, (), True),
    ],
)
def test_outcome_calls_for_a_report(
    result: dict[str, Any], now: float, notify: tuple[str, ...], expected: bool
) -> None:
    quiet, one = judged(is_delivered=True), judged(now=now, **result)
    one.result.recipient.notify = notify
    assert calls_for_report([one]) is calls_for_report([quiet, one]) is expected


def test_pauses_are_spread_by_the_jitter_on_both_sides_and_within_it() -> None:
    policy, rng = RetryPolicy(first_s=100.0, jitter=0.2), random.Random(3)
    pauses = [pause_s(policy, 1, rng) for _ in range(2000)]
    assert 80 <= min(pauses) < 82 and 118 < max(pauses) <= 120
    assert pause_s(policy, 0, random.Random(1)) == pause_s(policy, 1, random.Random(1))
    # Whatever the factor and the number of attempts, nothing overflows.
    assert pause_s(RetryPolicy(factor=10.0, jitter=0.0), 10**6, rng) == 4 * 3600.0


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("550 5.1.1 no such user", "550 5.1.1 no such user"),
        ("451 4.2.0 later", "451 4.2.0 later"),
        ("550 no such user", "550 no such user"),
        ("250 2.0.0 fine", "451 4.4.7 250 2.0.0 fine"),
        ("654 6.0.0 what", "451 4.4.7 654 6.0.0 what"),
        ("", "451 4.4.7 no attempt could be made"),
        (None, "451 4.4.7 no attempt could be made"),
        ("lost", "451 4.4.7 lost"),
    ],
)
def test_kept_reply_is_read_back_as_a_refusal(text: str | None, reply: str) -> None:
    assert str(parse_kept(text)) == reply
