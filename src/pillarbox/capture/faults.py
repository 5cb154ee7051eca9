"""Faults on purpose, so that a client's handling of them can be tried: refuse, defer, delay, drop, by rate or by address."""

from __future__ import annotations

import asyncio
import fnmatch
import random
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from ..errors import OptionError
from ..smtp.reply import Reply, parse_reply

What = Literal["refuse", "defer", "delay", "drop"]
Stage = Literal["connect", "mail", "rcpt", "data", "message"]
_REPLIES = {"refuse": (550, "5.7.1"), "defer": (451, "4.7.1")}


class Server(Protocol):
    """What a fault needs of the server."""

    def disconnect(self, client_id: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what happens, at which step, to whom (patterns with * and ?), and how often (`rate`, 0 to 1).

    `refuse` answers 550, `defer` 451 (or `reply`, a line such as "452 4.2.2 Mailbox full"); `delay` waits `seconds`, then
    goes on; `drop` cuts the connection without a word.
    """

    what: What
    at: Stage = "rcpt"
    to: str = "*"
    sender: str = "*"
    rate: float = 1.0
    seconds: float = 1.0
    reply: str = ""

    def __post_init__(self) -> None:
        if self.what not in get_args(What):
            raise OptionError(f"fault {self.what!r}: there are {', '.join(get_args(What))}")
        if self.at not in get_args(Stage):
            raise OptionError(f"fault {self.what}: at {self.at!r}: there are {', '.join(get_args(Stage))}")
        if not 0 <= self.rate <= 1:
            raise OptionError(f"fault {self.what}: rate {self.rate!r} is a number from 0 to 1")
        if not 0 <= self.seconds <= 3600:
            raise OptionError(f"fault {self.what}: seconds {self.seconds!r} is a number from 0 to 3600")
        self.answer()

    def __str__(self) -> str:
        """As parse_fault reads it."""
        words = [self.what, f"at={self.at}"]
        words += [f"to={shlex.quote(self.to)}"] if self.to != "*" else []
        words += [f"from={shlex.quote(self.sender)}"] if self.sender != "*" else []
        words += [f"rate={self.rate:g}"] if self.rate != 1 else []
        words += [f"seconds={self.seconds:g}"] if self.what == "delay" else []
        return " ".join(words + ([f"reply={shlex.quote(self.reply)}"] if self.reply else []))

    def answer(self) -> Reply | None:
        """What the client is told; None for what tells it nothing."""
        if self.what not in _REPLIES:
            return None
        if not self.reply:
            code, status = _REPLIES[self.what]
            return Reply(code, status, "A fault on purpose")
        try:
            reply = parse_reply(self.reply)
        except ValueError as error:
            raise OptionError(f"fault {self.what}: reply {self.reply!r}: {error}") from None
        if reply.code < 400:
            raise OptionError(f"fault {self.what}: reply {self.reply!r} is none that refuses: 4yz or 5yz")
        return reply


_KEYS = {"at": "at", "to": "to", "from": "sender", "rate": "rate", "seconds": "seconds", "reply": "reply"}


def parse_fault(text: str) -> Fault:
    """`defer at=rcpt to=*@slow.test from=* rate=0.2 seconds=3 reply="452 4.2.2 Mailbox full"`. OptionError says what is wrong."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise OptionError(f"fault {text!r}: {error}") from None
    if not words:
        raise OptionError("a fault is refuse, defer, delay or drop, then at=, to=, from=, rate=, seconds=, reply=")
    fields: dict[str, Any] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in _KEYS or not equals:
            raise OptionError(f"fault {text!r}: {word!r}: there are {', '.join(f'{k}=' for k in _KEYS)}")
        try:
            fields[_KEYS[key]] = float(value) if key in ("rate", "seconds") else value
        except ValueError:
            raise OptionError(f"fault {text!r}: {key} {value!r} is no number") from None
    return Fault(words[0], **fields)  # type: ignore[arg-type]


class Faults:
    """A plugin with a list of faults, which may change at any time: the first that fits is the one that happens."""

    # A delay is part of the plan.
    deadline_s = 3700.0

    def __init__(self, faults: Iterable[Fault | str] = (), *, rng: random.Random | None = None) -> None:
        self.list: list[Fault] = []
        self._rng = rng or random.Random()
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault | str) -> Fault:
        """One more, as an object or as `parse_fault` reads it."""
        made = parse_fault(fault) if isinstance(fault, str) else fault
        self.list.append(made)
        return made

    def clear(self) -> None:
        """None any more."""
        self.list.clear()

    async def _meet(self, server: Server, event: Any, at: Stage, sender: str, recipients: list[str]) -> Reply | None:
        for fault in list(self.list):
            if fault.at != at or not _fits(fault.sender, [sender]) or not _fits(fault.to, recipients):
                continue
            if fault.rate < 1 and self._rng.random() >= fault.rate:
                continue
            if fault.what == "delay":
                await asyncio.sleep(fault.seconds)
                continue
            if fault.what == "drop":
                server.disconnect(event.client_id)
                # Nobody hears it; the message is not taken.
                return Reply(421, "4.3.0", "Dropped on purpose")
            return fault.answer()
        return None

    async def on_connection(self, server: Server, event: Any) -> Reply | None:
        """At connect: before the greeting."""
        return await self._meet(server, event, "connect", "", [])

    async def on_cmd_mail(self, server: Server, event: Any) -> Reply | None:
        """At MAIL."""
        return await self._meet(server, event, "mail", event.address or "", [])

    async def on_cmd_rcpt(self, server: Server, event: Any) -> Reply | None:
        """At RCPT: one recipient."""
        return await self._meet(server, event, "rcpt", *_of(event.session.envelope, event.address))

    async def on_cmd_data(self, server: Server, event: Any) -> Reply | None:
        """At DATA: any of the recipients."""
        return await self._meet(server, event, "data", *_of(event.session.envelope))

    async def on_message(self, server: Server, event: Any) -> Reply | None:
        """At the end of the content."""
        return await self._meet(server, event, "message", *_of(event.envelope))


def _of(envelope: Any, *recipients: str | None) -> tuple[str, list[str]]:
    if envelope is None:
        return "", [r or "" for r in recipients]
    named = [r or "" for r in recipients] or [r.address for r in envelope.recipients]
    return envelope.reverse_path or "", named


def _fits(pattern: str, texts: list[str]) -> bool:
    """A pattern that is not just * wants somebody to fit it."""
    if pattern == "*":
        return True
    # Only * and ? are special: an address literal has brackets of its own.
    pattern = pattern.lower().replace("[", "[[]")
    return any(fnmatch.fnmatchcase(text.lower(), pattern) for text in texts)
