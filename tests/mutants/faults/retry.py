"""Faults of retries: what is final, when the next attempt comes, when a message expires, what counts as an attempt."""

from __future__ import annotations

from tests.mutants.model import fault

_JUDGED = "queue/judged.py"
_TESTS = "tests/queue/test_judged.py"

FAULTS = (
    fault(
        "5yz is tried again",
        _JUDGED,
        "    if result.is_permanent:\n",
        "    if result.is_permanent and not result.is_attempt:\n",
        f"{_TESTS}::test_result_decides_the_state",
    ),
    fault(
        "nothing expires",
        _JUDGED,
        "    if now >= message.expires_at:\n",
        "    if now >= 2 * message.expires_at:\n",
        f"{_TESTS}::test_message_expires_at_its_time_and_not_before",
    ),
    fault(
        "delivered mail expires",
        _JUDGED,
        "    if result.is_delivered:\n        return Judged(result, settled)\n",
        "    if result.is_delivered and now < message.expires_at:\n        return Judged(result, settled)\n",
        f"{_TESTS}::test_result_decides_the_state",
    ),
    fault(
        "the pause passes the expiry",
        _JUDGED,
        "    settled.due_at = min(due_at, max(message.expires_at, now + 1.0))\n",
        "    settled.due_at = due_at\n",
        f"{_TESTS}::test_pause_does_not_pass_the_expiry_and_is_never_now",
    ),
    fault(
        "a retry without a pause",
        _JUDGED,
        "max(message.expires_at, now + 1.0)",
        "message.expires_at",
        f"{_TESTS}::test_pause_does_not_pass_the_expiry_and_is_never_now",
    ),
    fault(
        "what was not tried counts as an attempt",
        _JUDGED,
        "        result.is_attempt,\n    )  # fmt: skip\n",
        "    )  # fmt: skip\n",
        f"{_TESTS}::test_what_was_not_tried_is_no_attempt_and_keeps_its_state",
    ),
    fault(
        "a delay is reported at each attempt",
        _JUDGED,
        "    if after is not None and not recipient.is_delay_reported and now",
        "    if after is not None and now",
        f"{_TESTS}::test_delay_is_reported_once_after_its_time",
    ),
    fault(
        "pauses without a bound",
        "queue/retry.py",
        "    pause = min(policy.first_s * policy.factor**exponent, policy.longest_s)\n",
        "    pause = policy.first_s * policy.factor**exponent\n",
        f"{_TESTS}::test_pause_doubles_with_each_attempt_up_to_the_longest",
    ),
    fault(
        "pauses do not grow",
        "queue/retry.py",
        "    exponent = min(max(attempts, 1) - 1, 64)\n",
        "    exponent = min(max(attempts, 1) - 1, 0)\n",
        f"{_TESTS}::test_pause_doubles_with_each_attempt_up_to_the_longest",
    ),
    fault(
        "pauses without jitter",
        "queue/retry.py",
        "(2.0 * rng.random() - 1.0)",
        "(2.0 * rng.random() - 1.0) * 0",
        f"{_TESTS}::test_pauses_are_spread_by_the_jitter_on_both_sides_and_within_it",
    ),
)
