"""Generates docs/man from the command itself: a page for `pillarbox`, one for each of its commands, one for sendmail.

Run by `make docs`; CI checks that what is committed is what the code says. The wheel installs them under share/man/man1.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer.main

from pillarbox import __version__
from pillarbox.cli.main import app

TARGET = Path(__file__).resolve().parent.parent / "docs" / "man"
SENDMAIL = [
    ("-t", "Recipients from To, Cc and Bcc too; Bcc is taken out."),
    ("-i, -oi", "A line with a dot alone does not end the message."),
    ("-f ADDRESS, -r ADDRESS", "The reverse-path; <> for the null one."),
    ("-F NAME", "The full name for a From field, where the message has none."),
    ("-N never | success,failure,delay", "When a notice is wanted (RFC 3461)."),
    ("-R full | hdrs", "How much of the message a notice shall have."),
    ("-V TEXT", "The envelope identifier of the notice."),
    ("-bs", "SMTP on standard input and output."),
    ("-bp", "Show the queue, as mailq does."),
    ("-q", "Try everything in the queue now."),
    ("-bi", "Nothing, as newaliases does here."),
]


def text(words: str) -> str:
    """Safe within a page: backslashes, dashes, and dots and quotes at the beginning of a line."""
    words = re.sub(r"\s+", " ", words).strip().replace("\\", "\\e").replace("-", "\\-")
    return ("\\&" + words) if words[:1] in (".", "'") else words


def head(name: str, what: str) -> list[str]:
    """Title and name."""
    title = name.upper().replace(" ", "-")
    return [
        f'.TH {text(title)} 1 "" "Pillarbox {__version__}" "Pillarbox"',
        ".SH NAME",
        f"{text(name.replace(' ', '-'))} \\- {text(what)}",
    ]


def options_of(command: Any) -> list[str]:
    """The options and arguments."""
    lines = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "argument":
            label = f"\\fI{text(parameter.metavar or parameter.name.upper())}\\fR"
        else:
            names = ", ".join(f"\\fB{text(one)}\\fR" for one in [*parameter.opts, *parameter.secondary_opts])
            value = "" if parameter.is_flag else f" \\fI{text(parameter.metavar or 'VALUE')}\\fR"
            label = names + value
        lines += [".TP", label, text(getattr(parameter, "help", None) or "")]
    return [".SH OPTIONS", *lines] if lines else []


def first_line(command: Any) -> str:
    """What it is, in a sentence."""
    return (command.help or command.short_help or "").strip().split("\n")[0].rstrip(".")


def pages() -> dict[str, str]:
    """File name and text of each."""
    root = typer.main.get_command(app)
    found: dict[str, str] = {}

    def walk(name: str, command: Any) -> None:
        lines = head(name, first_line(command) or "a programmable mail server")
        inner = getattr(command, "commands", {})
        usage = "\\fICOMMAND\\fR ..." if inner else "[\\fIOPTIONS\\fR]"
        lines += [".SH SYNOPSIS", f"\\fB{text(name)}\\fR {usage}"]
        if command.help:
            lines += [".SH DESCRIPTION", text(command.help)]
        if inner:
            lines += [".SH COMMANDS"]
            for one, child in inner.items():
                lines += [".TP", f"\\fB{text(one)}\\fR", text(first_line(child)) + "."]
        lines += options_of(command)
        lines += [
            ".SH EXIT STATUS",
            "0: done. 1: refused, or faults found. 2: usage. Errors are one line that says what to do.",
        ]
        others = [f"{name} {one}" for one in inner] if inner else ["pillarbox"]
        lines += [".SH SEE ALSO", ", ".join(f"\\fB{text(one.replace(' ', '-'))}\\fR(1)" for one in others)]
        found[f"{name.replace(' ', '-')}.1"] = "\n".join(lines) + "\n"
        for one, child in inner.items():
            walk(f"{name} {one}", child)

    walk("pillarbox", root)
    found["pillarbox-sendmail.1"] = sendmail_page()
    return found


def sendmail_page() -> str:
    """Its options are not typer's."""
    lines = head("pillarbox sendmail", "take a message on standard input as /usr/sbin/sendmail does")
    lines += [".SH SYNOPSIS", "\\fBpillarbox sendmail\\fR [\\fIOPTIONS\\fR] [\\fIRECIPIENT\\fR]...", ".SH DESCRIPTION"]
    lines += [
        text("Hands the message to the server at PILLARBOX_SENDMAIL (HOST:PORT), else to 127.0.0.1:25, by SMTP. Linked to "
             "/usr/sbin/sendmail, mailq or newaliases it knows itself by that name. Other options of sendmail are taken and mean nothing."),
        ".SH OPTIONS",
    ]  # fmt: skip
    for option, words in SENDMAIL:
        lines += [".TP", f"\\fB{text(option)}\\fR", text(words)]
    lines += [
        ".SH EXIT STATUS",
        "0: queued. 64: usage. 65: data. 69: refused. 75: no server, or it said later: try again.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the pages, and removes those of commands that are no more."""
    TARGET.mkdir(parents=True, exist_ok=True)
    made = pages()
    for path in TARGET.glob("*.1"):
        if path.name not in made:
            path.unlink()
    for name, page in made.items():
        (TARGET / name).write_text(page)
    print(f"docs/man: {len(made)} pages")


if __name__ == "__main__":
    main()
