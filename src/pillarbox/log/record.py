"""Log lines with fields: one record class, one table row for each kind of line, text and JSON made from the same fields.

Embedding programs see ordinary `logging` records: the logger's name, the level, the message, and the fields as attributes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from functools import lru_cache
from typing import Any

import orjson

from .fields import FIELDS

LEVEL_NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
# Controls, C1, line separators, and what turns the direction of text around (CWE-117).
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+").fullmatch
# A value that contains the name of a field with "=" could pass for that field.
_FORGED = re.compile(rf"({'|'.join(map(re.escape, FIELDS))})=")
_IN_BRACKETS = frozenset(name for name, field in FIELDS.items() if field.is_address)


def escape_controls(text: str) -> str:
    r"""Control characters become \xNN or \uNNNN."""
    return _CONTROL.sub(lambda m: m.group().encode("unicode_escape", "surrogatepass").decode("ascii"), text)


@lru_cache(maxsize=4096)
def _quoted(value: str) -> str:
    if _PLAIN(value):
        return value
    text = escape_controls(value.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{_FORGED.sub(lambda m: m[1] + chr(92) + "x3d", text)}"'


def format_value(name: str, value: Any) -> str:
    """A field's value in a text line: as it is, or in quotes where it has blanks, quotes, "=" or no character."""
    if value.__class__ is str:
        if name in _IN_BRACKETS:
            quoted = _quoted(value)
            return f"<{quoted}>" if value else "<>"
        return _quoted(value)
    if isinstance(value, (list, tuple)):
        return ",".join([format_value(name, one) for one in value])
    if value.__class__ is float:
        return f"{value:.6g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(maxsize=256)
def short_tls(description: str) -> str | None:
    """Version and cipher as log lines have them, from the text of Received fields; None without TLS."""
    return description.replace(" with cipher ", "/") or None


def format_fields(fields: dict[str, Any]) -> str:
    """`name=value` for each field that is not None."""
    return " ".join([f"{name}={format_value(name, value)}" for name, value in fields.items() if value is not None])


def format_json(line: dict[str, Any]) -> bytes:
    """One JSON object without None, in one line that no terminal takes for a command."""
    line = {name: value for name, value in line.items() if value is not None}
    try:
        octets = orjson.dumps(line)
    except TypeError:
        # A lone surrogate, or a value of a plugin's own type.
        return json.dumps(line, default=str).replace("\x7f", "\\u007f").encode()
    if octets.isascii() and b"\x7f" not in octets:
        return octets
    return _CONTROL.sub(lambda m: f"\\u{ord(m[0]):04x}", octets.decode()).encode()


class LineRecord(logging.LogRecord):
    """A record of a kind. Its message is made only when a formatter asks."""

    kind: Kind
    fields: dict[str, Any]

    def __init__(self, kind: Kind, fields: dict[str, Any]) -> None:
        # Not LogRecord.__init__: that looks the caller up and costs as much as the rest of the line.
        own = self.__dict__
        own.update(fields)
        own.update(kind.template)
        now = self.created = time.time()
        self.msecs = now % 1 * 1000
        self.relativeCreated = (now - _START) * 1000
        self.process = os.getpid()
        self.thread = threading.get_ident()
        self.kind = kind
        self.fields = fields

    def getMessage(self) -> str:
        """The kind's name and its fields."""
        return f"{self.kind.name} {format_fields(self.fields)}"


_START = time.time()


class Kind:
    """One kind of line. `fields` in the order of the line: what a peer chooses comes last.

    `when` and `fields` are the documentation (docs/reference/log.md); `write` is the one way a line of this kind is written.
    """

    __slots__ = ("_logger", "fields", "level", "logger", "name", "template", "when")

    def __init__(self, name: str, logger: str, level: int, when: str, fields: str) -> None:
        self.name, self.logger, self.level, self.when, self.fields = name, logger, level, when, tuple(fields.split())
        self._logger = logging.getLogger(logger)
        self.template = {
            "name": logger, "msg": name, "args": None, "levelname": logging.getLevelName(level), "levelno": level,
            "pathname": __file__, "filename": "record.py", "module": "record", "exc_info": None, "exc_text": None,
            "stack_info": None, "lineno": 0, "funcName": name, "threadName": "MainThread", "processName": "MainProcess",
            "taskName": None,
        }  # fmt: skip

    @property
    def is_enabled(self) -> bool:
        """False where the line would not be written: then its fields need not be collected."""
        return self._logger.isEnabledFor(self.level)

    def write(self, fields: dict[str, Any]) -> None:
        """Writes the line, with `fields` in the order of the table; None is left out."""
        if self._logger.isEnabledFor(self.level):
            self._logger.handle(LineRecord(self, fields))
