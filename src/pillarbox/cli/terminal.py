"""Text and JSON of the command line: what a peer wrote never reaches a terminal as a control sequence (CWE-150)."""

from __future__ import annotations

import re
import sys
from typing import Any

import orjson

from ..log.record import escape_controls

# Inside a string of JSON: C1 controls, DEL, and what turns the direction of text around. JSON itself escapes C0.
_UNSAFE_IN_JSON = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def say(text: object, *, is_error: bool = False) -> None:
    """Prints one line to stdout, or to stderr, with its control characters escaped."""
    print(escape_controls(str(text)), file=sys.stderr if is_error else sys.stdout)


def json_text(value: Any, *, is_indented: bool = True) -> str:
    """Returns `value` as JSON that no terminal takes for a command."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 if is_indented else 0).decode()
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
