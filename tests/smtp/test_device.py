"""The device profile without I/O: what is repaired in commands and content, and that nothing else is."""

from __future__ import annotations

import random

import pytest

from pillarbox.smtp import device
from pillarbox.smtp.command import Command, Grammar, parse_command
from pillarbox.smtp.extension import Facts
from pillarbox.smtp.framing import LooseScanner
from pillarbox.smtp.reply import Reply
from pillarbox.smtp.server import EndOfContent, Rules, ServerProtocol

DEVICE = Grammar(is_device=True)
DEVICE_RULES = Rules(normalise_bare=True, accept_bare_lf_commands=True, is_device=True)


@pytest.mark.parametrize(
    ("line", "address", "repair"),
    [
        (b"MAIL FROM:a@b.test", "a@b.test", device.NO_BRACKETS),
        (b"MAIL FROM: a@b.test SIZE=5", "a@b.test", device.NO_BRACKETS),
        (b"MAIL FROM : <a@b.test>", "a@b.test", device.SPACES),
        (b"MAIL FROM:< a@b.test >", "a@b.test", device.SPACES),
        (b"MAIL FROM:<a@ b.test>", "a@b.test", device.SPACES),
        (b" MAIL FROM:<a@b.test>", "a@b.test", device.SPACES),
        (b"MAIL FROM:< >", None, device.SPACES),
        (b"RCPT TO:<.abc@d.test>", '".abc"@d.test', device.DOTS),
        (b"RCPT TO:<a..b@d.test>", '"a..b"@d.test', device.DOTS),
        (b"RCPT TO:<abc.@d.test>", '"abc."@d.test', device.DOTS),
        (b"RCPT TO:a...b.@d.test", '"a...b."@d.test', device.DOTS),
        (b"RCPT TO:<c@d.test> ORCPT=rfc822;", "c@d.test", device.EMPTY_ORCPT),
        (b"RCPT TO:<c@d.test> NOTIFY=NEVER ORCPT=", "c@d.test", device.EMPTY_ORCPT),
        (b"HELO", "unknown", device.NO_NAME),
        (b"EHLO M\xdcLLER-PC", "M\\xdcLLER-PC", device.NO_NAME),
    ],
)
def test_device_command_is_repaired_and_refused_elsewhere(line: bytes, address: str | None, repair: str) -> None:
    command, _ = parse_command(line, DEVICE)
    assert command.error is None and command.address == address and repair in command.repairs
    plain, _ = parse_command(line, Grammar())
    assert plain.error is not None and plain.repairs == ()


def test_development_inbox_shows_what_real_servers_refuse() -> None:
    for line in (b"MAIL FROM:a@b.test", b"RCPT TO:a@b.test", b"HELO"):
        command, _ = parse_command(line, Grammar(is_device=True, is_development=True))
        assert command.error is not None and command.error.code == 501
    command, _ = parse_command(b"RCPT TO:<a..b@d.test>", Grammar(is_device=True, is_development=True))
    assert command.error is None


@pytest.mark.parametrize(
    "line",
    [
        b"MAIL FROM:<a@b.test", b"MAIL FROM:a@b.test>", b"MAIL FROM:<a@b.test>x", b"MAIL FROM:<<a@b.test>>", b"MAIL FROM:<a@b@c.test>",
        b"MAIL FROM:<a@b.test>,<c@d.test>", b"MAIL FROM:", b"MAIL a@b.test", b"RCPT TO:<a b@c.test>", b'RCPT TO:<"a>@c.test>',
        b"RCPT TO:<a@b\0.test>", b"RCPT TO:a@b.test x@y.test", b"RCPT TO:<@c.test>", b"RCPT TO:<..@>", b"RCPT TO:<a@-b.test>",
    ],
)  # fmt: skip
def test_device_command_without_one_meaning_is_refused(line: bytes) -> None:
    command, _ = parse_command(line, DEVICE)
    assert command.error is not None and command.address is None


@pytest.mark.parametrize(
    "line",
    [
        b"MAIL FROM:  <a@b.test>", b"MAIL FROM:\t<a@b.test>", b"MAIL\tFROM:<a@b.test>", b"MAIL FROM:<a@b.test>\tSIZE=5\tBODY=8BITMIME",
        b"MAIL FROM:<a@b.test.>", b"MAIL FROM: \t <a@b.test> \t", b"MAIL FROM:<@r.test:a@b.test.>  SIZE=5", b"MAIL  \tFROM:<a@b.test>",
    ],
)  # fmt: skip
def test_white_space_and_final_dot_are_taken_unless_strict(line: bytes) -> None:
    command, _ = parse_command(line, Grammar())
    assert command.error is None and command.address == "a@b.test" and command.repairs == ()
    if b"FROM:<a@b.test>" not in line:
        strict, _ = parse_command(line, Grammar(is_strict=True))
        assert strict.error is not None


@pytest.mark.parametrize("domain", [b"app_web_1", b"internal_exchange", b"_x.my_host.test", b"a_-b.test"])
def test_domain_with_underscore_is_taken_in_mail_and_rcpt(domain: bytes) -> None:
    for line in (b"MAIL FROM:<root@%s>", b"RCPT TO:<root@%s>"):
        command, _ = parse_command(line % domain, Grammar())
        assert command.error is None and command.address == f"root@{domain.decode()}"


@pytest.mark.parametrize(
    "name", ["MÜLLER-PC", "a b", "[127.0.0.1", "-x", "x..y", "host:25", "a/b", "<x>", "[IPv6:1]", "_"]
)
def test_helo_name_never_refuses_mail(name: str) -> None:
    for verb in ("HELO", "EHLO"):
        command, _ = parse_command(f"{verb} {name}".encode(), Grammar())
        assert command.error is None and command.address == name


def run(rules: Rules, octets: bytes, sizes: list[int]) -> tuple[list[str], bytes, ServerProtocol]:
    """Commands, content and the protocol after octets that were cut into these sizes."""
    protocol, seen, content, place = ServerProtocol(Facts(), rules), [], b"", 0
    while place < len(octets):
        size = sizes[place % len(sizes)]
        protocol.receive_data(octets[place : place + size])
        place += size
        while (event := protocol.next_event()) is not None:
            if isinstance(event, Command):
                seen.append(f"{event.verb} {event.error.code if event.error else 'ok'}")
                protocol.respond(event.error or Reply(354 if event.verb == "DATA" else 250))
            elif isinstance(event, EndOfContent):
                seen.append(f"end {event.fault.code if event.fault else 'ok'}")
                protocol.respond(event.fault or Reply(250))
            elif isinstance(event, bytes):
                content += event
    return seen, content, protocol


LF_SESSION = b"HELO x\nMAIL FROM:a@b.test\nRCPT TO:<c@d.test>\nDATA\n"


def cuts() -> list[list[int]]:
    rng = random.Random(1)
    return [[10_000], [1], [rng.randrange(1, 9) for _ in range(50)]]


@pytest.mark.parametrize("sizes", cuts(), ids=["whole", "bytes", "random"])
@pytest.mark.parametrize("end", [b"\n.\n", b"\r\n.\r\n", b"\n.\r\n"])
def test_lf_device_content_has_dots_undone_and_any_end(sizes: list[int], end: bytes) -> None:
    # What follows DATA is sent after the 354.
    protocol_octets = LF_SESSION
    seen, _, protocol = run(DEVICE_RULES, protocol_octets, sizes)
    assert seen == ["HELO ok", "MAIL ok", "RCPT ok", "DATA ok"]
    content = b""
    for octet in (b"Subject: t\n\nfirst\n..second\n...\nlast" + end + b"QUIT\n",):
        protocol.receive_data(octet)
    while (event := protocol.next_event()) is not None and not isinstance(event, EndOfContent):
        assert isinstance(event, bytes)
        content += event
    assert isinstance(event, EndOfContent) and event.fault is None
    assert content == b"Subject: t\r\n\r\nfirst\r\n.second\r\n..\r\nlast\r\n"
    protocol.respond(Reply(250))
    quit_command = protocol.next_event()
    assert isinstance(quit_command, Command) and quit_command.verb == "QUIT"
    assert protocol.repairs[device.LF_CONTENT] == 1 and protocol.repairs[device.LF_COMMANDS] >= 4
    assert protocol.repairs[device.NO_BRACKETS] == 1


def test_crlf_device_content_ends_at_crlf_dot_crlf_only() -> None:
    """A server that speaks CRLF and passes on the content of others cannot be made to end a message early."""
    seen, _, protocol = run(DEVICE_RULES, b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n", [10_000])
    assert seen[-1] == "DATA ok"
    protocol.receive_data(b"x\n.\nMAIL FROM:<evil@b.test>\n.\r\nRCPT\r\n.\nno\r\n.\r\n")
    content = b""
    while isinstance(event := protocol.next_event(), bytes):
        content += event
    assert isinstance(event, EndOfContent) and content == b"x\r\n\r\nMAIL FROM:<evil@b.test>\r\n\r\nRCPT\r\n\r\nno\r\n"
    protocol.respond(Reply(250))
    assert protocol.next_event() is None


def test_device_session_needs_no_greeting() -> None:
    for line in (b"MAIL FROM:<a@b.test>\r\n", b"AUTH PLAIN\r\n", b"STARTTLS\r\n"):
        protocol = ServerProtocol(Facts(tls_offered=True, auth_in_clear=True, auth_mechanisms=("PLAIN",)), DEVICE_RULES)
        command = protocol.take_command(line)
        assert command is not None and command.error is None and protocol.repairs == {device.NO_GREETING: 1}
        strict = ServerProtocol(Facts(), Rules()).take_command(line)
        assert strict is not None and strict.error is not None and strict.error.code == 503


@pytest.mark.parametrize("sizes", cuts(), ids=["whole", "bytes", "random"])
def test_bdat_with_bare_line_ends_is_normalised(sizes: list[int]) -> None:
    content = b"Subject: x\r\n\r\none\ntwo\rthree\r\r\n.\n.\r\nMAIL FROM:<evil@b.test>\n\n\rend\r"
    first, rest = content[:14], content[14:]
    octets = b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nBDAT 14\r\n" + first
    octets += b"BDAT %d LAST\r\n" % len(rest) + rest + b"NOOP\r\n"
    protocol, got, place, ends = ServerProtocol(Facts(), Rules()), b"", 0, 0
    verbs = []
    while place < len(octets):
        size = sizes[place % len(sizes)]
        protocol.receive_data(octets[place : place + size])
        place += size
        while (event := protocol.next_event()) is not None:
            if isinstance(event, bytes):
                got += event
            elif isinstance(event, EndOfContent):
                assert event.fault is None and event.by_bdat
                ends += event.is_last
                protocol.respond(Reply(250))
            elif isinstance(event, Command):
                verbs.append(event.verb)
                assert event.error is None
                if event.verb == "BDAT":
                    protocol.accept_chunk()
                else:
                    protocol.respond(Reply(250))
    assert verbs == ["EHLO", "MAIL", "RCPT", "BDAT", "BDAT", "NOOP"] and ends == 1
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    assert got == lines


def test_bdat_at_the_size_limit_may_grow_by_its_line_ends() -> None:
    content = b"\n" * 1024
    protocol = ServerProtocol(Facts(max_size_bytes=1024), Rules())
    protocol.receive_data(b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nBDAT 1024 LAST\r\n" + content)
    got = b""
    while (event := protocol.next_event()) is not None:
        if isinstance(event, bytes):
            got += event
        elif isinstance(event, Command) and event.verb == "BDAT":
            protocol.accept_chunk()
        else:
            assert not isinstance(event, EndOfContent) or event.fault is None
            protocol.respond(Reply(250))
    assert got == b"\r\n" * 1024


def test_auth_command_line_may_have_12288_octets() -> None:
    facts = Facts(auth_in_clear=True, auth_mechanisms=("PLAIN",))
    for size in (1, 10_000, 100_000):
        for length, code in ((12_288, None), (12_289, 500)):
            protocol = ServerProtocol(facts, Rules())
            protocol.receive_data(b"EHLO x\r\n")
            protocol.next_event()
            protocol.respond(Reply(250))
            line = b"AUTH PLAIN " + b"x" * (length - 13) + b"\r\n"
            event = None
            for place in range(0, len(line), size):
                protocol.receive_data(line[place : place + size])
                event = event or protocol.next_event()
            assert isinstance(event, Command) and (event.error and event.error.code) == code


def test_loose_scanner_finds_the_first_line_as_well() -> None:
    assert LooseScanner().feed(b".\r\nrest") == (b"", b"rest")
    assert LooseScanner(ends_by_lf=True).feed(b".\nrest") == (b"", b"rest")
    assert LooseScanner().feed(b"..x\n.y\r\n.\r\n") == (b".x\r\ny\r\n", b"")
