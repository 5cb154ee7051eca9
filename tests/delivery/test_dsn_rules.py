"""Which outcome sends which DSN to whom, and with what of the original (RFC 3461, RFC 3464, RFC 5321 section 6.1)."""

from __future__ import annotations

import email
from collections.abc import Sequence
from typing import Any

import pytest

from pillarbox.delivery.bounce import BounceMaker
from pillarbox.mail import dsn
from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope
from pillarbox.options import parse_options
from pillarbox.queue.judged import Judged
from pillarbox.queue.model import Message, Settled
from pillarbox.queue.work import Result
from pillarbox.smtp.reply import Reply

NOW = 1_000_000.0
BODY = b"Subject: original\r\n\r\nsecret body\r\n"
REPLIES = {"delivered": Reply(250, "2.0.0", "taken"), "bounced": Reply(550, "5.1.1", "no such user")}
WAITS = Reply(451, "4.2.0", "later")


def one_judged(message: Message, number: int, state: str, *, is_delay: bool = False, **result: Any) -> Judged:
    recipient, reply = message.recipients[number], REPLIES.get(state, WAITS)
    return Judged(
        Result(recipient, reply, "rcpt", is_delivered=state == "delivered", remote="mx.far.test:25", **result),
        Settled(number, state, state, reply=str(reply), started_at=NOW - 1),
        is_delay,
    )


def maker(**options: Any) -> BounceMaker:
    given = parse_options({"hostname": "mx.test", **options})
    numbers = iter(range(100))
    return BounceMaker(lambda: given, lambda: f"D{next(numbers)}")


def message(
    to: Sequence[Any] = ("c@d.test",), sender: str | None = "a@b.test", content: bytes = BODY, **given: Any
) -> Message:
    facts = given.pop("facts", {})
    envelope = Envelope(sender, [], **given)
    for one in to:
        envelope.add(*one if isinstance(one, tuple) else (one,))
    return Message("Q1", envelope, Content(content), NOW - 100, NOW + 1000, "original", facts)


OUTCOMES = {
    "failed": ("bounced", {}),
    "expired": ("expired", {}),
    "delayed": ("deferred", {"is_delay": True}),
    "waits": ("deferred", {}),
    "relayed": ("delivered", {}),
    "passed on": ("delivered", {"was_dsn_passed_on": True}),
}
FAILURES, DELAYS = {"failed": "failed", "expired": "failed"}, {"delayed": "delayed"}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize(
    ("notify", "expected"),
    [
        # RFC 3461 section 4.1: nothing said means failures, and delays where the server reports them.
        ((), FAILURES | DELAYS),
        (("NEVER",), {}),
        (("FAILURE",), FAILURES),
        (("DELAY",), DELAYS),
        (("SUCCESS",), {"relayed": "relayed"}),
        (("SUCCESS", "FAILURE", "DELAY"), FAILURES | DELAYS | {"relayed": "relayed"}),
    ],
)
def test_notify_decides_which_outcome_is_reported(
    outcome: str, notify: tuple[str, ...], expected: dict[str, str]
) -> None:
    state, more = OUTCOMES[outcome]
    given = message([("c@d.test", notify)])
    reports = maker()(given, [one_judged(given, 0, state, **more)], NOW)
    assert [report.facts["dsn"] for report in reports] == ([expected[outcome]] if outcome in expected else [])


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("notify", [(), ("SUCCESS", "FAILURE", "DELAY")])
def test_null_reverse_path_never_gets_a_dsn(outcome: str, notify: tuple[str, ...]) -> None:
    state, more = OUTCOMES[outcome]
    for facts in ({}, {"dsn": "failed"}):
        given = message([("c@d.test", notify)], sender=None, facts=facts)
        assert maker()(given, [one_judged(given, 0, state, **more)], NOW) == []
    # With a postmaster: of a DSN of our own that failed, and of nothing else.
    given = message([("c@d.test", notify)], sender=None)
    assert maker(postmaster="p@us.test")(given, [one_judged(given, 0, state, **more)], NOW) == []


def test_report_that_fails_goes_to_the_postmaster_once() -> None:
    make = maker(postmaster="p@us.test")
    lost = message(sender=None, facts={"dsn": "failed", "for": "Q0"})
    (report,) = make(lost, [one_judged(lost, 0, "bounced")], NOW)
    assert report.envelope.addresses == ["p@us.test"] and report.envelope.reverse_path is None
    assert make(report, [one_judged(report, 0, "bounced")], NOW) == []
    assert make(lost, [one_judged(lost, 0, "deferred")], NOW) == []


def test_report_has_the_null_reverse_path_one_recipient_and_is_never_reported_itself() -> None:
    given = message()
    (report,) = maker()(given, [one_judged(given, 0, "bounced")], NOW)
    assert report.envelope.reverse_path is None and report.envelope.addresses == ["a@b.test"]
    assert report.envelope.recipients[0].notify == ("NEVER",) and report.facts["for"] == "Q1"
    assert report.envelope.body == "7BIT" and not report.envelope.is_smtputf8
    parsed = email.message_from_bytes(report.content.read())
    assert parsed["To"] == "<a@b.test>" and parsed["Auto-Submitted"] == "auto-replied"
    assert parsed["From"] == "Mail Delivery System <MAILER-DAEMON@mx.test>"


def test_recipients_of_one_outcome_share_a_report_and_others_are_not_named() -> None:
    given = message(["a@d.test", "b@d.test", ("c@d.test", ("NEVER",)), ("d@d.test", ("SUCCESS",)), "e@d.test"])
    states = ["bounced", "expired", "bounced", "delivered", "deferred"]
    reports = maker()(given, [one_judged(given, n, state) for n, state in enumerate(states)], NOW)
    assert [report.facts["dsn"] for report in reports] == ["failed", "relayed"]
    assert named(reports[0]) == ["a@d.test", "b@d.test"] and named(reports[1]) == ["d@d.test"]


def named(report: Message) -> list[str]:
    lines = report.content.read().decode().splitlines()
    return [line.rpartition(" ")[2] for line in lines if line.startswith("Final-Recipient:")]


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("ret", [None, "FULL", "HDRS"])
@pytest.mark.parametrize("outcome", ["failed", "delayed", "relayed"])
@pytest.mark.parametrize("is_stranger", [False, True])
@pytest.mark.parametrize("returns", ["trusted", "always", "never"])
def test_content_comes_back_with_failures_of_trusted_senders_only(
    ret: str | None, outcome: str, is_stranger: bool, returns: str
) -> None:
    state, more = OUTCOMES[outcome]
    facts = {"stranger": True} if is_stranger else {}
    given = message([("c@d.test", ("SUCCESS", "FAILURE", "DELAY"))], ret=ret, facts=facts)
    (report,) = maker(return_content=returns)(given, [one_judged(given, 0, state, **more)], NOW)
    octets = report.content.read()
    may = returns == "always" or (returns == "trusted" and not is_stranger)
    assert (b"secret body" in octets) is (outcome == "failed" and ret != "HDRS" and may)
    assert b"Subject: original" in octets


def test_large_content_comes_back_as_its_header_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dsn, "MAX_RETURNED_BYTES", len(BODY))
    for content, is_full in ((BODY, True), (BODY + b"x", False)):
        given = message(content=content)
        (report,) = maker()(given, [one_judged(given, 0, "bounced")], NOW)
        assert (b"secret body" in report.content.read()) is is_full


# ---------------------------------------------------------------------- the fields


def fields(report: Message) -> list[str]:
    _, status, _ = email.message_from_bytes(report.content.read()).get_payload()
    assert status.get_content_type() == "message/delivery-status"  # type: ignore[union-attr]
    text = status.as_string().partition("\n\n")[2]  # type: ignore[union-attr]
    return [line for line in text.splitlines() if line]


@pytest.mark.parametrize(
    ("outcome", "action", "status"),
    [("failed", "failed", "5.1.1"), ("expired", "failed", "5.4.7"), ("delayed", "delayed", "4.2.0"), ("relayed", "relayed", "2.0.0")],
)  # fmt: skip
def test_report_has_the_fields_of_rfc_3464(outcome: str, action: str, status: str) -> None:
    state, more = OUTCOMES[outcome]
    given = message([("c@d.test", ("SUCCESS", "FAILURE", "DELAY"), "rfc822;first@d.test")], envid="QQ+314")
    (report,) = maker()(given, [one_judged(given, 0, state, **more)], NOW)
    lines = fields(report)
    assert lines[:2] == ["Original-Envelope-Id: QQ+314", "Reporting-MTA: dns; mx.test"]
    for line in (
        "Original-Recipient: rfc822; first@d.test",
        "Final-Recipient: rfc822; c@d.test",
        f"Action: {action}",
        f"Status: {status}",
        "Remote-MTA: dns; mx.far.test",
    ):
        assert line in lines
    assert any(line.startswith("Diagnostic-Code: smtp; ") for line in lines)
    assert any(line.startswith("Will-Retry-Until:") for line in lines) is (outcome == "delayed")
    assert any(line.startswith("Last-Attempt-Date:") for line in lines)


def test_report_without_envid_and_orcpt_invents_none() -> None:
    given = message()
    (report,) = maker()(given, [one_judged(given, 0, "bounced")], NOW)
    assert not [line for line in fields(report) if line.startswith("Original-")]


# --------------------------------------------------------------------- strangers


def test_dsns_to_a_domain_are_bounded_for_strangers_only() -> None:
    make = maker(max_dsns_per_domain=2)

    def count(sender: str, times: int, now: float = NOW, **facts: Any) -> int:
        made = 0
        for _ in range(times):
            given = message(sender=sender, facts=facts)
            made += len(make(given, [one_judged(given, 0, "bounced")], now))
        return made

    assert count("a@b.test", 5) == 5
    assert count("a@third.test", 1, stranger=True) == 1 and count("b@THIRD.test", 4, stranger=True) == 1
    assert count("a@other.test", 4, stranger=True) == 2, "each domain has its own number"
    assert count("a@third.test", 1, NOW + 3599, stranger=True) == 0
    assert count("a@third.test", 5, NOW + 3600, stranger=True) == 2


def test_outcome_that_is_not_reported_does_not_count() -> None:
    make = maker(max_dsns_per_domain=1)
    for state in ("deferred", "delivered"):
        given = message(facts={"stranger": True})
        assert make(given, [one_judged(given, 0, state)], NOW) == []
    given = message(facts={"stranger": True})
    assert len(make(given, [one_judged(given, 0, "bounced")], NOW)) == 1
