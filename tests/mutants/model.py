"""A planted fault: which text of which file becomes what, and which tests are expected to notice."""

from __future__ import annotations

from dataclasses import dataclass

SIMULATION = "simulation"


@dataclass(frozen=True, slots=True)
class Edit:
    """In `file` (below src/pillarbox) the text `old`, which occurs once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `finders` are arguments of pytest (files, node ids, -k EXPRESSION), or SIMULATION alone."""

    name: str
    edits: tuple[Edit, ...]
    finders: tuple[str, ...]


def fault(name: str, file: str, old: str, new: str, *finders: str) -> Fault:
    """Returns a Fault of one edit."""
    return Fault(name, (Edit(file, old, new),), finders)
