"""Texts of others are bounded where they become a result: last reply, history, log line, DSN."""

from __future__ import annotations

import email
import email.policy
import logging
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, Item, MailServer, Reject, Reply
from pillarbox.mail.dsn import MAX_REPLIES, Action, RecipientReport, Report, format_dsn
from pillarbox.queue.judged import judge
from pillarbox.queue.retry import RetryPolicy
from pillarbox.queue.work import Result, Work
from pillarbox.smtp.reply import MAX_REPLY_TEXT
from tests.conftest import queued, until
from tests.simplesmtp.helpers import send, server_test

LONG = ["x" * 50_000, "word " * 10_000, "ü" * 50_000, "📬 " * 20_000]
# Code, enhanced status code and the mark of a cut.
MOST = MAX_REPLY_TEXT + 20


@pytest.mark.parametrize("text", LONG, ids=["one word", "words", "two octets", "four octets"])
@pytest.mark.parametrize("how", ["raise", "return", "lines"])
def test_text_of_a_handler_is_bounded_in_queue_log_and_dsn(
    text: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def handle(item: Item) -> Any:
        if item.reverse_path is None:
            return None
        if how == "raise":
            raise Reject(text)
        lines = [text[n : n + 100] for n in range(0, len(text), 100)] if how == "lines" else [text]
        return Reply(550, "5.1.1", *lines)

    dsns: list[bytes] = []

    async def take(item: Item) -> None:
        dsns.append(item.content)

    @server_test()
    async def check(server: MailServer) -> None:
        server.set_handlers([Handler("@d", handle), Handler("@b", take)])
        await send(server, to=b"a@d.test", sender=b"c@b.test")
        await until(lambda: dsns)
        view = next(v for v in queued(server) if v.recipients[0].address == "a@d.test")
        found = await server.queue.show(view.uid)
        assert found is not None and found["state"] == "bounced"
        assert len(found["recipients"][0]["last_reply"]) <= MOST + MAX_REPLY_TEXT // 100
        assert len(found["attempts"][0]["reply"]) <= MOST + MAX_REPLY_TEXT // 100
        octets = dsns[0]
        assert len(octets) < 20_000 and max(map(len, octets.split(b"\r\n"))) <= 998

    check(tmp_path)
    lines = [record.getMessage() for record in caplog.records if "bounced" in record.getMessage()]
    assert lines and all(len(line) < 1500 for line in lines)
    fields = [getattr(record, "reply", "") for record in caplog.records if record.msg == "bounced"]
    assert fields and all(len(field) <= 204 for field in fields)


def report(count: int, reply: Reply) -> bytes:
    recipients = [RecipientReport(f"user{n}@d.test", reply, remote="mx.d.test:25") for n in range(count)]
    return format_dsn(
        Report(Action.FAILED, "Q", "mx.test", "a@b.test", 1e9, b"Subject: x\r\n\r\n", False, None, recipients), "D", 1e9
    )


@pytest.mark.parametrize("line", ["x" * 480, "word " * 90, "ü" * 480])
def test_dsn_for_a_thousand_recipients_names_each_and_is_bounded(line: str) -> None:
    octets = report(1000, Reply(550, "5.1.1", line, line))
    assert len(octets) < 1_500_000 and max(map(len, octets.split(b"\r\n"))) <= 998
    text, status, _ = email.message_from_bytes(octets, policy=email.policy.default).iter_parts()  # type: ignore[union-attr]
    assert all(f"<user{n}@d.test>" in text.get_content() for n in range(1000))
    groups = [group for group in status.get_payload() if group["Final-Recipient"]]  # type: ignore[union-attr]
    assert len(groups) == 1000 and all(group["Status"] == "5.1.1" for group in groups)


def test_dsn_for_few_recipients_keeps_their_replies() -> None:
    octets = report(MAX_REPLIES // 1000, Reply(550, "5.1.1", "see https://d.test/why " + "y " * 300 + "end-of-reply"))
    assert octets.count(b"end-of-reply") >= MAX_REPLIES // 1000


def test_result_of_a_long_reply_is_cut_once_for_all_readers() -> None:
    import random

    from pillarbox.mail.content import Content
    from pillarbox.mail.envelope import Envelope
    from pillarbox.queue.model import Message, Recipient

    message = Message("Q", Envelope("a@b.test", []), Content(b"x"), 0.0, 1e9)
    result = Result(Recipient(0, "c@d.test"), Reply(451, "4.4.3", "DNS " * 5000), "lookup")
    judged = judge(Work(message), result, RetryPolicy(), random.Random(1), 1.0, 0.1)
    assert judged.result.reply.lines[-1].endswith("...") and len(judged.settled.reply or "") <= MOST
    again = judge(Work(message), judged.result, RetryPolicy(), random.Random(1), 1.0, 0.1)
    assert again.settled.reply is not None and len(again.settled.reply) <= MOST
