"""Faults of delivery: back-off, the way on within an attempt, servers of a next hop, bounds of connections, extensions."""

from __future__ import annotations

from tests.mutants.model import fault

_BACK_OFF = "tests/delivery/test_back_off.py"
_COURSE = f"{_BACK_OFF}::test_way_on_follows_from_how_far_the_attempt_came"
_OPENER = "tests/delivery/test_opener.py"

FAULTS = (
    fault(
        "pauses of a next hop do not grow",
        "delivery/backoff.py",
        "min(FIRST_S * 2**self._downs, LONGEST_S)",
        "min(FIRST_S, LONGEST_S)",
        f"{_BACK_OFF}::test_pauses_grow_up_to_the_longest_and_begin_anew_after_a_success",
    ),
    fault(
        "pauses of a next hop have no bound",
        "delivery/backoff.py",
        "min(FIRST_S * 2**self._downs, LONGEST_S)",
        "(FIRST_S * 2**self._downs)",
        f"{_BACK_OFF}::test_pauses_grow_up_to_the_longest_and_begin_anew_after_a_success",
    ),
    fault(
        "faults before a success count",
        "delivery/backoff.py",
        '        """A message got its answer: no trouble. True when there was some."""\n        self._faults = 0\n',
        '        """A message got its answer: no trouble. True when there was some."""\n',
        f"{_BACK_OFF}::test_trouble_begins_with_faults_in_a_row_only",
    ),
    fault(
        "a message in doubt goes to the next server",
        "delivery/course.py",
        "    if not ended.transaction.is_content_begun:\n",
        "    if not ended.transaction.is_content_begun or ended.is_lost:\n",
        _COURSE,
    ),
    fault(
        "a refusal is taken to the next server",
        "delivery/course.py",
        "left = [n for n, result in enumerate(ended.results) if not result.is_permanent]",
        "left = [n for n, result in enumerate(ended.results)]",
        _COURSE,
    ),
    fault(
        "a full mailbox counts as too many recipients",
        "delivery/course.py",
        ' and status[1:3] != ".2"\n',
        "\n",
        f"{_BACK_OFF}::test_too_many_recipients_is_452_or_552_to_rcpt",
    ),
    fault(
        "more recipients than the next hop takes",
        "delivery/course.py",
        'min(limits.get("RCPTMAX", len(recipients)), len(recipients))',
        "len(recipients)",
        f"{_BACK_OFF}::test_recipients_of_one_transaction_keep_to_the_limits",
    ),
    fault(
        "moves without an end",
        "delivery/course.py",
        "may_move = left and (course is None or course.moves < MOST_MOVES)",
        "may_move = left",
        f"{_BACK_OFF}::test_moves_without_an_attempt_are_bounded",
    ),
    fault(
        "the first server is the only one",
        "delivery/opener.py",
        "        for target in targets:\n            try:\n",
        "        for target in targets[:1]:\n            try:\n",
        f"{_OPENER}::test_next_server_is_tried_when_the_first_is_dead",
    ),
    fault(
        "a server that has failed is tried first",
        "delivery/opener.py",
        "return sorted(found, key=lambda target: target in self._bad or target in avoid)",
        "return sorted(found, key=lambda target: target in avoid)",
        f"{_OPENER}::test_server_that_failed_stands_behind_the_others_for_a_while",
    ),
    fault(
        "a server that takes no mail bounces a smart host's",
        "delivery/opener.py",
        " and len(refusals) == len(targets) and key.startswith(MX):\n",
        " and len(refusals) == len(targets):\n",
        f"{_OPENER}::test_521_is_final_for_all_servers_of_an_mx_only",
    ),
    fault(
        "one server without mail is enough for a bounce",
        "delivery/opener.py",
        " and len(refusals) == len(targets) and key.startswith(MX):\n",
        " and key.startswith(MX):\n",
        f"{_OPENER}::test_521_is_final_for_all_servers_of_an_mx_only",
    ),
    fault(
        "a refused greeting is a verdict on the message",
        "delivery/client.py",
        '    if reply.is_transient:\n        return reply\n    return Reply(451, "4.4.0",',
        '    if not reply.is_positive:\n        return reply\n    return Reply(451, "4.4.0",',
        f"{_OPENER}::test_refused_greeting_defers_the_message",
    ),
    fault(
        "only the first address of a smart host is used",
        "delivery/relayhosts.py",
        "for address in list(addresses)[:MAX_ADDRESSES]] or [target]",
        "for address in list(addresses)[:1]] or [target]",
        f"{_OPENER}::test_each_address_of_a_smart_host_is_a_server",
    ),
    fault(
        "8-bit content goes to a server that takes seven",
        "delivery/transaction.py",
        "        elif not all(piece.isascii() for piece in content.chunks()):\n",
        "        elif not all(content.chunks()):\n",
        "tests/queue/test_delivery.py::test_extensions_that_are_missing",
    ),
    fault(
        "a log-in that the smart host wants bounces the mail",
        "delivery/transaction.py",
        "_ABOUT_LOGIN = frozenset((530, 534, 535, 538))",
        "_ABOUT_LOGIN = frozenset((534, 535, 538))",
        "tests/delivery/test_course.py::test_smart_host_that_wants_a_log_in_defers",
    ),
    fault(
        "more connections to one address than its bound",
        "delivery/pool.py",
        "        return 0 < self._per_address <= self._by_address[address]\n",
        "        return 0 < self._per_address < self._by_address[address]\n",
        "tests/delivery/test_pool.py::test_pool_bounds_connections_to_one_address",
    ),
    fault(
        "unknown next hops may have every connection",
        "delivery/pool.py",
        "        if len(unproven) >= self._total - self._total // RESERVED:\n",
        "        if len(unproven) >= self._total:\n",
        "tests/delivery/test_pool.py::test_pool_keeps_a_quarter_for_next_hops_that_worked",
    ),
)
