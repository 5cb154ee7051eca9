"""`pillarbox dev`: a capture inbox for development."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..daemon.logs import LEVELS


def dev(
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Where to listen; repeat for more. [default: 127.0.0.1:1025]"),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|off", help="The inbox and its API. [default: 127.0.0.1:8025, or any free port]"
        ),
    ] = None,
    admin_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further Host header value (see admin_hosts) for the inbox, such as mail or mail:8025; repeat for more.",
        ),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Keep the inbox there. [default: it goes when the server goes]")
    ] = None,
    keep: Annotated[int, typer.Option(metavar="N", help="Messages in the inbox; the oldest makes room.")] = 1000,
    relay: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="Where a message goes that you release, and no other.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="A fault for clients, such as 'defer at=rcpt to=*@slow.test rate=0.2'; repeat for more.",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Offer STARTTLS, with a certificate made on the spot.")] = False,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="PEM certificate for STARTTLS.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="PEM private key.")] = None,
    auth: Annotated[bool, typer.Option("--auth", help="Offer AUTH, and take any user and password.")] = False,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help=", ".join(LEVELS))] = "info",
) -> None:
    """Catch mail: take everything for everyone, deliver nothing, show it in a browser and through an API."""
    from ..daemon.dev import DevOptions
    from ..daemon.dev import dev as run

    given = DevOptions(
        listen=listen or (),
        admin=admin,
        admin_hosts=admin_host or (),
        data_dir=data_dir,
        keep=keep,
        relay=relay or (),
        faults=fault or (),
        is_tls=tls,
        tls_cert=tls_cert,
        tls_key=tls_key,
        takes_any_login=auth,
        log_level=log_level,
    )
    run(given, _admin)


def _admin(server: Any, address: tuple[str, int] | None, hosts: Any) -> Any:
    from ..admin.server import Admin

    return Admin(server, address, hosts=hosts, is_open=True)
