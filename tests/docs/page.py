"""The code blocks of a documentation page, with the directives that HTML comments before them give.

<!-- test: hidden
commands that the reader does not need to see
-->
<!-- test: file /etc/pillarbox/pillarbox.toml -->   the next block is the content of that file
<!-- test: skip REASON -->                          the next block is not run
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PIECE = re.compile(
    r"<!-- test: (?P<directive>\w+)\s?(?P<argument>.*?)-->|^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```", re.S | re.M
)
# Output, and diagrams: nothing to run.
_SHOWN = ("", "text", "mermaid", "diff", "sql", "json")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page. `kind` is its language; "hidden" for a directive's own commands. `target` is the file it becomes."""

    line: int
    kind: str
    text: str
    target: str | None = None
    skipped: str | None = None


def blocks(path: Path) -> list[Block]:
    """Returns the blocks that a test runs, in order. ValueError for a directive without a block."""
    text = path.read_text(encoding="utf-8")
    found: list[Block] = []
    target = skipped = None
    for piece in _PIECE.finditer(text):
        line = text.count("\n", 0, piece.start()) + 1
        if directive := piece["directive"]:
            argument = piece["argument"].strip()
            if directive == "hidden":
                found.append(Block(line, "hidden", argument))
            elif directive == "file":
                target = argument
            elif directive == "skip":
                skipped = argument or "no reason"
            else:
                raise ValueError(f"{path}:{line}: invalid directive {directive!r}: expected hidden, file or skip")
            continue
        if piece["language"] not in _SHOWN or target:
            found.append(Block(line, piece["language"], piece["text"], target, skipped))
        target = skipped = None
    if target or skipped:
        raise ValueError(f"{path}: a directive at the end has no block")
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell block: lines, joined where one ends with a backslash or opens a quote or a here-document."""
    found: list[str] = []
    lines = text.splitlines()
    while lines:
        command = lines.pop(0)
        while lines and (command.endswith("\\") or _is_open(command)):
            command += "\n" + lines.pop(0)
        if command.strip() and not command.lstrip().startswith("#"):
            found.append(command)
    return found


def _is_open(command: str) -> bool:
    here = re.search(r"<<-?\s*['\"]?(\w+)['\"]?", command)
    if here and not re.search(rf"^\s*{here[1]}$", command, re.M):
        return True
    plain = re.sub(r"\\.|(?:^|\s)#[^\n]*", "", command) if "'" not in command and '"' not in command else command
    quote = ""
    for character in re.sub(r"\\.", "", plain):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#":
            break
    return bool(quote)
