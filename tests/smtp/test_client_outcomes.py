"""ClientProtocol: what each reply at each stage means for each recipient, and what goes on the wire next."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pillarbox.smtp.client import ClientProtocol, Happened, Outcome, Recipient, Stage, Transaction
from pillarbox.smtp.exchange import parse_extensions, parse_limits
from pillarbox.smtp.reply import Reply, ReplyReader
from pillarbox.smtp.state import ClientState
from tests.smtp.test_protocols import greeted, sent_content, transaction

PLAIN, PIPELINING = b"250 x\r\n", b"250-x\r\n250 PIPELINING\r\n"


class Server:
    """Answers each command as a script says; `heard` are the commands, `content` what came behind 354."""

    def __init__(self, client: ClientProtocol, script: dict[str, str]) -> None:
        self.client, self.script = client, {"MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go", ".": "250 2.0.0 taken", "RSET": "250 ok", **script}  # fmt: skip
        self.heard: list[str] = []
        self.content = b""

    def run(self) -> None:
        for _ in range(50):
            data = self.client.data_to_send()
            if not data and not self.client.is_content_wanted:
                return
            for line in data.splitlines():
                self.heard.append(line.decode())
                key = line.decode().split(" ")[0]
                self.say(self.script.get(line.decode(), self.script.get(key, "")))
            if self.client.is_content_wanted:
                self.content += sent_content(self.client)
                self.say(self.script["."])

    def say(self, reply: str) -> None:
        if reply == "close":
            self.client.receive_eof()
        elif reply:
            self.client.receive_data(reply.encode() + b"\r\n")


def ran(ehlo: bytes, script: dict[str, str], *to: str) -> tuple[Transaction, Server]:
    client, one = greeted(ehlo), transaction(*to)
    client.start_transaction(one)
    server = Server(client, script)
    server.run()
    return one, server


# (script, stage, is delivered, is permanent, content was begun)
CASES: list[tuple[dict[str, str], Stage, bool, bool]] = [
    ({}, Stage.FINAL, True, False),
    ({"MAIL": "451 4.7.1 later"}, Stage.MAIL, False, False),
    ({"MAIL": "550 5.7.1 no"}, Stage.MAIL, False, True),
    ({"MAIL": "552 5.3.4 too large"}, Stage.MAIL, False, True),
    ({"RCPT": "450 4.2.1 later"}, Stage.RCPT, False, False),
    ({"RCPT": "550 5.1.1 unknown"}, Stage.RCPT, False, True),
    # RFC 5321 section 4.5.3.1.10: 552 to RCPT means 452; anywhere else it means what it says.
    ({"RCPT": "552 too many"}, Stage.RCPT, False, False),
    ({"RCPT": "452 4.5.3 too many"}, Stage.RCPT, False, False),
    ({"DATA": "451 4.3.0 later"}, Stage.DATA, False, False),
    ({"DATA": "554 5.5.1 no valid recipients"}, Stage.DATA, False, True),
    ({".": "451 4.3.0 later"}, Stage.FINAL, False, False),
    ({".": "554 5.6.0 spam"}, Stage.FINAL, False, True),
    ({".": "552 5.3.4 too large"}, Stage.FINAL, False, True),
    ({".": "421 4.3.2 closing"}, Stage.FINAL, False, False),
    ({".": "close"}, Stage.FINAL, False, False),
    ({"MAIL": "421 4.3.2 closing"}, Stage.MAIL, False, False),
    ({"RCPT": "421 4.3.2 closing"}, Stage.RCPT, False, False),
    ({"DATA": "421 4.3.2 closing"}, Stage.DATA, False, False),
    ({"DATA": "close"}, Stage.DATA, False, False),
    ({"MAIL": "close"}, Stage.MAIL, False, False),
]


@pytest.mark.parametrize("ehlo", [PLAIN, PIPELINING], ids=["one by one", "pipelining"])
@pytest.mark.parametrize(("script", "stage", "is_delivered", "is_permanent"), CASES)
def test_reply_decides_stage_and_outcome(
    ehlo: bytes, script: dict[str, str], stage: Stage, is_delivered: bool, is_permanent: bool
) -> None:
    one, server = ran(ehlo, script)
    (outcome,) = one.outcomes
    assert outcome is not None
    assert (outcome.stage, outcome.is_delivered, outcome.is_permanent) == (stage, is_delivered, is_permanent)
    assert one.is_content_begun is bool(server.content) is (stage is Stage.FINAL)
    assert server.client.pop_done() is one
    is_over = "421" in str(script) or "close" in str(script)
    assert (server.client.state is ClientState.CLOSED) is is_over
    assert server.client.can_start is not is_over


@pytest.mark.parametrize("ehlo", [PLAIN, PIPELINING], ids=["one by one", "pipelining"])
def test_each_recipient_has_the_outcome_of_its_own_reply(ehlo: bytes) -> None:
    script = {
        "RCPT TO:<b@d.test>": "550 5.1.1 no",
        "RCPT TO:<c@d.test>": "450 4.2.1 later",
        "RCPT TO:<e@d.test>": "251 forwarded",
    }
    one, server = ran(ehlo, script, "a@d.test", "b@d.test", "c@d.test", "e@d.test")
    assert [outcome and (outcome.reply.code, outcome.stage) for outcome in one.outcomes] == [
        (250, Stage.FINAL),
        (550, Stage.RCPT),
        (450, Stage.RCPT),
        (250, Stage.FINAL),
    ]
    assert server.content == b"body\r\n.\r\n" and server.heard.count("DATA") == 1


@pytest.mark.parametrize(("final", "code"), [("554 5.6.0 spam", 554), ("451 4.3.0 later", 451), ("421 4.3.2 bye", 421)])
def test_final_reply_does_not_touch_recipients_that_rcpt_refused(final: str, code: int) -> None:
    one, _ = ran(PIPELINING, {"RCPT TO:<b@d.test>": "550 5.1.1 no", ".": final}, "a@d.test", "b@d.test")
    assert [outcome and outcome.reply.code for outcome in one.outcomes] == [code, 550]


def test_without_pipelining_no_command_goes_before_the_reply_to_the_last() -> None:
    one, server = ran(PLAIN, {}, "a@d.test", "b@d.test")
    assert server.heard == ["MAIL FROM:<a@b.test>", "RCPT TO:<a@d.test>", "RCPT TO:<b@d.test>", "DATA"]
    client = greeted(PLAIN)
    client.start_transaction(transaction("a@d.test", "b@d.test"))
    assert client.data_to_send() == b"MAIL FROM:<a@b.test>\r\n"
    client.receive_data(b"250 ok\r\n")
    assert client.data_to_send() == b"RCPT TO:<a@d.test>\r\n" and not client.can_start


@pytest.mark.parametrize("ehlo", [PLAIN, PIPELINING], ids=["one by one", "pipelining"])
@pytest.mark.parametrize("script", [{"RCPT": "550 5.1.1 no"}, {"DATA": "451 4.3.0 later"}, {"MAIL": "550 5.7.1 no"}])
def test_refused_transaction_leaves_a_session_that_takes_the_next(ehlo: bytes, script: dict[str, str]) -> None:
    sequence = {"RCPT": "503 no MAIL", "DATA": "503 no RCPT"} if ehlo is PIPELINING else {}
    one, server = ran(ehlo, {**(sequence if "MAIL" in script or "RCPT" in script else {}), **script})
    assert server.client.pop_done() is one and server.client.can_start
    # The server has no transaction open, or is told to forget it.
    assert ("RSET" in server.heard) is ("MAIL" not in script or ehlo is PIPELINING)
    assert not server.content
    again = transaction("next@d.test")
    server.script = Server(server.client, {}).script
    server.client.start_transaction(again)
    server.run()
    assert again.outcomes[0] is not None and again.outcomes[0].is_delivered


def test_354_is_answered_with_an_empty_message_where_no_recipient_stands() -> None:
    one, server = ran(PIPELINING, {"RCPT": "550 5.1.1 no", "RCPT TO:<c@d.test>": "550 5.1.1 no"})
    assert server.heard[-1] == "." and not server.content
    assert one.outcomes[0] is not None and one.outcomes[0].stage is Stage.RCPT


# ----------------------------------------------------------------------- the wire


def test_null_reverse_path_and_parameters_stand_where_they_belong() -> None:
    client = greeted(PIPELINING)
    recipients = [Recipient("c@d.test", ("NOTIFY=NEVER", "ORCPT=rfc822;c@d.test"))]
    client.start_transaction(Transaction(None, recipients, [b"x"], ("SIZE=1", "BODY=8BITMIME")))
    assert client.data_to_send() == (
        b"MAIL FROM:<> SIZE=1 BODY=8BITMIME\r\nRCPT TO:<c@d.test> NOTIFY=NEVER ORCPT=rfc822;c@d.test\r\nDATA\r\n"
    )
    client = greeted(PLAIN)
    client.start_transaction(Transaction("a@b.test", recipients, [b"x"]))
    assert client.data_to_send() == b"MAIL FROM:<a@b.test>\r\n"
    client.receive_data(b"250 ok\r\n")
    assert client.data_to_send() == b"RCPT TO:<c@d.test> NOTIFY=NEVER ORCPT=rfc822;c@d.test\r\n"


@pytest.mark.parametrize("seed", range(40))
def test_content_is_dot_stuffed_and_ended_however_it_is_cut(seed: int) -> None:
    """RFC 5321 section 4.5.2."""
    rng = random.Random(seed)
    octets = b"".join(rng.choice([b".", b"..", b"\r\n", b"\r\n.", b"x", b".\r\n", b"text"]) for _ in range(30))
    octets = octets.replace(b"\r\r", b"\r") + rng.choice([b"", b"\r\n"])
    cuts = sorted(rng.randrange(len(octets) + 1) for _ in range(rng.randint(0, 12)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    client = greeted(PIPELINING)
    client.start_transaction(Transaction("a@b.test", [Recipient("c@d.test")], pieces))
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    sent = sent_content(client)
    whole = octets if not octets or octets.endswith(b"\r\n") else octets + b"\r\n"
    lines = whole.split(b"\r\n")[:-1]
    expected = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"
    assert sent == expected


# ---------------------------------------------------------- greeting, EHLO, the end


@pytest.mark.parametrize(
    "greeting", [b"554 no\r\n", b"421 busy\r\n", b"521 never\r\n", b"250 odd\r\n", b"450 later\r\n"]
)
def test_session_begins_behind_220_only(greeting: bytes) -> None:
    client = ClientProtocol("me.test")
    client.receive_data(greeting)
    assert client.next_event() is Happened.CLOSED and client.data_to_send() == b"" and client.stage is Stage.GREETING
    assert client.last_reply is not None and client.last_reply.code == int(greeting[:3]) and not client.can_start


@pytest.mark.parametrize(
    ("reply", "is_tls", "goes_on"),
    [(b"500 what", False, True), (b"550 no", False, True), (b"451 later", False, False), (b"421 bye", False, False), (b"502 what", True, False), (b"251 odd", False, False)],
)  # fmt: skip
def test_helo_follows_a_permanent_refusal_of_ehlo_in_clear_only(reply: bytes, is_tls: bool, goes_on: bool) -> None:
    client = ClientProtocol("me.test")
    client.is_tls = is_tls
    client.receive_data(b"220 hi\r\n")
    client.data_to_send()
    client.receive_data(reply + b"\r\n")
    assert (client.data_to_send() == b"HELO me.test\r\n") is goes_on
    assert (client.state is ClientState.CLOSED) is not goes_on
    if goes_on:
        client.receive_data(b"250-x\r\n250 PIPELINING\r\n")
        assert client.next_event() is Happened.READY and client.used_helo and not client.extensions
        client.start_transaction(transaction())
        assert client.data_to_send() == b"MAIL FROM:<a@b.test>\r\n", "HELO offers no extension"


def test_extensions_and_limits_are_read_as_they_stand() -> None:
    reply = Reply(250, None, "mx.test greets you", "size 1000", "AUTH PLAIN", "AUTH=LOGIN XOAUTH2", "8BITMIME", "X")
    assert parse_extensions(reply) == {
        "SIZE": "1000",
        "AUTH": "PLAIN LOGIN XOAUTH2",
        "8BITMIME": "",
        "X": "",
    }
    assert parse_extensions(Reply(250, None, "PIPELINING")) == {}, "the first line is the server's name"
    assert parse_limits("RCPTMAX=10 mailmax=2 RCPTDOMAINMAX=0 X= Y=1x Z=12345678 =3") == {"RCPTMAX": 10, "MAILMAX": 2}


@pytest.mark.parametrize("most", [1, 2])
def test_mailmax_counts_every_mail_command(most: int) -> None:
    client = greeted(b"250-x\r\n250-PIPELINING\r\n250 LIMITS MAILMAX=%d\r\n" % most)
    for number in range(most):
        assert client.can_start, number
        client.start_transaction(transaction())
        Server(client, {"MAIL": "451 4.7.1 later", "RCPT": "503 no", "DATA": "503 no"}).run()
    assert client.is_idle and not client.can_start


@pytest.mark.parametrize(
    ("before", "stage"),
    [
        (b"", Stage.MAIL),
        (b"250 ok\r\n", Stage.RCPT),
        (b"250 ok\r\n250 ok\r\n", Stage.DATA),
        (b"250 ok\r\n250 ok\r\n354 go\r\n", Stage.CONTENT),
        (b"250 ok\r\n250 ok\r\n354 go\r\n.", Stage.FINAL),
    ],
)
@pytest.mark.parametrize("how", ["end", "time-out", "421", "junk"])
def test_lost_session_says_how_far_it_had_come(before: bytes, stage: Stage, how: str) -> None:
    """Ambiguous is the end behind the content alone: nothing else may have been taken."""
    client, one = greeted(PIPELINING), transaction()
    client.start_transaction(one)
    client.receive_data(before.removesuffix(b"."))
    if stage is Stage.FINAL:
        sent_content(client)
    ends: dict[str, Any] = {
        "end": client.receive_eof,
        "time-out": lambda: client.fail(Reply(451, "4.4.2", "no reply in time")),
        "421": lambda: client.receive_data(b"421 4.3.2 bye\r\n"),
        "junk": lambda: client.receive_data(b"junk\r\n"),
    }
    ends[how]()
    (outcome,) = one.outcomes
    assert outcome is not None and not outcome.is_delivered and not outcome.is_permanent
    assert outcome.stage is stage or (how == "421" and stage is Stage.CONTENT)
    assert client.state is ClientState.CLOSED and client.was_cut is (how == "end") and not client.can_start
    assert client.pop_done() is one and client.content_to_send() is None


def test_outcome_is_delivered_by_2yz_to_the_content_alone() -> None:
    for code in (200, 250, 251, 299):
        assert Outcome(Reply(code), Stage.FINAL).is_delivered
    for code in (300, 354, 399, 421, 451, 550):
        assert not Outcome(Reply(code), Stage.FINAL).is_delivered
    for stage in Stage:
        if stage is not Stage.FINAL:
            assert not Outcome(Reply(250), stage).is_delivered
        assert Outcome(Reply(552), stage).is_permanent is (stage is not Stage.RCPT)
        assert Outcome(Reply(550), stage).is_permanent and not Outcome(Reply(450), stage).is_permanent


# ------------------------------------------------------------------------- replies


@pytest.mark.parametrize("cut", range(1, 40))
def test_reply_is_the_same_however_its_octets_come(cut: int) -> None:
    octets = b"250-first\r\n250-second\r\n250 2.1.0 last\r\n550 5.1.1 no\r\n"
    reader, replies = ReplyReader(), []
    for start in range(0, len(octets), cut):
        replies += reader.feed(octets[start : start + cut])
    assert [(r.code, r.enhanced) for r in replies] == [(250, "2.1.0"), (550, "5.1.1")]
    assert replies[0].lines == ("first", "second", "last") and not reader.has_rest and reader.fault is None


@pytest.mark.parametrize(
    ("code", "permanent", "transient", "positive"),
    [(200, 0, 0, 1), (399, 0, 0, 1), (400, 0, 1, 0), (499, 0, 1, 0), (500, 1, 0, 0), (599, 1, 0, 0)],
)
def test_class_of_a_reply_is_its_first_digit(code: int, permanent: bool, transient: bool, positive: bool) -> None:
    reply = Reply(code)
    assert (reply.is_permanent, reply.is_transient, reply.is_positive) == (permanent, transient, positive)


def test_enhanced_status_of_another_class_is_text() -> None:
    (reply,) = ReplyReader().feed(b"550 4.7.1 strange\r\n")
    assert (reply.enhanced, reply.text, reply.is_permanent) == (None, "4.7.1 strange", True)
