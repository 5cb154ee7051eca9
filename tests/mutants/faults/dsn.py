"""Faults of DSNs: to whom, for which outcome, with what of the original, how many."""

from __future__ import annotations

from tests.mutants.model import fault

_BOUNCE = "delivery/bounce.py"
_RULES = "tests/delivery/test_dsn_rules.py"

FAULTS = (
    fault(
        "a DSN for the null reverse-path",
        _BOUNCE,
        '            return self._lost(message, judged, now) if "dsn" in message.facts else []\n',
        "            return self._lost(message, judged, now)\n",
        f"{_RULES}::test_null_reverse_path_never_gets_a_dsn",
    ),
    fault(
        "a DSN about the report to the postmaster",
        _BOUNCE,
        '        report.facts["to"] = "postmaster"\n',
        "",
        f"{_RULES}::test_report_that_fails_goes_to_the_postmaster_once",
    ),
    fault(
        "DSNs have a reverse-path",
        _BOUNCE,
        "            Envelope(\n                None,\n",
        "            Envelope(\n                to,\n",
        f"{_RULES}::test_report_has_the_null_reverse_path_one_recipient_and_is_never_reported_itself",
    ),
    fault(
        "NOTIFY=NEVER is not heard",
        _BOUNCE,
        '    if "NEVER" in notify:\n        return None\n',
        '    if "NEVER" in notify:\n        notify = ()\n',
        f"{_RULES}::test_recipients_of_one_outcome_share_a_report_and_others_are_not_named",
    ),
    fault(
        "NOTIFY=DELAY brings failures",
        _BOUNCE,
        'return dsn.Action.FAILED if not notify or "FAILURE" in notify else None',
        "return dsn.Action.FAILED",
        f"{_RULES}::test_notify_decides_which_outcome_is_reported",
    ),
    fault(
        "success is reported by both servers",
        _BOUNCE,
        ' if "SUCCESS" in notify and not one.result.was_dsn_passed_on else None',
        ' if "SUCCESS" in notify else None',
        f"{_RULES}::test_notify_decides_which_outcome_is_reported",
    ),
    fault(
        "RET=HDRS returns the content",
        _BOUNCE,
        '            and envelope.ret != "HDRS"\n',
        "",
        f"{_RULES}::test_content_comes_back_with_failures_of_trusted_senders_only",
    ),
    fault(
        "strangers' content comes back",
        _BOUNCE,
        ' or (returns == "trusted" and not message.facts.get("stranger"))',
        ' or returns == "trusted"',
        f"{_RULES}::test_content_comes_back_with_failures_of_trusted_senders_only",
    ),
    fault(
        "DSNs to strangers without a bound",
        _BOUNCE,
        "        if count >= limit:\n            return False\n",
        "",
        f"{_RULES}::test_dsns_to_a_domain_are_bounded_for_strangers_only",
    ),
    fault(
        "ENVID is lost",
        _BOUNCE,
        "            envelope.envid,\n",
        "            None,\n",
        f"{_RULES}::test_report_has_the_fields_of_rfc_3464",
    ),
    fault(
        "ORCPT is lost",
        _BOUNCE,
        "        result.recipient.orcpt,\n",
        "        None,\n",
        f"{_RULES}::test_report_has_the_fields_of_rfc_3464",
    ),
    fault(
        "a report in 8 bits",
        "mail/dsn.py",
        '        encoding = "8bit" if is_8bit and _has_short_lines(octets) else "quoted-printable"\n',
        '        encoding = "8bit"\n',
        "tests/test_dsn.py::test_report_to_an_ascii_address_is_7bit_whatever_came_back",
    ),
)
