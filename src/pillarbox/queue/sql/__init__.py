"""Schema, named queries and migrations, one folder per database."""

from __future__ import annotations

import re
from importlib import resources


def named_queries(folder: str) -> dict[str, str]:
    """The queries of `<folder>/queries.sql`, by the name in the `-- name:` line above each.

    One goes on as another that stands before it, where its last line is `-- then: NAME`.
    """
    text = resources.files(__package__).joinpath(folder, "queries.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)\s*$", text, flags=re.M)
    found: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        goes_on = re.search(r"^-- then: (\w+)\s*\Z", body, re.M)
        found[name] = _bare(body) + (f"\n{found[goes_on[1]]}" if goes_on else "")
    return found


def _bare(body: str) -> str:
    lines = (line for line in body.splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(lines).strip().rstrip(";")


def migrations(folder: str) -> list[str]:
    """The migrations of a database, in order: file `0001_*.sql` brings version 1."""
    files = [f for f in resources.files(__package__).joinpath(folder).iterdir() if re.match(r"\d{4}_.*\.sql\Z", f.name)]
    return [f.read_text("utf-8") for f in sorted(files, key=lambda f: f.name)]
