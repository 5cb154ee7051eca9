"""Pillarbox beside a real Postfix: the same dialogues, octet by octet, and the same kind of answer to each command.

Where they differ on purpose it is listed here, with the reason, and in docs/reference/deviations.md.
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.peers import Postfix
from tests.conftest import free_port, tool
from tests.daemon import Daemon


class Deviation(NamedTuple):
    """A difference that is meant: a command of this kind, the two codes, and the reason."""

    command: str
    codes: tuple[str, str]
    why: str


DEVIATIONS = [
    Deviation(r"MAIL FROM:.*", ("503", "250"), "MAIL before any EHLO or HELO"),
    Deviation(r"MAIL FROM:[^<]*", ("501", "250"), "a path without angle brackets"),
    Deviation(r"MAIL FROM:<[^\"]*@[^\"]*@.*>", ("501", "250"), "an address with two @"),
    Deviation(r"HELP", ("214", "500"), "HELP"),
    Deviation(r"ETRN .*", ("500", "459"), "ETRN"),
]


class Dialogue:
    """A connection to one of them."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 20)
        self._file = self._socket.makefile("rb")
        self.is_over = False
        assert self.hear() == "220"

    def hear(self) -> str:
        """The code of the next reply, "" when it has been hung up."""
        while line := self._file.readline():
            if line[3:4] != b"-":
                return line[:3].decode()
        self.is_over = True
        return ""

    def say(self, octets: bytes) -> str:
        """Sends, and hears."""
        try:
            self._socket.sendall(octets)
            return self.hear()
        except OSError:
            self.is_over = True
            return ""

    def close(self) -> None:
        """Hangs up."""
        self._file.close()
        self._socket.close()


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """(ours, Postfix's), both with their defaults, both trusting loopback, neither delivering."""
    tool("smtp-source")
    if os.geteuid() != 0:
        pytest.skip("Postfix has to be started by root")
    with tempfile.TemporaryDirectory() as folder:
        postfix = Postfix(port=free_port())
        postfix.start(Path(folder) / "postfix", relay_to=None)
        try:
            with Daemon(Path(folder) / "ours", "--paused") as daemon:
                yield daemon.port, postfix.port
        finally:
            subprocess.run([tool("postfix"), "-c", str(postfix._config), "stop"], check=False, capture_output=True)


HELLO = [
    b"EHLO x.test",
    b"HELO x.test",
    b"EHLO [192.0.2.1]",
    b"EHLO",
    b"HELO",
    b"EHLO x_y.test",
    b"ehlo X.TEST",
    b"EHLO x y",
]
MAIL = [
    b"MAIL FROM:<a@b.test>", b"MAIL FROM:<>", b"mail from:<a@b.test>", b"MAIL FROM: <a@b.test>", b"MAIL FROM:<a@b.test> SIZE=100",
    b"MAIL FROM:<a@b.test> BODY=8BITMIME", b"MAIL FROM:<a@b.test> BODY=9BIT", b"MAIL FROM:<a@b.test> RET=HDRS ENVID=x",
    b"MAIL FROM:<a@b.test> RET=ALL", b"MAIL FROM:<a@b.test> X=1", b"MAIL FROM:<a@b.test> SIZE=x", b"MAIL", b"MAIL FROM", b"MAIL TO:<a@b.test>",
    b'MAIL FROM:<"a b"@c.test>', b"MAIL FROM:<a b@c.test>", b"MAIL FROM:<a@b.test", b"MAIL FROM:a@b.test", b"MAIL FROM:<a@b..test>",
    b"MAIL FROM:<a@[192.0.2.1]>", b"MAIL FROM:<@r.test:a@b.test>", b"MAIL FROM:<a@b@c.test>",
]  # fmt: skip
RCPT = [
    b"RCPT TO:<c@d.test>", b"RCPT TO:<e@f.test> NOTIFY=NEVER", b"RCPT TO:<c@d.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;c@d.test",
    b"RCPT TO:<c@d.test> NOTIFY=NEVER,DELAY", b"RCPT TO:<c@d.test> X=1", b"RCPT TO:<>", b"RCPT", b"RCPT TO", b"RCPT FROM:<c@d.test>",
    b"rcpt to:<c@d.test>", b'RCPT TO:<"c d"@e.test>', b"RCPT TO:<c@d.test", b"RCPT TO:<c@[192.0.2.2]>", b"RCPT TO: <c@d.test>",
    b"RCPT TO:<postmaster>", b"RCPT TO:<@r.test:c@d.test>",
]  # fmt: skip
OTHER = [
    b"NOOP",
    b"RSET",
    b"VRFY c@d.test",
    b"EXPN list",
    b"HELP",
    b"NOOP x",
    b"RSET x",
    b"WHAT",
    b"",
    b"DATA x",
    b"X" * 600,
    b"AUTH PLAIN",
    b"STARTTLS",
    b"rset",
    b"ETRN d.test",
]
CONTENTS = [
    b"Subject: x\r\n\r\nx\r\n.\r\n",
    b".\r\n",
    b"Subject: x\r\n\r\n..\r\n...\r\n.\r\n",
    b"\r\n\r\n.\r\n",
    b"no header\r\n.\r\n",
]


def dialogue(rng: random.Random) -> list[bytes]:
    """Mostly in an order that leads somewhere, with what does not belong there in between."""
    lines = [rng.choice(HELLO[:2]) if rng.random() < 0.8 else rng.choice(HELLO)]
    for _ in range(rng.randrange(1, 4)):
        lines += [rng.choice(MAIL) if rng.random() < 0.5 else MAIL[0]]
        lines += [rng.choice(RCPT) if rng.random() < 0.6 else RCPT[0] for _ in range(rng.randrange(3))]
        if rng.random() < 0.7:
            lines.append(b"DATA")
        for _ in range(rng.randrange(2)):
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(OTHER + HELLO))
    return lines


def explained(line: bytes, codes: tuple[str, str], *, is_greeted: bool) -> Deviation | None:
    text = line.decode("latin-1")
    for deviation in DEVIATIONS:
        if deviation.codes == codes and re.fullmatch(deviation.command, text, re.I):
            return None if is_greeted and deviation is DEVIATIONS[0] else deviation
    return None


def test_the_same_dialogues(ports: tuple[int, int]) -> None:
    rng = random.Random(821)
    met: Counter[str] = Counter()
    commands = 0
    for _ in range(600):
        lines, said, is_greeted = dialogue(rng), [], False
        ours, theirs = (Dialogue(port) for port in ports)
        for line in lines:
            said.append(line)
            codes = ours.say(line + b"\r\n"), theirs.say(line + b"\r\n")
            commands += 1
            if codes[0][:1] != codes[1][:1]:
                deviation = explained(line, codes, is_greeted=is_greeted)
                assert deviation is not None, f"{codes[0]} here, {codes[1]} there: {said}"
                met[deviation.why] += 1
                # They stand at different places now: nothing more can be compared.
                break
            is_greeted = is_greeted or (line[:4].upper() in (b"EHLO", b"HELO") and codes[0] == "250")
            if codes == ("354", "354"):
                content = rng.choice(CONTENTS)
                codes = ours.say(content), theirs.say(content)
                assert codes[0][:1] == codes[1][:1] == "2", (said, content, codes)
            assert ours.is_over == theirs.is_over, said
            if ours.is_over:
                break
        ours.close()
        theirs.close()
    assert commands > 1500
    # The list is no longer than it has to be, and the documentation has it.
    assert set(met) == {one.why for one in DEVIATIONS}
    page = (Path(__file__).parent.parent / "docs/reference/deviations.md").read_text()
    assert all(f"| {one.why} |" in page for one in DEVIATIONS)


# What must be one message is one for both, and what comes behind it is a command for both.
FRAMES = [
    (b"a\r\n.\r\n", 1),
    (b".\r\n", 1),
    (b"\r\n.\r\n", 1),
    (b"..\r\n.\r\n", 1),
    (b"a\r\n..\r\n.\r\n", 1),
    (b"a\r\n. \r\n.\r\n", 1),
    (b"a\r\n.b\r\n.\r\n", 1),
    (b"x" * 990 + b"\r\n.\r\n", 1),
    (b"\xff\xfe\r\n.\r\n", 1),
    (b"a\r\n.\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n", 1),
]


@pytest.mark.parametrize(("octets", "messages"), FRAMES)
def test_the_same_framing(ports: tuple[int, int], octets: bytes, messages: int) -> None:
    for port in ports:
        one = Dialogue(port)
        for line in (b"EHLO x.test", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>"):
            assert one.say(line + b"\r\n") == "250"
        assert one.say(b"DATA\r\n") == "354"
        assert one.say(octets) == "250"
        if octets.endswith(b"DATA\r\n"):
            assert [one.hear() for _ in range(3)] == ["250", "250", "354"]
        else:
            assert one.say(b"NOOP\r\n") == "250"
        one.close()
