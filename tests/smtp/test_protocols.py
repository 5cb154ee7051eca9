"""ServerProtocol and ClientProtocol as machines: framing against a slow reference, deep pipelining, corners."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox import Reply
from pillarbox.smtp.client import ClientFault, ClientProtocol, Happened
from pillarbox.smtp.command import Command
from pillarbox.smtp.extension import Facts
from pillarbox.smtp.framing import (
    ChunkScanner,
    DataScanner,
    DotStuffer,
    LineBuffer,
    is_clean,
    is_plain,
    normalise_lines,
)
from pillarbox.smtp.rules import Rules
from pillarbox.smtp.sasl import Credentials, ScramClient, SimpleClient
from pillarbox.smtp.server import EndOfContent, ServerProtocol
from pillarbox.smtp.state import ClientState, State
from pillarbox.smtp.transaction import Recipient, Stage, Transaction

PIECES = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\r\n.\r\n", b"a", b"..", b"\0"]), max_size=14
)


def reference(octets: bytes) -> tuple[bytes, bytes] | None:
    """Content and rest by the book, one octet at a time; None: no end yet."""
    seen = b"\r\n"
    for index, octet in enumerate(octets):
        seen += bytes([octet])
        if seen.endswith(b"\r\n.\r\n"):
            content = seen[:-3].replace(b"\r\n.", b"\r\n")[2:]
            return content, octets[index + 1 :]
    return None


@given(PIECES, st.randoms(use_true_random=False))
@settings(max_examples=600, deadline=None)
def test_data_scanner(pieces: list[bytes], rng: random.Random) -> None:
    octets = b"".join(pieces)
    expected = reference(octets)
    scanner, content, place = DataScanner(), b"", 0
    rest = None
    while place < len(octets) and rest is None:
        size = rng.randint(1, 5)
        piece, rest = scanner.feed(octets[place : place + size])
        content += piece
        place += size
    if expected is None:
        assert rest is None
        return
    assert rest is not None and (content, rest + octets[place:]) == expected
    assert scanner.size_bytes == len(content)
    whole = octets[: len(octets) - len(expected[1])]
    assert scanner.has_bare == (not is_clean(whole))
    if scanner.is_plain:
        # Whoever sends it on as it is sends what a stuffer would.
        stuffer = DotStuffer()
        assert stuffer.feed(content) + stuffer.finish() == content + b".\r\n"
        assert not content or is_plain(content)


@given(PIECES, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_what_is_stuffed_comes_out_again(pieces: list[bytes], rng: random.Random) -> None:
    content = b"".join(pieces)
    stuffer, wire, place = DotStuffer(), b"", 0
    while place < len(content):
        size = rng.randint(1, 4)
        wire += stuffer.feed(content[place : place + size])
        place += size
    wire += stuffer.finish()
    got, rest = DataScanner().feed(wire)
    clean = normalise_lines(content)
    assert rest == b"" and got == clean + (b"" if not clean or clean.endswith(b"\r\n") else b"\r\n")


def test_chunk_scanner() -> None:
    scanner = ChunkScanner()
    assert (
        scanner.feed(b"a\r") == b"a"
        and scanner.feed(b"\nb") == b"\r\nb"
        and scanner.finish() == b""
        and not scanner.has_bare
    )
    scanner = ChunkScanner()
    assert scanner.feed(b"a\r") == b"a" and scanner.finish() == b"\r" and scanner.has_bare
    scanner = ChunkScanner(normalise=True)
    assert scanner.feed(b"a\nb\r") == b"a\r\nb" and scanner.finish() == b"\r\n"


def test_line_buffer_accepting_bare_lf() -> None:
    buffer = LineBuffer(accept_bare_lf=True)
    buffer.push(b"one\ntwo\r\n" + b"x" * 30)
    assert buffer.take_line(20) == b"one" and buffer.take_line(20) == b"two"
    assert buffer.take_line(20).__class__.__name__ == "OverlongLine" and buffer.take_line(20) is None
    buffer.push(b"yyy\nafter\r\n")
    assert buffer.take_line(20) == b"after" and buffer.take_line(20) is None
    buffer.push(b"z" * 30 + b"\n" + b"next\n")
    assert buffer.take_line(20).__class__.__name__ == "OverlongLine" and buffer.take_line(20) == b"next"
    buffer.push(b"w" * 30)
    buffer.take_line(20)
    buffer.push(b"\n")
    assert buffer.take_line(20) is None and len(buffer) == 0 and buffer.peek() == -1


def served(*exchanges: tuple[bytes, Reply | None], facts: Facts | None = None) -> ServerProtocol:
    protocol = ServerProtocol(facts or Facts())
    for octets, reply in exchanges:
        protocol.receive_data(octets)
        event = protocol.next_event()
        if reply is not None:
            assert event is not None
            protocol.respond(reply)
    return protocol


OK = Reply(250)


def test_server_protocol_corners() -> None:
    protocol = served((b"EHLO x\r\n", OK), (b"MAIL FROM:<a@b.c>\r\n", OK))
    assert (
        protocol.state is State.MAIL
        and not protocol.owes_reply
        and not protocol.is_in_content
        and not protocol.is_in_auth
    )
    protocol.reset_transaction()
    assert protocol.state is State.READY
    protocol.reset_transaction()
    protocol.receive_data(b"NOOP\r\n")
    assert protocol.owes_reply is False and protocol.next_event() is not None and protocol.owes_reply
    assert protocol.next_event() is None, "a reply is owed"
    protocol.respond(OK, is_sent=False)
    protocol.data_to_send()
    protocol.say(Reply(421, "4.3.2", "leaving"))
    assert protocol.is_closed and protocol.data_to_send() == b"421 4.3.2 leaving\r\n" and protocol.data_to_send() == b""
    protocol.receive_data(b"NOOP\r\n")
    assert protocol.next_event() is None


def test_a_421_closes_and_data_wants_354() -> None:
    protocol = served(
        (b"EHLO x\r\n", OK), (b"MAIL FROM:<a@b.c>\r\n", OK), (b"RCPT TO:<a@b.c>\r\n", OK), (b"DATA\r\n", OK)
    )
    assert protocol.state is State.RCPT, "a 250 to DATA begins nothing"
    protocol.receive_data(b"NOOP\r\n")
    protocol.next_event()
    protocol.respond(Reply(421, "4.7.0", "enough"))
    assert protocol.is_closed


def test_known_lines_are_judged_by_each_session_anew() -> None:
    rules = Rules()
    first, second = ServerProtocol(Facts(), rules), ServerProtocol(Facts(), rules)
    lines = [b"HELO a.test\r\n", b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n"]
    for line in lines:
        command = first.take_command(line)
        assert command is not None and command.error is None
        assert rules.known[line] is command
        first.answer(Reply(354 if command.verb == "DATA" else 250))
    assert first.state is State.CONTENT and first.take_command(b"DATA\r\n") is None
    # Out of order: refused here, and whoever is in order takes it all the same.
    early = second.take_command(lines[3])
    assert early is not None and early.error is not None and early.error.code == 503
    second.respond(early.error)
    for line in lines:
        command = second.take_command(line)
        assert command is rules.known[line] and command.error is None
        if command.verb == "DATA":
            # Content ahead of the 354, while somebody thinks about DATA: this session's fault, nobody else's.
            second.receive_data(b"early\r\n")
            second.respond(Reply(354))
        else:
            second.answer(Reply(250))
    assert b"503" in second.data_to_send() and second.is_closed
    assert rules.known[lines[3]].error is None and not rules.known[lines[3]].is_abuse


def test_what_is_known_is_bounded_and_right() -> None:
    rules = Rules()
    protocol = ServerProtocol(Facts(tls_offered=True), rules)
    for line in (b"HELO a.test\r\n", b"FOO\r\n", b"MAIL FROM:<a@b.test> SIZE=10\r\n", b"RSET\r\n", b"STARTTLS\r\n"):
        command = protocol.take_command(line)
        assert command is not None
        protocol.respond(command.error or Reply(250))
    # What is wrong, what depends on the session, and what has parameters is read each time.
    assert list(rules.known) == [b"HELO a.test\r\n", b"RSET\r\n"]
    protocol = ServerProtocol(Facts(), rules)
    for number in range(3000):
        command = protocol.take_command(b"NOOP %d\r\n" % number)
        assert command is not None
        protocol.answer(Reply(250))
    assert protocol.take_command(b"NOOP %s\r\n" % (b"x" * 300)) is not None
    assert len(rules.known) <= 1024 and max(map(len, rules.known)) <= 256


def test_nothing_is_taken_once_a_session_has_been_sent_away() -> None:
    protocol = ServerProtocol(Facts())
    for line in (b"HELO a.test\r\n", b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n"):
        assert protocol.take_command(line) is not None
        protocol.answer(Reply(354 if line == b"DATA\r\n" else 250))
    assert protocol.take_content(b"begin\r\n") == (b"begin", None)
    protocol.say(Reply(421))
    assert protocol.take_command(b"end\r\n.\r\n") is None and protocol.take_content(b"end\r\n.\r\n") is None
    protocol.receive_data(b"end\r\n.\r\n")
    assert protocol.next_event() is None and protocol.is_closed


def in_content(**rules: bool) -> ServerProtocol:
    protocol = ServerProtocol(Facts(max_size_bytes=20), Rules(**rules))  # type: ignore[arg-type]
    for line in (b"HELO a.test\r\n", b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n"):
        assert protocol.take_command(line) is not None
        protocol.answer(Reply(354 if line == b"DATA\r\n" else 250))
    return protocol


@pytest.mark.parametrize("rules", [{}, {"normalise_bare": True}])
def test_content_that_comes_whole_is_taken_as_it_is(rules: dict[str, bool]) -> None:
    protocol = in_content(**rules)
    assert not protocol.is_between and protocol.is_in_content
    assert protocol.take_whole(b"a\r\n\r\nb.\r\n.\r\n") == b"a\r\n\r\nb.\r\n"
    assert protocol.owes_reply and protocol.is_quiet
    assert protocol.answer(Reply(250, "2.0.0", "OK")) == b"250 2.0.0 OK\r\n"
    assert protocol.state is State.READY and protocol.is_between and not protocol.is_in_content
    # Or refused, behind its end as ever.
    protocol = in_content(**rules)
    assert protocol.take_whole(b"x\r\n.\r\n") == b"x\r\n"
    protocol.respond(Reply(554, "5.6.0", "no"))
    assert protocol.data_to_send() == b"554 5.6.0 no\r\n" and protocol.is_between


@pytest.mark.parametrize(
    "segment",
    [
        b"", b".", b".\r", b"\n", b".\r\n", b"x.\r\n", b"\r\n", b"x\r\n", b"x\r\n.", b"x\r\n.\r", b"x\r\n.\r\nQUIT\r\n", b"x\r\n.\r\n.\r\n",
        b"..x\r\n.\r\n", b"x\r\n..\r\n.\r\n", b"x\n.\r\n", b"x\r.\r\n", b"x\n\r\n.\r\n", b"x\ry\r\n.\r\n", b"x\r\n.\n", b"x\n.\ny\r\n.\r\n",
        b"x\r\n.\ry\r\n.\r\n", b"x" * 19 + b"\r\n.\r\n", b".\r\n.\r\n",
    ],
)  # fmt: skip
def test_any_other_content_goes_the_long_way(segment: bytes) -> None:
    protocol = in_content()
    assert protocol.take_whole(segment) is None and not protocol.owes_reply and protocol.state is State.CONTENT
    assert protocol.take_whole(b"z\r\n.\r\n") == b"z\r\n", "nothing was taken"
    protocol = in_content()
    assert protocol.take_content(b"beg") == (b"beg", None)
    assert protocol.take_whole(segment) is None, "it has begun"


def test_what_is_taken_whole_is_what_the_scanner_finds() -> None:
    """Every segment of up to seven octets that could matter."""
    for size in range(8):
        for octets in map(bytes, itertools.product(b"\r\n.x", repeat=size)):
            protocol = ServerProtocol(Facts(), _RULES)
            protocol.state = State.CONTENT
            whole = protocol.take_whole(octets)
            scanner = DataScanner()
            piece, rest = scanner.feed(octets)
            is_whole = rest == b"" and piece != b"" and scanner.is_plain
            assert whole == (piece if is_whole else None), octets


_RULES = Rules()


def test_a_refused_chunk_end_resets() -> None:
    protocol = served((b"EHLO x\r\n", OK), (b"MAIL FROM:<a@b.c>\r\n", OK), (b"RCPT TO:<a@b.c>\r\n", OK))
    protocol.receive_data(b"BDAT 3\r\nabcBDAT 2 LAST\r\nxyNOOP\r\n")
    assert isinstance(protocol.next_event(), Command)
    protocol.accept_chunk()
    assert protocol.is_in_content and protocol.next_event() == b"abc"
    end = protocol.next_event()
    assert isinstance(end, EndOfContent) and not end.is_last and end.by_bdat
    protocol.respond(Reply(451, "4.3.0", "no"))
    late = protocol.next_event()
    assert isinstance(late, Command) and late.error is not None and late.error.code == 503
    protocol.respond(late.error)
    noop = protocol.next_event()
    assert isinstance(noop, Command) and noop.verb == "NOOP" and protocol.state is State.READY


def test_starttls_blocks_until_the_handshake() -> None:
    protocol = served((b"EHLO x\r\n", OK), (b"STARTTLS\r\n", Reply(220)), facts=Facts(tls_offered=True))
    protocol.receive_data(b"NOOP\r\n")
    assert protocol.next_event() is None
    protocol.tls_started()
    assert protocol.next_event() is None and protocol.state is State.OPEN and protocol.facts.is_tls


# ---------------------------------------------------------------------------- client


def greeted(extensions: bytes = b"250-x\r\n250 PIPELINING\r\n") -> ClientProtocol:
    client = ClientProtocol("me.test")
    client.receive_data(b"220 hi\r\n")
    assert client.data_to_send() == b"EHLO me.test\r\n"
    client.receive_data(extensions)
    assert client.next_event() is Happened.READY and client.can_start
    return client


def transaction(*to: str, content: bytes = b"body\r\n") -> Transaction:
    return Transaction("a@b.test", [Recipient(one) for one in to or ("c@d.test",)], [content])


def sent_content(client: ClientProtocol) -> bytes:
    octets = b""
    while client.is_content_wanted:
        piece = client.content_to_send()
        assert piece is not None
        octets += piece
    return octets


@pytest.mark.parametrize("content", [b"one\r\ntwo\r\n", b""])
def test_plain_content_goes_out_as_it_is_in_one_piece(content: bytes) -> None:
    client, plain = greeted(), transaction(content=content)
    plain.is_plain = True
    client.start_transaction(plain)
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert client.next_event() is Happened.WANTS_CONTENT and client.content_to_send() == content + b".\r\n"
    assert not client.is_content_wanted and client.can_start and plain.is_content_sent and plain.is_content_begun
    client.receive_data(b"250 2.0.0 taken\r\n")
    assert client.next_event() is Happened.DONE and client.pop_done().outcomes[0].is_delivered  # type: ignore[union-attr]


def test_deep_pipelining() -> None:
    client = greeted()
    first, second, third = transaction("x@d.test", "y@d.test"), transaction(content=b".dot\r\n"), transaction()
    client.start_transaction(first)
    assert client.data_to_send() == b"MAIL FROM:<a@b.test>\r\nRCPT TO:<x@d.test>\r\nRCPT TO:<y@d.test>\r\nDATA\r\n"
    assert not client.can_start and client.expected_stage is Stage.MAIL
    client.receive_data(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert client.next_event() is Happened.WANTS_CONTENT and sent_content(client) == b"body\r\n.\r\n"
    assert client.content_to_send() is None and client.can_start
    client.start_transaction(second)
    assert not client.can_start and len(client.open_transactions) == 2
    client.receive_data(b"250 2.0.0 taken\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert client.next_event() is Happened.DONE and client.pop_done() is first
    assert [(o.is_delivered, o.is_permanent) for o in first.outcomes if o] == [(True, False), (False, True)]
    assert client.next_event() is Happened.WANTS_CONTENT and sent_content(client) == b"..dot\r\n.\r\n"
    client.start_transaction(third)
    client.receive_eof()
    assert [client.next_event() for _ in range(3)] == [Happened.DONE, Happened.DONE, Happened.CLOSED]
    assert second.outcomes[0] is not None and second.outcomes[0].stage is Stage.FINAL, (
        "ambiguous: it may have been taken"
    )
    assert third.outcomes[0] is not None and third.outcomes[0].stage is Stage.MAIL
    assert client.state is ClientState.CLOSED and client.next_event() is None
    client.receive_eof()
    client.fail(Reply(451))
    client.receive_data(b"250 late\r\n")
    assert client.next_event() is None


def test_lost_within_content() -> None:
    client = greeted()
    one = Transaction("a@b.test", [Recipient("c@d.test")], [b"one\r\n", b"two\r\n"])
    client.start_transaction(one)
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert client.content_to_send() == b"one\r\n" and client.expected_stage is Stage.CONTENT
    client.receive_eof()
    assert one.outcomes[0] is not None and one.outcomes[0].stage is Stage.CONTENT


def test_354_without_anybody() -> None:
    client = greeted()
    one = transaction()
    client.start_transaction(one)
    client.data_to_send()
    client.receive_data(b"250 ok\r\n552 5.2.2 too many\r\n354 go\r\n")
    assert client.data_to_send() == b".\r\n" and client.next_event() is None
    client.receive_data(b"554 no valid recipients\r\n")
    assert client.next_event() is Happened.DONE and client.can_start
    assert one.outcomes[0] is not None and not one.outcomes[0].is_permanent, "552 to RCPT counts as 452"


def test_refused_data_then_rset_and_a_reply_out_of_order() -> None:
    client = greeted()
    client.start_transaction(transaction())
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n451 4.3.0 later\r\n")
    assert client.data_to_send() == b"RSET\r\n"
    client.receive_data(b"354 what?\r\n")
    assert [client.next_event(), client.next_event()] == [Happened.DONE, Happened.CLOSED]
    assert client.last_reply is not None and "out of order" in client.last_reply.text


def test_unasked_replies() -> None:
    for octets, word in ((b"250 what?\r\n", "no command"), (b"421 4.3.2 bye\r\n", "bye")):
        client = greeted()
        client.receive_data(octets)
        assert (
            client.next_event() is Happened.CLOSED and client.last_reply is not None and word in client.last_reply.text
        )


def test_refused_hello() -> None:
    client = ClientProtocol("me.test")
    client.receive_data(b"220 hi\r\n")
    client.receive_data(b"451 4.3.0 not now\r\n")
    assert client.next_event() is Happened.CLOSED
    client = ClientProtocol("me.test")
    client.receive_data(b"220 hi\r\n500 what?\r\n500 what?\r\n")
    assert client.next_event() is Happened.CLOSED and client.data_to_send() == b"EHLO me.test\r\nHELO me.test\r\n"


def test_tls_and_auth() -> None:
    client = greeted(b"250-x\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
    client.start_tls()
    client.receive_data(b"454 no\r\n")
    assert client.next_event() is Happened.TLS_REFUSED
    client.start_tls()
    client.receive_data(b"220 go\r\n")
    assert client.next_event() is Happened.WANTS_HANDSHAKE
    client.tls_started()
    assert client.is_tls and not client.extensions
    client.receive_data(b"250 x\r\n")
    assert client.next_event() is Happened.READY
    client.start_auth(SimpleClient("PLAIN", Credentials("u", "p")))
    client.data_to_send()
    client.receive_data(b"334 YQ==\r\n")
    assert client.data_to_send() == b"*\r\n", "PLAIN has nothing more to say"
    client.receive_data(b"501 cancelled\r\n")
    assert client.next_event() is Happened.AUTH_REFUSED
    client.quit()
    assert client.data_to_send() == b"QUIT\r\n" and client.state is ClientState.CLOSED
    other = greeted(b"250-x\r\n250 STARTTLS\r\n")
    other.start_tls()
    other.receive_data(b"220 go\r\n")
    other.next_event()
    other.receive_data(b"250 injected\r\n")
    assert other.next_event() is Happened.CLOSED
    direct = ClientProtocol("me.test")
    direct.tls_started(greeted=False)
    assert direct.is_tls and direct.data_to_send() == b""


@pytest.mark.parametrize("address", ["a@b.test>\r\nRSET", "a b@c.test", "a@b.test\n", "<a@b.test>", "a"])
def test_the_caller_cannot_break_a_line(address: str) -> None:
    client = greeted()
    with pytest.raises(ClientFault):
        client.start_transaction(transaction(address))
    with pytest.raises(ClientFault):
        client.start_transaction(Transaction(address, [Recipient("c@d.test")], []))
    with pytest.raises(ClientFault):
        client.start_transaction(Transaction(None, [Recipient("c@d.test", ("X=1\r\nRSET",))], []))
    assert client.data_to_send() == b"" and client.can_start
    client.start_transaction(
        Transaction(None, [Recipient('"a>b"@c.test'), Recipient("Postmaster")], [], ("ENVID=<x>",))
    )
    assert client.data_to_send().startswith(b'MAIL FROM:<> ENVID=<x>\r\nRCPT TO:<"a>b"@c.test>\r\nRCPT TO:<Postmaster>')
    with pytest.raises(ClientFault):
        ClientProtocol("me test")


def test_scram_that_the_server_cuts_short() -> None:
    """235 without the server's own proof: somebody who does not know the password has said yes."""
    client = ClientProtocol("x.test")
    client.receive_data(b"220 x\r\n")
    while client.next_event() is not None:
        pass
    client.receive_data(b"250-x\r\n250 AUTH SCRAM-SHA-256\r\n")
    while client.next_event() is not None:
        pass
    client.start_auth(ScramClient(Credentials("u", "p")))
    client.receive_data(b"235 2.7.0 welcome\r\n")
    assert client.next_event() is Happened.AUTH_REFUSED
    assert client.last_reply is not None and client.last_reply.code == 535
