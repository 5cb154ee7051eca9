"""Each target takes octets, and fails where what must hold for any octets does not. No target may take long, or much memory.

The name of a target says what it is about; its text says what must hold.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import random
import re
from collections.abc import Callable

from pillarbox import Reply
from pillarbox.cli.sendmail import SendmailError, named_recipients
from pillarbox.mail import headers
from pillarbox.mail.content import Content
from pillarbox.mail.dsn import Action, RecipientReport, Report, format_dsn
from pillarbox.server.proxyproto import ProxyFault, missing, parse
from pillarbox.smtp.address import parse_mailbox, split_mailbox
from pillarbox.smtp.client import ClientFault, ClientProtocol, Happened
from pillarbox.smtp.command import Command, Grammar, parse_command
from pillarbox.smtp.extension import Facts
from pillarbox.smtp.framing import DataScanner, DotStuffer, LooseScanner, is_clean, is_plain, normalise_lines
from pillarbox.smtp.reply import ReplyReader, format_reply, parse_reply
from pillarbox.smtp.sasl import SaslFault, decode_base64, server_mechanism
from pillarbox.smtp.server import AuthLine, EndOfContent, Rules, ServerProtocol
from pillarbox.smtp.state import TRANSITIONS, ClientState
from pillarbox.smtp.transaction import Recipient, Transaction

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    """Into the table."""
    TARGETS[function.__name__] = function
    return function


def _session(pieces: list[bytes], rules: Rules, *, is_short: bool = False) -> tuple[list[object], bytes]:
    """What a session sees, and what it says; everybody is agreeable. `is_short`: lines go the short way, where they can."""
    protocol = ServerProtocol(Facts(max_size_bytes=4000), rules)
    seen: list[object] = []
    out = b""
    for piece in pieces:
        known = rules.known.get(piece) if is_short and protocol.is_between else None
        following = TRANSITIONS[protocol.state].get(known.verb) if known is not None else None
        if known is not None and following is not None:
            # As the session does it.
            seen.append((known.verb, known.address, None))
            out += protocol.pass_to(following, Reply(354 if known.verb == "DATA" else 250))
            if protocol.is_closed:
                break
            continue
        whole = protocol.take_whole(piece) if is_short else None
        command = protocol.take_command(piece) if is_short and whole is None else None
        content = protocol.take_content(piece) if is_short and whole is None and command is None else None
        if whole is not None:
            seen += [whole, ("end", len(whole), True, None)]
            assert is_plain(whole) and protocol.is_quiet
            out += protocol.answer(Reply(250))
        elif content is not None:
            if content[0]:
                before = seen.pop() if seen and isinstance(seen[-1], bytes) else b""
                seen.append(before + content[0])
            if (end := content[1]) is not None:
                seen.append(("end", end.size_bytes, end.is_last, end.fault and end.fault.code))
                if end.fault is None and protocol.is_quiet:
                    out += protocol.answer(Reply(250))
                else:
                    protocol.respond(end.fault or Reply(250))
        elif command is None:
            protocol.receive_data(piece)
        elif command.error is None and command.verb != "BDAT":
            seen.append((command.verb, command.address, None))
            out += protocol.answer(Reply(354 if command.verb == "DATA" else 250))
        else:
            seen.append((command.verb, command.address, command.error and command.error.code))
            if command.error is not None:
                protocol.respond(command.error)
            else:
                protocol.accept_chunk()
        while (event := protocol.next_event()) is not None:
            if isinstance(event, Command):
                seen.append((event.verb, event.address, event.error and event.error.code))
                if event.error is not None:
                    protocol.respond(event.error)
                elif event.verb == "BDAT":
                    protocol.accept_chunk()
                else:
                    protocol.respond(Reply(354 if event.verb == "DATA" else 250))
            elif isinstance(event, EndOfContent):
                seen.append(("end", event.size_bytes, event.is_last, event.fault and event.fault.code))
                protocol.respond(event.fault or Reply(250))
            elif isinstance(event, AuthLine):
                seen.append(("auth", event.line))
                protocol.respond(Reply(535))
            elif seen and isinstance(seen[-1], bytes):
                seen[-1] += event
            else:
                seen.append(event)
        out += protocol.data_to_send()
        assert protocol.buffered_bytes <= len(piece) + 20_000
        if protocol.is_closed:
            break
    return seen, out


@target
def session(octets: bytes) -> None:
    """However what a client says is cut: the same commands, contents and replies. Content that was taken has no bare CR or LF."""
    rng = random.Random(len(octets))
    normalise = octets[:1] > b"m"
    # Pieces end with a line at the latest: what comes behind DATA in one piece with it is refused, and rightly so.
    lines = [line for line in re.split(rb"(?<=\n)", octets) if line]
    rules = Rules(normalise_bare=normalise, max_small_chunks=50)
    whole, said = _session(lines, rules)
    again, said_again = _session([piece for line in lines for piece in _pieces_of(line, rng)], rules)
    assert _taken(whole) == _taken(again) and said == said_again, (whole, again)
    for is_known in (False, True):
        # The second time the lines are known.
        for cut in (lines, _joined(lines)):
            again, said_again = _session(cut, rules, is_short=True)
            assert _taken(whole) == _taken(again) and said == said_again, (is_known, whole, again)
    for content, end in zip(whole, whole[1:], strict=False):
        if isinstance(content, bytes) and isinstance(end, tuple) and end[0] == "end" and end[3] is None and end[2]:
            assert is_clean(content) or not end[2]
    assert out_is_smtp(said)


def _joined(lines: list[bytes]) -> list[bytes]:
    """The same, with what stands between DATA and the next line that is a dot in one piece, as clients send it."""
    found: list[bytes] = []
    begin = 0
    while begin < len(lines):
        found.append(lines[begin])
        begin += 1
        if found[-1].upper() == b"DATA\r\n" and b".\r\n" in lines[begin:]:
            end = lines.index(b".\r\n", begin) + 1
            # Were the DATA refused, these would be commands, and two of them must stand at the end of their piece.
            if not any(line[:4].upper() in (b"DATA", b"STAR") for line in lines[begin:end]):
                found.append(b"".join(lines[begin:end]))
                begin = end
    return found


def _taken(seen: list[object]) -> list[object]:
    """Without what came of a content before it was refused, or broken off: nobody keeps that."""
    kept: list[object] = []
    is_whole = False
    for one in reversed(seen):
        if isinstance(one, tuple) and one[0] == "end" and (one[2] or one[3] is not None):
            is_whole = one[3] is None
        elif isinstance(one, tuple) and one[0] != "end" and one[0] != "BDAT":
            is_whole = False
        if is_whole or not isinstance(one, bytes):
            kept.append(one)
    return kept


def _pieces_of(line: bytes, rng: random.Random) -> list[bytes]:
    found = []
    while line:
        size = rng.randrange(1, len(line) + 1)
        found.append(line[:size])
        line = line[size:]
    return found


def out_is_smtp(said: bytes) -> bool:
    """Lines of replies, and nothing else: whatever a client says, nobody gets a line of his own into our mouth."""
    return all(
        len(line) <= 510 and line[:3].isdigit() and line[3:4] in (b" ", b"-", b"") for line in said.split(b"\r\n")[:-1]
    )


@target
def command(octets: bytes) -> None:
    """A line is a command or a fault; an address that was understood is the same when it is read again."""
    line = octets.replace(b"\n", b"")[:2000]
    plain = Grammar(is_strict=False)
    for grammar in (Grammar(is_strict=True), plain, Grammar(False, b"local.test"), Grammar(False, b"local.test", True)):
        parsed, _ = parse_command(line, grammar)
        assert parsed.error is None or 500 <= parsed.error.code < 560
        if parsed.error is None and parsed.verb in ("MAIL", "RCPT") and parsed.address:
            assert not set(parsed.address) & set("\r\n\0")
            again, _ = parse_command(b"RCPT TO:<%s>" % parsed.address.encode(), Grammar(False, b"local.test"))
            assert not again.repairs
            assert again.error is None and again.address == parsed.address, (parsed.address, again)


@target
def address(octets: bytes) -> None:
    """What is taken for a mailbox has a local part and a domain, and is made of the octets that were given."""
    found = parse_mailbox(octets[:400])
    if found is not None:
        assert found.domain and split_mailbox(octets[:400].decode()).domain.lower() == found.domain.lower()


@target
def data(octets: bytes) -> None:
    """A content's end is where the first CRLF . CRLF is, however it is cut; stuffed by us it comes out as it went in."""
    rng = random.Random(len(octets))
    scanner, content, rest, place = DataScanner(), b"", None, 0
    while place < len(octets) and rest is None:
        size = rng.randrange(1, 9)
        piece, rest = scanner.feed(octets[place : place + size])
        content += piece
        place += size
    end = (b"\r\n" + octets).find(b"\r\n.\r\n")
    assert (rest is None) == (end < 0)
    if rest is not None:
        assert content == (b"\r\n" + octets[:end]).replace(b"\r\n.", b"\r\n")[2:]
    for ends_by_lf in (False, True):
        loose, whole = LooseScanner(ends_by_lf=ends_by_lf), LooseScanner(ends_by_lf=ends_by_lf)
        content, rest, place = b"", None, 0
        while place < len(octets) and rest is None:
            size = rng.randrange(1, 9)
            piece, rest = loose.feed(octets[place : place + size])
            content += piece
            place += size
        piece, expected = whole.feed(octets)
        if expected is not None:
            assert rest is not None and content == piece and is_clean(content)
            assert rest + octets[place:] == expected
    stuffer, wire, place = DotStuffer(), b"", 0
    while place < len(octets):
        size = rng.randrange(1, 9)
        wire += stuffer.feed(octets[place : place + size])
        place += size
    wire += stuffer.finish()
    scanner = DataScanner()
    content, rest = scanner.feed(wire)
    wanted = normalise_lines(octets)
    assert rest == b"" and not scanner.has_bare
    assert content == wanted or content == wanted + b"\r\n"


@target
def reply(octets: bytes) -> None:
    """Replies, or a fault; what was read is printable, and the same when it is written and read again."""
    reader, found = ReplyReader(), []
    for start in range(0, len(octets), 7):
        if reader.fault is None:
            found += reader.feed(octets[start : start + 7])
    for one in found:
        again = ReplyReader().feed(format_reply(one))
        assert len(again) == 1 and again[0].code == one.code
    text = octets.decode("utf-8", "replace")
    try:
        parse_reply(text[:300])
    except ValueError:
        pass


@target
def client(octets: bytes) -> None:
    """Whatever a server says: every transaction has an outcome for each recipient, and no command has a line too many."""
    protocol = ClientProtocol("mx.test")
    transactions = [
        Transaction("a@b.test", [Recipient(f"r{n}@d.test") for n in range(count)], [b"Subject: x\r\n\r\n.x\r\n"])
        for count in (1, 3)
    ]
    waiting, wire, done = list(transactions), b"", 0
    for start in range(0, len(octets) or 1, 11):
        protocol.receive_data(octets[start : start + 11])
        for _ in range(50):
            happened = protocol.next_event()
            if happened is Happened.WANTS_CONTENT:
                while (piece := protocol.content_to_send()) is not None:
                    wire += piece
            elif happened is Happened.DONE:
                protocol.pop_done()
                done += 1
            elif happened is None:
                break
        if waiting and protocol.can_start:
            try:
                protocol.start_transaction(waiting[0])
                waiting.pop(0)
            except ClientFault:
                break
        wire += protocol.data_to_send()
    protocol.receive_eof()
    while (happened := protocol.next_event()) is not None:
        if happened is Happened.DONE:
            protocol.pop_done()
            done += 1
    assert protocol.state is ClientState.CLOSED
    begun = transactions[: len(transactions) - len(waiting)]
    assert done == len(begun)
    for transaction in begun:
        assert all(outcome is not None for outcome in transaction.outcomes)
    assert all(len(line) < 1000 for line in wire.split(b"\r\n"))


@target
def header(octets: bytes) -> None:
    """A header section can be looked at, changed and put back: what is not meant stays as it was."""
    content = Content(octets)
    scan = headers.Scan(octets)
    assert 0 <= scan.end <= len(octets) and len(scan.subject) <= 200
    section = content.header_section
    assert octets.startswith(section)
    content.header("Subject")
    content.set_header("X-Fuzz", "a value that is folded somewhere, because it is too long for one line of a header")
    assert content.header("X-Fuzz") is not None
    content.remove_header("X-Fuzz")
    assert content.header("X-Fuzz") is None
    content.remove_claims("Authentication-Results", "mx.test")
    with contextlib.suppress(SendmailError):
        named_recipients(octets[:5000])


@target
def dsn(octets: bytes) -> None:
    """A report of anything is a well-formed multipart/report, with no line that is not its own."""
    words = [*octets.decode("utf-8", "replace").split("\n"), "", "", ""][:3]
    lines = [line for line in words[0][:200].replace("\r", " ").split("\0") if line.isprintable()] or ["no"]
    address = f"c{len(octets)}@d.test"
    recipient = RecipientReport(address, Reply(550, "5.1.1", *lines[:3]), orcpt=None, remote=words[1][:60])
    original = normalise_lines(octets[:3000])
    report = Report(Action.FAILED, "UID", "mx.test", "a@b.test", 1.8e9, original, recipients=[recipient])
    report.envid, report.is_full = words[2][:50] or None, len(octets) % 2 == 0
    made = format_dsn(report, "DSNUID", 1.8e9)
    assert is_clean(made)
    parsed = email.message_from_bytes(made, policy=email.policy.compat32)
    assert parsed.get_content_type() == "multipart/report" and len(parsed.get_payload()) == 3
    status = parsed.get_payload()[1]
    assert status.get_content_type() in ("message/delivery-status", "message/global-delivery-status")


@target
def proxy(octets: bytes) -> None:
    """A PROXY header is understood, or refused; it is read as the acceptor does, and never beyond its end."""
    place = 0
    with contextlib.suppress(ProxyFault):
        while (wanted := missing(octets[:place])) > 0:
            assert wanted <= 4096
            if place >= len(octets):
                return
            place += min(wanted, len(octets) - place)
        assert parse(octets[:place]) is not None


@target
def sasl(octets: bytes) -> None:
    """An exchange ends with credentials or a fault."""
    for name in ("PLAIN", "LOGIN"):
        mechanism = server_mechanism(name)
        for line in [*octets.split(b"\n"), b"", b"", b""][:3]:
            try:
                if not isinstance(mechanism.step(decode_base64(line)), bytes):
                    break
            except SaslFault:
                break
