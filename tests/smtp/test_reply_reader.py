"""ReplyReader: what servers say that do not keep to the letter, and the bounds (RFC 5321 section 4.2)."""

from __future__ import annotations

import pytest

from pillarbox.smtp.client import ClientProtocol, Happened, Recipient, Transaction
from pillarbox.smtp.reply import MAX_REPLY_TEXT, Reply, ReplyReader, cut_reply


def read(octets: bytes, size: int = 1 << 20) -> tuple[list[Reply], ReplyReader]:
    reader, replies = ReplyReader(), []
    for start in range(0, len(octets), size):
        if reader.fault is None:
            replies += reader.feed(octets[start : start + size])
    return replies, reader


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("octets", "codes"),
    [
        (b"550-5.1.1 no\r\n554 5.7.1 end\r\n", [554]),
        (b"250-a\r\n251 b\r\n", [251]),
        (b"550-5.7.1 blocked, see\r\n http://x.test/\r\n550 5.7.1 end\r\n", [550]),
        (b"550-5.1.1 no\r\n" * 199 + b"550 5.1.1 no\r\n", [550]),
        (b"550 5.1.1 " + b"x" * 5000 + b"\r\n", [550]),
        (b"550-5.1.1 " + b"x" * 20000 + b"\r\n550 end\r\n", [550]),
        (b"\r\n\n250 one\r\n\r\n250 two\r\n", [250, 250]),
        (b"550-a\r\n\r\n550 b\r\n", [550]),
        (b"250-a\r\n25\r\n250_b\r\n250 c\r\n", [250]),
    ],
)
def test_reply_reader_plain_meaning_is_understood(octets: bytes, codes: list[int], size: int) -> None:
    replies, reader = read(octets, size)
    assert [reply.code for reply in replies] == codes and reader.fault is None and not reader.has_rest
    assert all(sum(map(len, reply.lines)) <= MAX_REPLY_TEXT + 3 for reply in replies)


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize(
    "octets",
    [
        b"hello\r\n",
        b"999 x\r\n",
        b"25 x\r\n",
        b"250_a\r\n",
        b"250-a\r\n550 b\r\n",
        b"550-a\r\n250 b\r\n",
        b"x" * 100_000,
        b"250 " + b"x" * 100_000 + b"\r\n",
        b"250-a\r\n" * 1100,
        b"\r\n" * 1100,
    ],
)
def test_reply_reader_beyond_a_bound_is_a_fault(octets: bytes, size: int) -> None:
    replies, reader = read(octets, size)
    assert not replies and reader.fault is not None


@pytest.mark.parametrize("junk", [b"thank you\r\n", b"250 " + b"x" * 100_000, b"\r\nhello\r\n", b"999 no\r\n"])
@pytest.mark.parametrize("first", [b"250 2.0.0 queued\r\n", b"550 5.7.1 no\r\n"])
def test_reply_reader_complete_replies_come_before_the_fault(first: bytes, junk: bytes) -> None:
    replies, reader = read(first + junk)
    assert [reply.code for reply in replies] == [int(first[:3])] and reader.fault is not None


def test_reply_text_is_bounded_and_split_into_short_lines() -> None:
    for octets in (b"450-4.1.1 " + b"A" * 3900 + b"\r\n", b"450-x\r\n"):
        [reply], _ = read(octets * 12 + b"450 4.1.1 end\r\n")
        assert len(str(reply)) <= MAX_REPLY_TEXT + 300 and max(map(len, reply.lines)) <= 500
    [reply], _ = read(b"550 " + b"y" * 1500 + b"\r\n")
    assert reply.text.endswith("...") and len(reply.text) < 1100
    assert cut_reply(Reply(550, None, "z" * 999, "z" * 999)).lines == ("z" * 999, "z...")


def test_reply_text_has_no_control_characters() -> None:
    [reply], _ = read("550 a\u202e\u0085\x9b31m\x1b[2J\x00\tb é\r\n".encode())
    assert reply.text == "a???31m?[2J?\tb é"


def test_ehlo_reply_keeps_keywords_beyond_the_text_bound() -> None:
    client = ClientProtocol("mx.test")
    client.receive_data(b"220 hello\r\n")
    lines = [b"250-X%03d some text that takes room\r\n" % n for n in range(200)]
    client.receive_data(
        b"250-peer.test\r\n" + b"".join(lines) + b"250-AUTH PLAIN\r\n250-AUTH=LOGIN\r\n250 PIPELINING\r\n"
    )
    assert client.has("PIPELINING") and client.has("X199") and client.extensions["AUTH"] == "PLAIN LOGIN"


def ready(ehlo: bytes = b"250-p\r\n250 PIPELINING\r\n") -> ClientProtocol:
    client = ClientProtocol("mx.test")
    client.receive_data(b"220 hello\r\n")
    client.receive_data(ehlo)
    client.events.clear()
    client.data_to_send()
    return client


def transaction(*addresses: str) -> Transaction:
    return Transaction("a@b.test", [Recipient(address) for address in addresses], [b"x\r\n"])


@pytest.mark.parametrize("junk", [b"\r\n", b"thank you\r\n", b"250 " + b"x" * 70_000])
def test_client_final_reply_with_junk_behind_it_counts(junk: bytes) -> None:
    client, message = ready(), transaction("u@d.test")
    client.start_transaction(message)
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    while client.content_to_send() is not None:
        pass
    client.receive_data(b"250 2.0.0 queued\r\n" + junk)
    assert Happened.DONE in client.events and client.pop_done() is message
    assert message.outcomes[0] is not None and message.outcomes[0].is_delivered


@pytest.mark.parametrize(
    "replies",
    [
        [b"250 late", b"250 mail", b"550 bad", b"250 good"],
        [b"250 late", b"250 mail", b"250 good", b"550 bad", b"354 go"],
        [b"250 mail", b"354 odd"],
        [b"354 odd"],
    ],
)
def test_client_replies_out_of_step_are_not_believed(replies: list[bytes]) -> None:
    client, message = ready(), transaction("one@d.test", "two@d.test")
    client.start_transaction(message)
    client.receive_data(b"".join(reply + b"\r\n" for reply in replies))
    assert client.pop_done() is message
    assert all(outcome is not None and outcome.reply.code == 451 for outcome in message.outcomes), message.outcomes


def test_client_second_354_is_not_taken_for_the_final_reply() -> None:
    client, message = ready(), transaction("u@d.test")
    client.start_transaction(message)
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    while client.content_to_send() is not None:
        pass
    client.receive_data(b"354 go\r\n250 taken\r\n")
    assert message.outcomes[0] is not None and message.outcomes[0].is_delivered


def test_client_limits_mailmax_ends_the_session() -> None:
    client = ready(b"250-p\r\n250-PIPELINING\r\n250 LIMITS MAILMAX=1 RCPTMAX=0 X=y\r\n")
    assert client.limits == {"MAILMAX": 1} and client.can_start
    message = transaction("u@d.test")
    client.start_transaction(message)
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    while client.content_to_send() is not None:
        pass
    assert not client.can_start
    client.receive_data(b"250 taken\r\n")
    assert client.is_idle and not client.can_start


def test_client_refused_greeting_is_answered_with_quit() -> None:
    for octets, expected in ((b"554 no\r\n", b"QUIT\r\n"), (b"421 closing\r\n", b"")):
        client = ClientProtocol("mx.test")
        client.receive_data(octets)
        client.quit()
        assert client.data_to_send() == expected
