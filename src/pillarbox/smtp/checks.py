"""Checks of a command by what only its session can know: what is offered, what has come before it, what stands behind it."""

from __future__ import annotations

from collections import Counter

from .command import Command
from .device import LF_COMMANDS
from .extension import Facts
from .framing import LineBuffer
from .reply import Reply
from .rules import Rules

# Chunks this small are worth counting: millions of them are work without mail (hostile row 41).
_SMALL_CHUNK = 1024

EARLY_CONTENT = Reply(503, "5.5.0", "Data behind DATA before the 354 reply", reason="sequence")
_BEHIND_STARTTLS = Reply(554, "5.5.0", "Nothing may follow STARTTLS before its reply", reason="protocol-abuse")
_SMALL_CHUNKS = Reply(421, "4.7.0", "Too many small chunks", reason="protocol-abuse")


class Checks:
    """The part of a ServerProtocol that gives commands their error, or lets them be."""

    facts: Facts
    rules: Rules
    _input: LineBuffer
    _chunk_total = 0
    _small_chunks = 0
    _owed: object
    _repairs: Counter[str] | None = None

    @property
    def buffered_bytes(self) -> int:
        """Octets that wait to be parsed; the caller stops reading when they grow."""
        return len(self._input)

    @property
    def owes_reply(self) -> bool:
        """True while `respond` has to be called before the next event."""
        return self._owed is not None

    def note_repairs(self, *words: str) -> None:
        """Counts what the device profile has mended."""
        if self._repairs is None:
            self._repairs = Counter()
        self._repairs.update(words)

    @property
    def repairs(self) -> dict[str, int]:
        """How often the device profile mended what, in words."""
        repairs = dict(self._repairs or ())
        if self._input.bare_lines and self.rules.is_device:
            repairs[LF_COMMANDS] = self._input.bare_lines
        return repairs

    def _check_mail(self, command: Command) -> None:
        size = command.parameters.get("SIZE")
        # RFC 1870 section 6.1
        if size is not None and size > self.facts.max_size_bytes:
            command.error = too_large(self.facts)

    def _check_data(self, command: Command) -> None:
        # RFC 2920 section 3.1: DATA ends a command group. What stands behind it was sent blindly: never content, and
        # never commands either.
        if len(self._input):
            command.error, command.is_abuse = EARLY_CONTENT, True

    def _check_starttls(self, command: Command) -> None:
        if self.facts.is_tls:
            command.error = Reply(503, "5.5.1", "TLS is on already")
        elif not self.facts.tls_offered:
            command.error = Reply(502, "5.5.1", "STARTTLS is not offered here")
        elif len(self._input):
            # RFC 3207 section 4.2, CVE-2011-0411: plaintext behind STARTTLS must never run under TLS.
            command.error, command.is_abuse = _BEHIND_STARTTLS, True

    def _check_auth(self, command: Command) -> None:
        facts = self.facts
        if facts.is_authenticated:
            command.error = Reply(503, "5.5.1", "Authenticated already")
        elif not facts.auth_mechanisms:
            command.error = Reply(502, "5.5.1", "AUTH is not offered here")
        elif not (facts.is_tls or facts.auth_in_clear):
            # RFC 4954 section 4
            command.error = Reply(538, "5.7.11", "Encryption required for authentication: use STARTTLS")
        elif command.mechanism not in facts.auth_mechanisms:
            command.error = Reply(504, "5.5.4", "Mechanism not offered: " + " ".join(facts.auth_mechanisms))

    def _check_bdat(self, command: Command) -> None:
        if command.is_abuse:
            return
        size, room = command.size_bytes, self.facts.max_size_bytes
        if not command.error:
            self._small_chunks += size < _SMALL_CHUNK and not command.is_last
            if self._small_chunks > self.rules.max_small_chunks:
                command.error, command.is_abuse = _SMALL_CHUNKS, True
            elif self._chunk_total + size > room:
                command.error = too_large(self.facts)
        if command.error and size > 2 * room:
            # Nobody reads that much only to throw it away.
            command.is_abuse = True


def too_large(facts: Facts) -> Reply:
    """RFC 1870 section 6.1, and for content that was not announced."""
    return Reply(552, "5.3.4", f"Message larger than {facts.max_size_bytes} octets")


CHECKS = {
    "MAIL": Checks._check_mail,
    "DATA": Checks._check_data,
    "STARTTLS": Checks._check_starttls,
    "AUTH": Checks._check_auth,
    "BDAT": Checks._check_bdat,
}
