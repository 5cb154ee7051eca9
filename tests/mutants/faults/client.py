"""Faults of the SMTP client: replies and stages, pipelining, ends in doubt, dot-stuffing, limits."""

from __future__ import annotations

from tests.mutants.model import fault

_CLIENT = "smtp/client.py"
_TESTS = "tests/smtp/test_client_outcomes.py"

FAULTS = (
    fault(
        "552 to RCPT is for ever",
        "smtp/transaction.py",
        "        if self.stage is Stage.RCPT and self.reply.code == 552:\n            return False\n",
        "",
        f"{_TESTS}::test_reply_decides_stage_and_outcome",
    ),
    fault(
        "250 to any command is a delivery",
        "smtp/transaction.py",
        "        return self.stage is _FINAL and 200 <= self.reply.code < 300\n",
        "        return 200 <= self.reply.code < 300\n",
        f"{_TESTS}::test_outcome_is_delivered_by_2yz_to_the_content_alone",
    ),
    fault(
        "the final reply is that of refused recipients as well",
        "smtp/transaction.py",
        "            self.outcomes = [known or outcome for known in outcomes]\n",
        "            self.outcomes = [outcome for known in outcomes]\n",
        f"{_TESTS}::test_final_reply_does_not_touch_recipients_that_rcpt_refused",
    ),
    fault(
        "pipelining that was not offered",
        _CLIENT,
        '            self._is_pipelining = "PIPELINING" in self.extensions\n',
        "            self._is_pipelining = not self.used_helo\n",
        f"{_TESTS}::test_without_pipelining_no_command_goes_before_the_reply_to_the_last",
    ),
    fault(
        "extensions after HELO",
        _CLIENT,
        "            self.extensions = {} if self.used_helo else parse_extensions(reply)\n",
        "            self.extensions = parse_extensions(reply)\n",
        f"{_TESTS}::test_helo_follows_a_permanent_refusal_of_ehlo_in_clear_only",
    ),
    fault(
        "HELO under TLS",
        _CLIENT,
        "        elif reply.is_permanent and not self.used_helo and not self.is_tls:\n",
        "        elif reply.is_permanent and not self.used_helo:\n",
        f"{_TESTS}::test_helo_follows_a_permanent_refusal_of_ehlo_in_clear_only",
    ),
    fault(
        "a session behind any greeting",
        _CLIENT,
        "        if reply.code != 220:\n            self._refused(reply)\n",
        "        if not reply.is_positive:\n            self._refused(reply)\n",
        f"{_TESTS}::test_session_begins_behind_220_only",
    ),
    fault(
        "no RSET behind a refused DATA",
        _CLIENT,
        "        transaction.settle_rest(Outcome(reply, Stage.DATA))\n        self._rset(transaction)\n",
        "        transaction.settle_rest(Outcome(reply, Stage.DATA))\n        self._finish(transaction)\n",
        f"{_TESTS}::test_refused_transaction_leaves_a_session_that_takes_the_next",
    ),
    fault(
        "content for nobody",
        _CLIENT,
        "            if transaction.has_accepted:\n                self._content_for = transaction\n",
        "            if transaction.recipients:\n                self._content_for = transaction\n",
        f"{_TESTS}::test_354_is_answered_with_an_empty_message_where_no_recipient_stands",
    ),
    fault(
        "replies out of step are believed",
        _CLIENT,
        "        transaction.forget_outcomes()\n",
        "",
        "tests/smtp/test_reply_reader.py::test_client_replies_out_of_step_are_not_believed",
    ),
    fault(
        "421 is not the end",
        _CLIENT,
        "        if reply.code == 421:\n            self._expected.appendleft((kind, transaction, index))\n",
        "        if reply.code == 420:\n            self._expected.appendleft((kind, transaction, index))\n",
        f"{_TESTS}::test_reply_decides_stage_and_outcome",
    ),
    fault(
        "more transactions than MAILMAX",
        _CLIENT,
        'self._mails < self.limits["MAILMAX"]',
        'self._mails <= self.limits["MAILMAX"]',
        f"{_TESTS}::test_mailmax_counts_every_mail_command",
    ),
    fault(
        "no dot-stuffing at the beginning of a piece",
        "smtp/framing.py",
        r'piece = piece.replace(b"\n.", b"\n..")',
        r'piece = piece.replace(b"\n.", b"\n..") if piece.count(b"\n.") > 1 else piece',
        f"{_TESTS}::test_content_is_dot_stuffed_and_ended_however_it_is_cut",
    ),
    fault(
        "a path that ends itself",
        "smtp/exchange.py",
        '    if not is_mailbox(address) and address.lower() != "postmaster":\n',
        '    if "@" not in address:\n',
        "tests/smtp/test_protocols.py::test_the_caller_cannot_break_a_line",
    ),
    fault(
        "the end behind the content is a refusal of the connection",
        "delivery/transaction.py",
        "outcome.stage is Stage.FINAL and reply.code != 421\n",
        "outcome.stage is Stage.DATA and reply.code != 421\n",
        "tests/hostile/test_f_dns_delivery.py::test_f97_lost_after_the_final_dot",
    ),
)
