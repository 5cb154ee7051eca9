"""On which line each key of a TOML text stands: for faults that name their place."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

_OPENING, _CLOSING = "[{", "]}"


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each statement of a TOML text that is right: a key with its whole value, or a table's header."""
    begin, depth, so_far, quotes = 0, 0, "", ""
    for number, row in enumerate(text.splitlines(keepends=True), 1):
        if not so_far:
            if re.match(r"\s*(#|$)", row):
                continue
            begin = number
        so_far += row
        place = 0
        while place < len(row):
            if quotes:
                # Within a string: an escaped character ends nothing.
                if quotes[0] == '"' and row[place] == "\\":
                    place += 2
                elif row.startswith(quotes, place):
                    place += len(quotes)
                    quotes = ""
                else:
                    place += 1
                continue
            found = next((q for q in ('"""', "'''", '"', "'") if row.startswith(q, place)), "")
            if found:
                quotes = found
                place += len(found)
                continue
            if row[place] == "#":
                break
            depth += (row[place] in _OPENING) - (row[place] in _CLOSING)
            place += 1
        if not quotes and depth == 0:
            yield begin, so_far
            so_far = ""


def key_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line of each key, and of each `[[table]]` by (name, number) and of the keys in it, in a TOML text that is right.

    The parser does not tell: so the text is cut into statements, and each is given to it alone.
    """
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[str, int] = {}
    table: tuple[str | int, ...] = ()
    for line, statement in _statements(text):
        try:
            found = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            table = _header(found, counts, is_array=statement.lstrip().startswith("[["))
            for length in range(1, len(table) + 1):
                lines.setdefault(table[:length], line)
            continue
        for key, value in found.items():
            lines.setdefault((*table, key), line)
            if isinstance(value, list):
                for number in range(len(value)):
                    lines.setdefault((*table, key, number), line)
    return lines


def _header(found: Mapping[str, Any], counts: dict[str, int], *, is_array: bool) -> tuple[str | int, ...]:
    path: list[str] = []
    inner: Any = found
    while isinstance(inner, Mapping) and inner:
        name = next(iter(inner))
        path.append(name)
        inner = inner[name]
        if isinstance(inner, list):
            inner = inner[0]
    name = path[0]
    if is_array and len(path) == 1:
        counts[name] = counts.get(name, -1) + 1
    return (name, counts[name], *path[1:]) if name in counts else tuple(path)
