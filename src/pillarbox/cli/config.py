"""`pillarbox config`: check a file, show what is in force and where it came from, write a commented one."""

from __future__ import annotations

import json
import os
import pwd
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import OptionError
from .terminal import say

config_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Check, show and begin a configuration file."
)

File = Annotated[
    str | None, typer.Argument(metavar="[FILE]", help="[default: $PILLARBOX_CONFIG, /etc/pillarbox/pillarbox.toml]")
]


@config_app.command()
def check(file: File = None) -> None:
    """Say everything that is wrong with a configuration, a line for each fault; exit 1 when there is any."""
    from ..config.usual import find_file
    from ..daemon.config import ConfigError
    from ..daemon.loading import check as look

    path = find_file(file, os.environ)
    if path is None:
        raise OptionError("there is no configuration file: name one, or write one with `pillarbox config init FILE`")
    try:
        warnings = look(path, os.environ)
    except ConfigError as error:
        for fault in error.faults:
            print(fault)
        count = len(error.faults)
        print(f"{count} fault{'' if count == 1 else 's'} in {path}", file=sys.stderr)
        raise typer.Exit(1) from None
    for warning in warnings:
        say(f"warning: {warning}", is_error=True)
    print(f"{path}: no faults")


@config_app.command()
def show(
    file: File = None,
    everything: Annotated[bool, typer.Option("--all", help="Defaults, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show the options in force, and where each came from: file and line, environment, or default. Secrets are not shown."""
    from ..daemon.config import as_text, shown
    from ..daemon.serve import read_config

    config = read_config(file, {})
    rows = [row for row in shown(config) if everything or as_json or row[2] != "default"]
    if as_json:
        print(json.dumps([{"option": name, "value": value, "from": source} for name, value, source in rows], indent=2))
        return
    if not rows:
        print("every option has its default: --all shows them")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("OPTION", "VALUE", "FROM"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(row[0], as_text(row[1]), row[2])
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)
    print("a flag of `serve` wins over the environment, that over the file, that over the default")


@config_app.command()
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; - for stdout.")] = "pillarbox.toml",
    user: Annotated[
        str, typer.Option("--user", metavar="USER", help="The user of the service, whose group may read the file.")
    ] = "pillarbox",
) -> None:
    """Write a commented file with every option and its default; never over one that is there."""
    from ..daemon.config import template

    if file == "-":
        print(template(), end="")
        return
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise OptionError(f"{file} is there already: give another name, or - for stdout") from None
    except OSError as error:
        raise OptionError(f"{file} cannot be written: {error.strerror}") from None
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(template())
    say(f"{file} written, {_let_read(file, user)}")
    print(f"change what you need, then `pillarbox config check {file}`")


def _let_read(file: str, user: str) -> str:
    """Gives the file to the group of the service's user, where root writes it and there is such a user; says what it did."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        account = None
    if account is not None and os.geteuid() == 0 and account.pw_uid:
        os.chown(file, 0, account.pw_gid)
        os.chmod(file, 0o640)
        return f"mode 0640: root may write it, and the group of {user} may read it"
    return f"mode 0600: for a service of another user, chgrp its group to {file} and chmod 640 {file}"
