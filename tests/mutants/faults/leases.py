"""Faults of leases and of the scheduler: renewals, claims, what is given back, pauses, cancelled work."""

from __future__ import annotations

from tests.mutants.model import Edit, Fault, fault

_SCHEDULER = "queue/scheduler.py"
_TESTS = "tests/queue/test_scheduler_leases.py"
_SHARED = "tests/hostile/test_h_shared_queue.py"

FAULTS = (
    fault(
        "leases are renewed for a moment",
        _SCHEDULER,
        "            until = self._clock.time() + LEASE_S\n            self._spawn",
        "            until = self._clock.time() + LEASE_S / 4\n            self._spawn",
        f"{_TESTS}::test_lease_is_renewed_as_long_as_the_work_goes_on",
    ),
    fault(
        "leases are renewed once",
        _SCHEDULER,
        "    def _renew(self) -> None:\n        self._renewal = self._clock.call_later(LEASE_S / 3, self._renew)\n",
        "    def _renew(self) -> None:\n",
        f"{_TESTS}::test_lease_is_renewed_as_long_as_the_work_goes_on",
    ),
    fault(
        "a start forgets what a crash left",
        _SCHEDULER,
        "        recovered = store.recover(self._clock.time())\n",
        "        recovered = 0\n",
        f"{_TESTS}::test_stop_gives_back_what_has_not_begun",
    ),
    fault(
        "what is leased is claimed again when the clock steps",
        _SCHEDULER,
        "            message.recipients = [r for r in message.recipients if (message.key, r.number) not in held]\n",
        "            pass\n",
        "tests/queue/test_delivery.py::test_what_is_in_hand_is_not_given_up_by_a_clock_that_steps",
    ),
    fault(
        "giving back counts as an attempt",
        _SCHEDULER,
        "settled = [Settled(r.number, r.state, r.state, due_at=now, is_attempt=False) for r in work.recipients]",
        "settled = [Settled(r.number, r.state, r.state, due_at=now, is_attempt=True) for r in work.recipients]",
        f"{_TESTS}::test_stop_gives_back_what_has_not_begun",
    ),
    fault(
        "a stop keeps what has not begun",
        _SCHEDULER,
        "            await asyncio.wait([self._claiming])\n        self._give_back(self._deliverer.withdraw(None))\n",
        "            await asyncio.wait([self._claiming])\n",
        f"{_TESTS}::test_stop_gives_back_what_has_not_begun",
    ),
    fault(
        "the pause is forgotten by a restart",
        _SCHEDULER,
        "        self.is_paused = self.is_paused or paused\n",
        "",
        f"{_TESTS}::test_pause_outlives_a_restart",
    ),
    # Either place alone would hold it.
    Fault(
        "new mail is delivered while the queue is paused",
        (
            Edit(
                _SCHEDULER,
                "        if not self._is_running or self.is_paused or message.is_held:\n            return message\n",
                "        if not self._is_running or message.is_held:\n            return message\n",
            ),
            Edit(
                _SCHEDULER,
                "        if message.leased_until is not None:\n            if self._is_running and not self.is_paused:\n",
                "        if message.leased_until is not None:\n            if self._is_running:\n",
            ),
        ),
        (f"{_TESTS}::test_pause_begins_nothing_until_resume",),
    ),
    fault(
        "cancelled work is reported",
        "queue/settling.py",
        "        wants_report = not work.is_cancelled and calls_for_report(judged)\n",
        "        wants_report = calls_for_report(judged)\n",
        f"{_TESTS}::test_cancelled_work_is_reported_to_no_sender",
    ),
    fault(
        "what was cancelled goes on in the lane",
        _SCHEDULER,
        "        if action in (Action.HOLD, Action.CANCEL) and changed:\n",
        "        if action is Action.HOLD and changed:\n",
        f"{_TESTS}::test_steered_work_that_has_not_begun_never_begins",
    ),
    fault(
        "what others took over is settled here",
        _SCHEDULER,
        "            work.recipients = [r for r in work.recipients if (work.message.key, r.number) not in lost]\n",
        "            pass\n",
        f"{_TESTS}::test_outcome_of_what_others_took_over_is_not_settled_here",
    ),
    fault(
        "an outcome ends a later lease",
        "queue/pgwork.py",
        "                if self._held.get(key, {}).get(number, -1) == epoch:\n                    self._leave(key, number)\n",
        "                self._leave(key, number)\n",
        f"{_SHARED}::test_given_back_and_claimed_again_in_one_transaction",
        f"{_SHARED}::test_an_outcome_that_is_repeated_does_not_end_a_later_lease",
    ),
    fault(
        "a node that is held for dead goes on",
        "queue/pgnode.py",
        "        return time.monotonic() < self._alive_until\n",
        "        return self._alive_until > 0\n",
        "tests/queue/test_postgres_leases.py::test_node_that_has_not_beaten_in_time_takes_itself_for_dead",
    ),
    fault(
        "leases of a dead node stay",
        "queue/pgnode.py",
        "            freed = free(connection, nodes, self.me, None)\n",
        "            freed = 0\n",
        f"{_SHARED}::test_row_120_leases_of_a_dead_node_are_free_within_a_lease",
    ),
)
