"""Replies as text, as programs give them: lines put together until one ends the reply."""

from __future__ import annotations

import re

from ..smtp.reply import Reply

_LINE = re.compile(r"([2-5][0-9][0-9])(?:([ -])(?:([245]\.\d{1,3}\.\d{1,3})(?: |$))?(.*))?\Z", re.S)
_MAX_WAITING = 1000


class ReplyLines:
    """Lines of replies that are not complete yet, by session."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[str]] = {}

    def take(self, client_id: str, text: str | bytes) -> Reply | None:
        """A line; the reply that it completes, or None. ValueError for line ends, and for what is no reply."""
        line = text.decode("utf-8") if isinstance(text, (bytes, bytearray)) else text
        if not isinstance(line, str):
            raise TypeError(f"send_to_client: {text!r} is not allowed: give a Reply, str or bytes")
        if any(c in line for c in "\r\n\0"):
            raise ValueError(f"send_to_client: {line!r} has a line end: give one line at a time, or a Reply")
        found = _LINE.match(line)
        if found is None:
            raise ValueError(f"send_to_client: {line!r} is no reply: it begins with a code, such as '250 OK'")
        code, separator, enhanced, rest = found.groups()
        if enhanced is not None and enhanced[0] != code[0]:
            enhanced, rest = None, f"{enhanced} {rest}"
        if separator == "-":
            if len(self._waiting) >= _MAX_WAITING:
                self._waiting.pop(next(iter(self._waiting)))
            self._waiting.setdefault(client_id, []).append(rest)
            return None
        lines = [*self._waiting.pop(client_id, []), *([rest] if rest else [])]
        return Reply(int(code), enhanced, *lines)
