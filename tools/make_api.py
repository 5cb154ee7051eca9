"""Generates docs/reference/api.md: the public classes, their methods and fields, from signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pillarbox
from pillarbox import testing
from pillarbox.client import Client
from pillarbox.events.session import Endpoint, Session
from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope, EnvelopeRecipient
from pillarbox.queue.model import Attempt, Query, Recipient, View

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "api.md"
SECTIONS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("Server", (pillarbox.MailServer,)),
    ("Answers", (pillarbox.Reply, pillarbox.Eat, pillarbox.Reject, pillarbox.Defer)),
    ("Handlers", (pillarbox.Handler, pillarbox.Item)),
    ("Plugins", (pillarbox.Plugin,)),
    ("What events carry", (Session, Endpoint, Envelope, EnvelopeRecipient, Content)),
    ("The queue", (Query, View, Recipient, Attempt)),
    ("A client of the queue", (pillarbox.connect, Client)),
    ("Testing", tuple(getattr(testing, name) for name in testing.__all__)),
    (
        "Errors",
        tuple(
            value
            for name in dir(pillarbox)
            if isinstance(value := getattr(pillarbox, name), type)
            and issubclass(value, Exception)
            and name not in ("Reject", "Defer")
        ),
    ),
)


def text_of(thing: Any) -> str:
    """The docstring as one paragraph per blank line."""
    # The options of MailServer have a page of their own.
    text = (inspect.getdoc(thing) or "").partition("\n\nRaises OptionError, with a line for each")[0]
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def signature_of(thing: Any, name: str) -> str:
    """`name(arguments) -> type`, in one line, long option lists cut."""
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return f"{name}(...)"
    text = re.sub(r"\bself, |\(self\)|\bcls, |\(cls\)", lambda found: "()" if found[0][-1] == ")" else "", text)
    text = re.sub(r"'([^']*)'", r"\1", text) if "Literal" not in text else text
    text = re.sub(r"<[\w.]+ object at 0x\w+>|<factory>", "...", text)
    return f"{name}{text}"


def members(cls: type) -> list[tuple[str, str]]:
    """(signature or field, first paragraph) of each public member, in the order of the source."""
    rows: list[tuple[str, str]] = []
    fields = {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    for name, field in fields.items():
        if not name.startswith("_"):
            rows.append((f"{name}: {field.type}", ""))
    for base in (cls, *(one for one in cls.__mro__[1:] if one.__module__.startswith("pillarbox"))):
        for name, value in vars(base).items():
            if (
                name.startswith("_")
                or name in fields
                or any(row[0].startswith((f"{name}(", f"{name}:")) for row in rows)
            ):
                continue
            if isinstance(value, property):
                rows.append((f"{name}: {inspect.signature(value.fget).return_annotation}", text_of(value)))  # type: ignore[arg-type]
            elif isinstance(value, (staticmethod, classmethod)) or inspect.isfunction(value):
                function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
                prefix = "async " if inspect.iscoroutinefunction(function) else ""
                rows.append((prefix + signature_of(function, name), text_of(function)))
    return rows


def section(thing: Any) -> str:
    """A heading, the docstring, and a table of members."""
    name = thing.__name__
    module = thing.__module__
    where = f"`from pillarbox import {name}`" if hasattr(pillarbox, name) else f"`{module}`"
    lines = [f"### {name}", "", where, "", text_of(thing), ""]
    if not isinstance(thing, type):
        return "\n".join([*lines, f"`{signature_of(thing, name)}`", ""])
    rows = [] if issubclass(thing, Exception) and name not in ("Reject", "Defer") else members(thing)
    if rows:
        lines += ["| member | |", "|---|---|"]
        for left, right in rows:
            lines.append(
                f"| `{left}` | {right}".replace("|", "\\|")
                .replace("\\|", "|", 1)
                .replace("` \\| ", "` | ")
                .replace("\n\n", " ")
                + " |"
            )
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [
        "# Python API\n\nGenerated from signatures and docstrings by `make docs`. Options are in [options](options.md), events and their classes in\n"
        "[events](events.md).\n"
    ]
    for title, things in SECTIONS:
        parts.append(f"## {title}\n")
        parts += [section(thing) for thing in things]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    sys.stdout.write("docs/reference/api.md\n")
