"""Replies as text, as programs give them: lines put together until one ends the reply."""

from __future__ import annotations

import re

from ..smtp.reply import Reply, parse_reply

_LINE = re.compile(r"([2-5][0-9][0-9])(?:([ -])(.*))?\Z", re.S)


class ReplyLines:
    """Lines of replies that are not complete yet, by session."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[str, list[str]]] = {}

    def forget(self, client_id: str) -> None:
        """What was begun there is over."""
        self._waiting.pop(client_id, None)

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
        code, separator, rest = found.groups()
        begun, lines = self._waiting.get(client_id, (code, []))
        if begun != code:
            raise ValueError(f"send_to_client: {line!r} does not go on from {begun}: one reply has one code")
        if separator == "-":
            self._waiting[client_id] = (code, [*lines, rest])
            return None
        self.forget(client_id)
        if lines:
            # As they were given, each with its own enhanced status code or none.
            return Reply(int(code), None, *lines, rest or "")
        return parse_reply(line)
