"""The fuzzer's targets on their corpus and on octets made of it, and a session as a machine: commands, pieces, and time.

`make fuzz` looks for what is new, guided by coverage; what it finds is kept in tests/fuzz/corpus, and replayed here.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pillarbox.testing.clock import ManualClock
from tests.conftest import Wire, queued, wired
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert inputs
    for octets in (b"", b"\0", b"\r\n", *inputs):
        TARGETS[name](octets)
    rng = random.Random(name)
    for _ in range(300):
        octets = bytearray(rng.choice(inputs))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(octets) + 1)
            other = rng.choice(inputs)
            cut = rng.randrange(len(other) + 1)
            octets[at : at + rng.randrange(4)] = rng.choice(
                (b"\r", b"\n", b"\r\n", b".", b"\r\n.\r\n", b"", bytes([rng.randrange(256)]), other[cut : cut + 9])
            )
        TARGETS[name](bytes(octets))


class SessionMachine(RuleBasedStateMachine):
    """A real session beside a model of it: what each command is answered, however it is cut, and whenever it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.sizes = random.Random(1)
        self.context = wired(lambda: iter(lambda: self.sizes.randrange(1, 9), 0), clock=self.clock, max_errors=10_000)
        self.server, self.wire = self.loop.run_until_complete(self.context.__aenter__())
        self.is_greeted = self.has_mail = self.has_recipients = False
        self.messages = 0
        self.idle_s = 0.0

    wire: Wire
    server: Any

    def teardown(self) -> None:
        self.loop.run_until_complete(self.context.__aexit__(None, None, None))
        self.loop.close()

    @property
    def is_open(self) -> bool:
        return not self.wire.transport.closed

    def ask(self, octets: bytes, *codes: str) -> None:
        replies = self.loop.run_until_complete(self.wire.ask(octets))
        self.idle_s = 0.0
        assert [reply[:3] for reply in replies] == list(codes), (octets, replies, codes)

    @precondition(lambda self: self.is_open)
    @rule(verb=st.sampled_from([b"EHLO", b"HELO", b"ehlo"]))
    def hello(self, verb: bytes) -> None:
        self.ask(verb + b" x.test\r\n", "250")
        self.is_greeted, self.has_mail, self.has_recipients = True, False, False

    @precondition(lambda self: self.is_open)
    @rule(sender=st.sampled_from([b"a@b.test", b""]))
    def mail(self, sender: bytes) -> None:
        may = self.is_greeted and not self.has_mail
        self.ask(b"MAIL FROM:<%s>\r\n" % sender, "250" if may else "503")
        self.has_mail = self.has_mail or may

    @precondition(lambda self: self.is_open)
    @rule(address=st.sampled_from([b"c@d.test", b"no address", b"e@d.test"]))
    def rcpt(self, address: bytes) -> None:
        good = b"@" in address
        if not self.has_mail and good:
            self.ask(b"RCPT TO:<%s>\r\n" % address, "503")
        elif good:
            self.ask(b"RCPT TO:<%s>\r\n" % address, "250")
            self.has_recipients = True
        else:
            replies = self.loop.run_until_complete(self.wire.ask(b"RCPT TO:<%s>\r\n" % address))
            assert len(replies) == 1 and replies[0].startswith("5")
            self.idle_s = 0.0

    @precondition(lambda self: self.is_open)
    @rule(lines=st.lists(st.sampled_from([b"", b".", b"..", b"x", b".x", b"QUIT", b"\xff"]), max_size=5))
    def data(self, lines: list[bytes]) -> None:
        if not self.has_recipients:
            self.ask(b"DATA\r\n", "503")
            return
        self.ask(b"DATA\r\n", "354")
        content = b"".join(line + b"\r\n" for line in (b"Subject: x", b"", *lines))
        stuffed = b"".join(b"." * line.startswith(b".") + line for line in content.splitlines(keepends=True))
        self.ask(stuffed + b".\r\n", "250")
        self.messages += 1
        self.has_mail = self.has_recipients = False
        found = self.server._parts.store.content(queued(self.server)[-1].uid).read()
        assert found.endswith(b"\r\n\r\n" + content.partition(b"\r\n\r\n")[2])

    @precondition(lambda self: self.is_open)
    @rule(cut=st.integers(0, 20))
    def chunks(self, cut: int) -> None:
        content = b"Subject: y\r\n\r\ny\r\n"
        first, last = content[:cut], content[cut:]
        octets = b"BDAT %d\r\n%sBDAT %d LAST\r\n%s" % (len(first), first, len(last), last)
        if not self.has_recipients:
            self.ask(octets, "503", "503")
            return
        self.ask(octets, "250", "250")
        self.messages += 1
        self.has_mail = self.has_recipients = False

    @precondition(lambda self: self.is_open)
    @rule(
        line=st.sampled_from(
            [(b"NOOP", "250"), (b"VRFY x", "252"), (b"HELP", "214"), (b"WHAT", "500"), (b"NOOP x", "250")]
        )
    )
    def others(self, line: tuple[bytes, str]) -> None:
        self.ask(line[0] + b"\r\n", line[1])

    @precondition(lambda self: self.is_open)
    @rule()
    def rset(self) -> None:
        self.ask(b"RSET\r\n", "250")
        self.has_mail = self.has_recipients = False

    @precondition(lambda self: self.is_open)
    @rule(seconds=st.sampled_from([1.0, 30.0, 200.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        async def advance() -> list[str]:
            self.clock.advance(seconds)
            return await self.wire.ask(b"")

        self.idle_s += seconds
        replies = self.loop.run_until_complete(advance())
        if self.idle_s > 310.0:
            assert [reply[:3] for reply in replies] == ["421"] and not self.is_open
        elif self.idle_s < 290.0:
            assert replies == [] and self.is_open

    @rule()
    def all_that_was_taken_is_there(self) -> None:
        assert len(queued(self.server)) == self.messages


SessionMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSession = SessionMachine.TestCase
