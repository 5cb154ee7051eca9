"""Where a line, a command, a chunk and a message end, as tables: one reading for every session, and no second one."""

from __future__ import annotations

import pytest

from pillarbox import Reply
from pillarbox.smtp.address import decode_utf8, is_domain, is_mail_domain, is_mailbox, parse_address_literal
from pillarbox.smtp.command import Command, Grammar, parse_command
from pillarbox.smtp.extension import Facts
from pillarbox.smtp.framing import ChunkScanner, DataScanner, DotStuffer, LooseScanner, is_clean
from pillarbox.smtp.rules import Rules
from pillarbox.smtp.sasl import SaslFault, decode_base64, server_mechanism
from pillarbox.smtp.server import EndOfContent, ServerProtocol
from pillarbox.smtp.state import TRANSITIONS, State

OK = Reply(250, "2.0.0", "OK")


def protocol_at(state: State = State.READY, *, size: int = 1000, **rules: object) -> ServerProtocol:
    protocol = ServerProtocol(Facts(max_size_bytes=size), Rules(**rules))  # type: ignore[arg-type]
    protocol.state = state
    return protocol


def judge(protocol: ServerProtocol, octets: bytes) -> Command:
    protocol.receive_data(octets)
    command = protocol.next_event()
    assert isinstance(command, Command), command
    return command


def refusal(protocol: ServerProtocol, octets: bytes) -> int:
    """The code of the refusal, 0 without one."""
    command = judge(protocol, octets)
    return command.error.code if command.error is not None else 0


# ------------------------------------------------------------------------- order

MOVES = [
    "HELO",
    "EHLO",
    "MAIL",
    "RCPT",
    "DATA",
    "BDAT",
    "RSET",
    "NOOP",
    "QUIT",
    "STARTTLS",
    "AUTH",
    "VRFY",
    "EXPN",
    "HELP",
]
# RFC 5321 section 4.1.4, RFC 3030 section 2, RFC 3207 section 4, RFC 4954 section 4: allowed verbs by state.
ANYWHERE = {"HELO", "EHLO", "RSET", "NOOP", "QUIT", "VRFY", "EXPN", "HELP"}
ALLOWED = {
    State.OPEN: ANYWHERE,
    State.READY: ANYWHERE | {"MAIL", "STARTTLS", "AUTH"},
    State.MAIL: ANYWHERE | {"RCPT"},
    State.RCPT: ANYWHERE | {"RCPT", "DATA", "BDAT"},
    State.CHUNKS: ANYWHERE | {"BDAT"},
    State.CONTENT: set(),
    State.CLOSED: set(),
}


@pytest.mark.parametrize("state", State)
def test_verbs_of_each_state_are_those_of_the_rfc(state: State) -> None:
    assert {verb for verb in MOVES if verb in TRANSITIONS[state]} == ALLOWED[state]
    for verb in ("RSET", "EHLO", "HELO"):
        if verb in TRANSITIONS[state]:
            # RFC 5321 section 4.1.1.5 and 4.1.4: no transaction stays open.
            assert TRANSITIONS[state][verb] in (State.READY, State.OPEN)
    if state not in (State.CONTENT, State.CLOSED):
        assert TRANSITIONS[state]["QUIT"] is State.CLOSED
        assert all(TRANSITIONS[state][verb] is state for verb in ("NOOP", "VRFY", "EXPN", "HELP"))


def test_nothing_behind_quit_or_421_is_read() -> None:
    for reply, line in ((Reply(221, "2.0.0", "Bye"), b"QUIT\r\n"), (Reply(421, "4.3.0", "Leaving"), b"NOOP\r\n")):
        protocol = protocol_at()
        judge(protocol, line + b"MAIL FROM:<a@b.test>\r\n")
        protocol.respond(reply)
        assert protocol.is_closed and protocol.next_event() is None and protocol.buffered_bytes == 0
        protocol.receive_data(b"NOOP\r\n")
        assert protocol.next_event() is None


def test_refused_command_leaves_the_state_alone() -> None:
    protocol = protocol_at(State.RCPT)
    for line in (b"RCPT TO:<a@b.test>\r\n", b"RSET\r\n", b"EHLO x\r\n", b"DATA\r\n"):
        judge(protocol, line)
        protocol.respond(Reply(450, "4.2.0", "Later"))
        assert protocol.state is State.RCPT


def test_content_before_the_354_is_refused_and_closes() -> None:
    protocol = protocol_at(State.RCPT)
    assert refusal(protocol, b"DATA\r\nSubject: x\r\n") == 503
    protocol = protocol_at(State.RCPT)
    judge(protocol, b"DATA\r\n")
    # It comes while a plugin thinks about DATA.
    protocol.receive_data(b"MAIL FROM:<evil@b.test>\r\n")
    protocol.respond(Reply(354, None, "Go"))
    assert protocol.is_closed and protocol.data_to_send().startswith(b"503") and protocol.next_event() is None


# ------------------------------------------------------------------------- lines


@pytest.mark.parametrize("length", [510, 511, 512, 513, 2000])
@pytest.mark.parametrize("cut", [0, 1, 5, 509])
def test_command_line_has_at_most_so_many_octets(length: int, cut: int) -> None:
    protocol = protocol_at(max_line_bytes=512)
    line = b"NOOP " + b"x" * (length - 7) + b"\r\n"
    protocol.receive_data(line[:cut])
    first = protocol.next_event()
    assert first is None
    code = refusal(protocol, line[cut:])
    assert code == (0 if length <= 512 else 500)
    protocol.respond(OK if not code else Reply(500, "5.5.2", "Too long"))
    assert refusal(protocol, b"NOOP\r\n") == 0


@pytest.mark.parametrize("octets", [b"NOOP\n", b"NOOP\nMAIL FROM:<a@b.test>\r\n", b"\n", b"NOOP x\ny\r\n"])
def test_bare_lf_ends_no_command(octets: bytes) -> None:
    protocol = protocol_at()
    command = judge(protocol, octets)
    assert command.error is not None and command.error.code == 500 and command.verb == ""
    protocol.respond(command.error)
    # What follows the LF belongs to the refused line, up to its CRLF.
    assert protocol.next_event() is None


@pytest.mark.parametrize(
    "octets",
    [b"NO\rOP\r\n", b"NOOP a\rb\r\n", b"HELP \0\r\n", b"VRFY a\x01\r\n", b"NOOP \x7f\r\n", b"EXPN \x1b[0m\r\n"],
)
def test_control_characters_in_a_command_are_refused(octets: bytes) -> None:
    assert refusal(protocol_at(), octets) == 500


# ------------------------------------------------------------------------- content

ENDS = [
    (b".\r\n", b"", b""),
    (b"a\r\n.\r\n", b"a\r\n", b""),
    (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
    (b"..\r\n.\r\n", b".\r\n", b""),
    (b"a\r\n..b\r\n...c\r\n.\r\n", b"a\r\n.b\r\n..c\r\n", b""),
    (b".a\r\n.\r\n", b"a\r\n", b""),
    (b"\r\n.\r\n", b"\r\n", b""),
    (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n"),
]
OPEN = [
    b"a\n.\n",
    b"a\r\n.\n",
    b"a\n.\r\n",
    b"a\r.\r",
    b"a\r\n.\r",
    b"a\r\n. \r\n",
    b"a\r.\r\n",
    b"\n.\n",
    b".\n",
    b"a\r\r\n.\r\r\n",
]


def scanned(scanner: DataScanner | LooseScanner, octets: bytes, size: int) -> tuple[bytes, bytes | None]:
    content, at, rest = b"", 0, None
    while at < len(octets) and rest is None:
        piece, rest = scanner.feed(octets[at : at + size])
        content, at = content + piece, at + size
    return content, None if rest is None else rest + octets[at:]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize(("octets", "content", "rest"), ENDS)
def test_message_ends_at_crlf_dot_crlf(octets: bytes, content: bytes, rest: bytes, size: int) -> None:
    for scanner in (DataScanner(), LooseScanner(), LooseScanner(ends_by_lf=True)):
        assert scanned(scanner, octets, size) == (content, rest)
        assert not scanner.has_bare and scanner.size_bytes == len(content)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("octets", OPEN)
def test_message_ends_at_nothing_else(octets: bytes, size: int) -> None:
    for scanner in (DataScanner(), LooseScanner()):
        assert scanned(scanner, octets, size)[1] is None
        # The true end follows; the bare octets are noticed.
        _, rest = scanned(scanner, b"\r\nz\r\n.\r\n", size)
        assert rest == b"" and scanner.has_bare == (not is_clean(octets + b"\r\nz\r\n"))


@pytest.mark.parametrize(
    ("octets", "rest"),
    [(b"a\n.\nX", b"X"), (b"a\r\n.\nX", b"X"), (b"a\n.\r\nX", b"X"), (b"a\r.\rX", None), (b"a\n..\nX", None)],
)
def test_message_of_a_client_that_speaks_in_lf_ends_at_lf_dot_lf(octets: bytes, rest: bytes | None) -> None:
    assert scanned(LooseScanner(ends_by_lf=True), octets, 100)[1] == rest


@pytest.mark.parametrize("is_device", [False, True])
@pytest.mark.parametrize("speaks_lf", [False, True])
def test_lf_ends_a_message_only_for_a_device_that_speaks_in_lf(is_device: bool, speaks_lf: bool) -> None:
    protocol = protocol_at(State.RCPT, normalise_bare=True, accept_bare_lf_commands=True, is_device=is_device)
    judge(protocol, b"DATA\n" if speaks_lf else b"DATA\r\n")
    protocol.respond(Reply(354, None, "Go"))
    protocol.receive_data(b"a\n.\nNOOP\r\n")
    found = [event for event in (protocol.next_event(), protocol.next_event()) if isinstance(event, EndOfContent)]
    assert bool(found) is (is_device and speaks_lf)


@pytest.mark.parametrize("content", [b"a\nb\r\n", b"a\rb\r\n", b"\na\r\n", b"a\r\r\n", b"a\r\n\n"])
def test_bare_line_ends_are_refused_at_the_true_end_unless_normalised(content: bytes) -> None:
    for normalise in (False, True):
        protocol = protocol_at(State.RCPT, normalise_bare=normalise)
        judge(protocol, b"DATA\r\n")
        protocol.respond(Reply(354, None, "Go"))
        protocol.receive_data(content + b"z\r\n.\r\nNOOP\r\n")
        kept, event = b"", protocol.next_event()
        while isinstance(event, bytes):
            kept, event = kept + event, protocol.next_event()
        assert isinstance(event, EndOfContent) and not event.is_plain
        assert (event.fault is None) is normalise and (kept == b"" or is_clean(kept))
        protocol.respond(event.fault or OK)
        # A sender of bare line ends may mean to smuggle: nothing behind its message is read.
        assert protocol.is_closed is not normalise
        assert (protocol.next_event() is None) is not normalise


@pytest.mark.parametrize("by", ["DATA", "BDAT", "two chunks"])
@pytest.mark.parametrize("size", [99, 100, 101])
def test_message_over_the_size_is_refused_and_not_kept(by: str, size: int) -> None:
    content = b"x" * (size - 2) + b"\r\n"
    protocol = protocol_at(State.RCPT, size=100)
    if by == "DATA":
        judge(protocol, b"DATA\r\n")
        protocol.respond(Reply(354, None, "Go"))
        protocol.receive_data(content + b".\r\n")
        kept, event = b"", protocol.next_event()
        while isinstance(event, bytes):
            kept, event = kept + event, protocol.next_event()
        assert isinstance(event, EndOfContent) and (event.fault is not None) is (size > 100)
        assert len(kept) <= 100
        return
    if by == "two chunks":
        assert refusal(protocol, b"BDAT 60\r\n") == 0
        protocol.accept_chunk()
        protocol.receive_data(content[:60])
        while isinstance(event := protocol.next_event(), bytes):
            pass
        protocol.respond(OK)
        content = content[60:]
    assert refusal(protocol, b"BDAT %d LAST\r\n" % len(content)) == (552 if size > 100 else 0)


@pytest.mark.parametrize(
    ("size", "code"),
    [(b"1000", 0), (b"1001", 552), (b"99999999999999999999", 552), (b"0", 0), (b"-1", 501), (b"1x", 501)],
)
def test_announced_size_over_the_bound_is_refused_at_mail(size: bytes, code: int) -> None:
    assert refusal(protocol_at(), b"MAIL FROM:<a@b.test> SIZE=" + size + b"\r\n") == code


def test_octets_of_a_refused_chunk_are_never_commands() -> None:
    protocol = protocol_at(State.RCPT)
    chunk = b"MAIL FROM:<evil@b.test>\r\nDATA\r\n"
    command = judge(protocol, b"BDAT %d\r\n" % len(chunk) + chunk + b"NOOP\r\n")
    protocol.respond(Reply(450, "4.2.0", "Later"))
    assert command.verb == "BDAT" and judge(protocol, b"").verb == "NOOP"
    assert protocol.state is State.READY


@pytest.mark.parametrize("state", [State.OPEN, State.READY, State.MAIL])
def test_octets_of_a_chunk_out_of_order_are_never_commands(state: State) -> None:
    protocol = protocol_at(state)
    assert refusal(protocol, b"BDAT 6\r\nQUIT\r\nNOOP\r\n") == 503
    protocol.respond(Reply(503, "5.5.1", "BDAT"))
    assert judge(protocol, b"").verb == "NOOP" and protocol.state is state


@pytest.mark.parametrize(
    "line",
    [
        b"BDAT",
        b"BDAT x",
        b"BDAT -1",
        b"BDAT 1 2",
        b"BDAT 1x",
        b"BDAT 111111111111111111111",
        b"BDAT 1 LAST x",
        b"BDAT \xff",
    ],
)
def test_chunk_of_unknown_length_closes(line: bytes) -> None:
    protocol = protocol_at(State.RCPT)
    command = judge(protocol, line + b"\r\nQUIT\r\n")
    assert command.error is not None and command.is_abuse
    protocol.respond(command.error)
    assert protocol.is_closed and protocol.next_event() is None


@pytest.mark.parametrize(("size", "closes"), [(2000, False), (2001, True)])
def test_refused_chunk_is_read_up_to_twice_the_bound(size: int, closes: bool) -> None:
    command = judge(protocol_at(State.RCPT), b"BDAT %d LAST\r\n" % size)
    assert command.error is not None and command.error.code == 552 and command.is_abuse is closes


def test_small_chunks_are_bounded() -> None:
    protocol = protocol_at(State.RCPT, max_small_chunks=3)
    for _ in range(3):
        assert refusal(protocol, b"BDAT 1\r\n") == 0
        protocol.accept_chunk()
        protocol.receive_data(b"x")
        while not isinstance(protocol.next_event(), EndOfContent):
            pass
        protocol.respond(OK)
    assert refusal(protocol, b"BDAT 1\r\n") == 421


@pytest.mark.parametrize("verb", [b"RSET", b"EHLO x", b"HELO x"])
def test_chunks_before_a_reset_do_not_count_for_the_next_message(verb: bytes) -> None:
    protocol = protocol_at(State.RCPT, size=100)
    assert refusal(protocol, b"BDAT 80\r\n") == 0
    protocol.accept_chunk()
    protocol.receive_data(b"x" * 80)
    while not isinstance(protocol.next_event(), EndOfContent):
        pass
    protocol.respond(OK)
    judge(protocol, verb + b"\r\n")
    protocol.respond(OK)
    protocol.state = State.RCPT
    assert refusal(protocol, b"BDAT 80 LAST\r\n") == 0


def test_chunk_with_bare_line_ends_is_normalised_over_its_border() -> None:
    scanner = ChunkScanner(normalise=True)
    assert (
        scanner.feed(b"a\r") + scanner.feed(b"\nb\nc\r") + scanner.feed(b"d") + scanner.finish() == b"a\r\nb\r\nc\r\nd"
    )


@pytest.mark.parametrize(
    "content", [b".", b"a\r\n.", b".\r\n", b"a\n.\nb", b"a\r.\rb", b"\r\n.\r\n", b"a\r\n.\r\nMAIL FROM:<x@y>\r\n", b""]
)
def test_stuffed_content_holds_no_second_end(content: bytes) -> None:
    for size in (1, 2, 3, 100):
        stuffer = DotStuffer()
        wire = b"".join(stuffer.feed(content[at : at + size]) for at in range(0, len(content), size)) + stuffer.finish()
        assert (b"\r\n" + wire).count(b"\r\n.\r\n") == 1 and wire.endswith(b".\r\n") and is_clean(wire)


# ------------------------------------------------------------------------- grammar

UTF8 = "\u00fc@b.test"


@pytest.mark.parametrize(
    ("address", "is_valid"),
    [
        ("a@b.test", True), ('"a b"@b.test', True), ('"a\\"b"@b.test', True), ('"a"b"@b.test', False), ('"a\r\nb"@b.test', False), ('"a\0"@b.test', False),
        ('"a\\\r"@b.test', False), ('"a\\\0"@b.test', False), ("a..b@c.test", False), (".a@b.test", False), ("a.@b.test", False), ("a b@c.test", False),
        ("a@b@c.test", False), ("a@", False), ("@b.test", False), ("a", False), ("a@-b.test", False), ("a@b-.test", False), ("a@b..test", False),
        ("a@" + "x" * 63 + ".test", True), ("a@" + "x" * 64 + ".test", False), ("a" * 245 + "@b.test", True), ("a" * 248 + "@b.test", False),
        ("a@[192.0.2.1]", True), ("a@[192.0.2.256]", False), ("a@[192.0.2]", False), ("a@[IPv6:2001:db8::1]", True), ("a@[2001:db8::1]", False),
        ("a@[IPv6:fe80::1%eth0]", False), ("a@[x.test]", False), ("a@[]", False), (UTF8, True), ("a\u202eb@c.test", False), ("a\u200bb@c.test", False),
        ("a\u00adb@c.test", False), ("a\ue000b@c.test", False), ("a\u2028b@c.test", False), ("a@b\u3000.test", False), ("a\u0085@b.test", False),
    ],
)  # fmt: skip
def test_mailbox_grammar_and_limits(address: str, is_valid: bool) -> None:
    assert is_mailbox(address) is is_valid
    if address != UTF8:
        command, _ = parse_command(b"RCPT TO:<" + address.encode() + b">", Grammar())
        assert (command.error is None) is is_valid and (command.address == address) is is_valid


def test_address_of_utf8_wants_smtputf8_at_mail() -> None:
    for parameters, code in (("", 553), (" SMTPUTF8", 0), (" BODY=8BITMIME", 553)):
        command, _ = parse_command(f"MAIL FROM:<{UTF8}>{parameters}".encode(), Grammar())
        assert (command.error.code if command.error else 0) == code


@pytest.mark.parametrize(
    "text", ["\u202a", "\u2066", "\ufeff", "\u200e", "\u200c", "\u2029", "\ue001", "\u0378", "\u0085"]
)
def test_hidden_characters_are_no_text_of_an_address(text: str) -> None:
    assert decode_utf8(f"a{text}b".encode()) is None
    assert (
        decode_utf8(b"a\xffb") is None
        and decode_utf8(b"\xc0\xaf") is None
        and decode_utf8("a\u00fcb".encode()) == "a\u00fcb"
    )


def test_domain_names_and_literals() -> None:
    assert is_domain("a.test") and not is_domain("a_b.test") and is_mail_domain("a_b.test")
    assert not is_mail_domain("x." * 127 + "xx.test") and not is_mail_domain("a.test\n") and not is_domain("")
    assert parse_address_literal("[IPv6:::1]") is not None and parse_address_literal("[::1]") is None
    assert parse_address_literal("[192.0.2.1") is None and parse_address_literal("[IPv6:fe80::1%lo]") is None


@pytest.mark.parametrize(
    "line",
    [b"GET / HTTP/1.1", b"POST /x", b"Host: x", b"SSH-2.0-OpenSSH", b"CONNECT a:25", b"user-agent: x", b"options *"],
)
def test_client_of_another_protocol_is_refused_and_closed(line: bytes) -> None:
    protocol = protocol_at(State.OPEN)
    command = judge(protocol, line + b"\r\nMAIL FROM:<a@b.test>\r\n")
    assert command.error is not None and command.error.code == 554
    protocol.respond(command.error)
    assert protocol.is_closed and protocol.next_event() is None


def test_tls_hello_in_clear_is_refused_without_a_line_end() -> None:
    protocol = protocol_at(State.OPEN)
    assert refusal(protocol, b"\x16\x03\x01\x02\x00\x01") == 554


@pytest.mark.parametrize(
    "text", [b"eA", b"eA=", b"e A==", b"eA==\n", b"eA==x", b"=eA=", b"e*==", b"\xff\xff\xff\xff", b"==", b"eA==eA=="]
)
def test_auth_line_that_is_not_strict_base64_is_refused(text: bytes) -> None:
    with pytest.raises(SaslFault):
        decode_base64(text)
    assert decode_base64(b"=") == b"" and decode_base64(b"eA==") == b"x"


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"a",
        b"\0a",
        b"a\0b",
        b"\0a\0b\0c",
        b"b\0a\0p",
        b"A\0a\0p",
        b"\0\0p",
        b"\0a\0",
        b"\0a\rb\0p",
        b"\0a\0p\n",
        b"\0\xff\0p",
        b"\0a\0p\0",
    ],
)
def test_plain_response_that_breaks_rfc_4616_is_refused(octets: bytes) -> None:
    with pytest.raises(SaslFault):
        server_mechanism("PLAIN").step(octets)
    for good in (b"\0a\0p", b"a\0a\0p"):
        assert str(server_mechanism("PLAIN").step(good)) == "Credentials('a', '***')"
