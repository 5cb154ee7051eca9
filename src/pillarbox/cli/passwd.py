"""`pillarbox passwd`: accounts for --auth-file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import OptionError, StoreError


def passwd(
    name: Annotated[str, typer.Argument(help="User name.")],
    file: Annotated[str, typer.Option("--file", metavar="FILE", help="The file for --auth-file.")],
    may_send_as: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Address, @domain or *; repeat for more. [default: itself]"),
    ] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the account.")] = False,
) -> None:
    """Set an account's password (scrypt), or remove the account. A running server sees it at once."""
    from ..server.accounts import format_line, hash_password, update_file

    try:
        if delete:
            if not update_file(file, name, None):
                raise StoreError(f"no account {name!r} in {file}")
            print(f"removed {name}")
            return
        password = (
            sys.stdin.readline().rstrip("\r\n")
            if password_stdin
            else typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        )
        if not password:
            raise OptionError("an empty password lets everyone in: give one")
        was_there = update_file(file, name, format_line(name, hash_password(password), tuple(may_send_as or ())))
    except ValueError as error:
        raise OptionError(str(error)) from None
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}") from None
    print(f"{'changed' if was_there else 'added'} {name}")
