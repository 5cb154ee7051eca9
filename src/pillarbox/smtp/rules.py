"""Rules: bounds of the protocol, how lines are read by them, and the lines that were read so and will come again."""

from __future__ import annotations

from dataclasses import dataclass, field

from .command import Command, Grammar

_STRICT, _LENIENT = Grammar(is_strict=True), Grammar(is_strict=False)
# Commands whose meaning is in their line alone: what is right in one session is right in all, as far as order allows.
LASTING = frozenset(("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT"))
MAX_KNOWN = 1024
MAX_KNOWN_BYTES = 256


@dataclass(slots=True)
class Rules:
    """Bounds of the protocol; they do not change, others take their place. Lengths in octets, CRLF counted."""

    # RFC 5321 section 4.5.3.1.4 says 512; the parameters of the extensions add to that, and Postfix takes 2,048.
    max_line_bytes: int = 2048
    # RFC 4954 section 4: 12,288 octets for the lines of an AUTH exchange.
    max_auth_line_bytes: int = 12288
    max_small_chunks: int = 1000
    normalise_bare: bool = False
    accept_bare_lf_commands: bool = False
    is_strict: bool = False
    local_domain: str = ""
    # The device profile: repairs in commands, no EHLO or HELO needed. Goes with normalise_bare and accept_bare_lf_commands.
    is_device: bool = False
    is_development: bool = False
    # How commands are read by these rules.
    grammar: Grammar = field(init=False, repr=False, compare=False)
    # Whole lines with their CRLF, and what they say: clients and senders repeat themselves. Sessions share these
    # commands, so nobody changes one.
    known: dict[bytes, Command] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain = _STRICT if self.is_strict else _LENIENT
        has_more = self.local_domain or self.is_device
        more = Grammar(self.is_strict, self.local_domain.encode(), self.is_device, self.is_development)
        self.grammar = more if has_more else plain

    def remember(self, line: bytes, command: Command) -> None:
        """Read by these rules, without error and parameters. Bounded: 1,024 lines, of 256 octets at most."""
        if len(line) <= MAX_KNOWN_BYTES:
            if len(self.known) >= MAX_KNOWN:
                self.known.clear()
            self.known[line] = command
            command.line = line
