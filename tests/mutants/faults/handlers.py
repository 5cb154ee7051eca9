"""Faults of handlers: what their answers mean, how many run, time-outs, mail that waits for a handler."""

from __future__ import annotations

from tests.mutants.model import fault

_LANE = "delivery/handlerlane.py"
_BOUNDS = "tests/delivery/test_handler_bounds.py"
_ANSWERS = "tests/delivery/test_handler_answers.py"
_WAITING = "tests/delivery/test_waiting_for_handlers.py"

FAULTS = (
    fault(
        "any return value of a handler is a delivery",
        _LANE,
        '    raise TypeError(f"returned {answer!r}: expected None or a Reply of 2yz, 4yz or 5yz")\n',
        "    return _DONE, True\n",
        f"{_ANSWERS}::test_handler_return_value_decides",
    ),
    fault(
        "a handler that fails bounces the message",
        _LANE,
        'return Reply(451, "4.3.0", f"The handler failed: {name}"), False',
        'return Reply(550, "5.3.0", f"The handler failed: {name}"), False',
        f"{_ANSWERS}::test_handler_that_ends_the_process_is_deferred",
    ),
    fault(
        "a handler that takes too long has taken the message",
        _LANE,
        'return Reply(451, "4.3.0", "The handler took too long"), False',
        'return Reply(250, "2.3.0", "The handler took too long"), True',
        f"{_BOUNDS}::test_thread_that_goes_on_after_its_time_keeps_its_place",
    ),
    fault(
        "one handler too many",
        _LANE,
        "len(self._running) + self._left_behind >= handler.concurrency:",
        "len(self._running) + self._left_behind > handler.concurrency:",
        f"{_BOUNDS}::test_handler_runs_as_often_at_once_as_its_concurrency",
    ),
    fault(
        "threads that go on after their time are not counted",
        _LANE,
        "len(self._running) + self._left_behind >= handler.concurrency:",
        "len(self._running) >= handler.concurrency:",
        f"{_BOUNDS}::test_thread_that_goes_on_after_its_time_keeps_its_place",
    ),
    fault(
        "a handler begins although the lease may be lost",
        _LANE,
        "            if handler is None or not self._may_begin():\n",
        "            if handler is None:\n",
        f"{_BOUNDS}::test_work_whose_handler_or_lease_is_gone_goes_back_without_an_attempt",
    ),
    fault(
        "a stop cuts off what runs",
        _LANE,
        "timeout=max(grace_s, 0.001))",
        "timeout=0.001)",
        f"{_BOUNDS}::test_stop_waits_for_what_runs_and_begins_nothing",
    ),
    fault(
        "mail for a handler goes to the relay when the handler is gone",
        "delivery/route.py",
        "        if queued is not None and queued.startswith(HANDLER):\n            return UNMATCHED\n",
        "",
        f"{_WAITING}::test_workers_without_the_handler_keep_its_mail_until_a_reload",
    ),
    fault(
        "mail of an own domain is relayed",
        "delivery/route.py",
        "return self.relay.key if self.relay is not None and self.is_own_relayed else UNMATCHED",
        "return self.relay.key if self.relay is not None else UNMATCHED",
        f"{_WAITING}::test_own_domain_without_a_handler_is_refused_and_never_relayed",
    ),
    fault(
        "mail that waits for a handler counts attempts",
        "delivery/lanes.py",
        '        work.results = [Result(r, _NO_HANDLER, "lookup", is_attempt=False, retry_at=retry_at) for r in work.recipients]\n',
        '        work.results = [Result(r, _NO_HANDLER, "lookup", is_attempt=True, retry_at=retry_at) for r in work.recipients]\n',
        f"{_WAITING}::test_unmatched_mail_counts_no_attempt_and_expires_on_time",
    ),
    fault(
        "reject takes the code of another class",
        "delivery/answers.py",
        "    if code // 100 != kind:\n",
        "    if code // 1000 != 0:\n",
        f"{_ANSWERS}::test_reject_with_wrong_arguments_says_what_is_expected",
    ),
)
