"""The `pillarbox` command. Exit codes: 0 done, 1 refused or faults found, 2 usage."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from .. import __version__
from ..daemon.logs import LEVELS
from ..errors import OptionError, PillarboxError
from . import admin as admin_command
from . import dev, explain, passwd, reload, send, sendmail, top
from .config import config_app
from .ordered import Ordered
from .queue import queue_app
from .terminal import say

app = typer.Typer(
    cls=Ordered,
    # Plain text: the boxes show a type for each switch.
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pillarbox, a programmable mail server.",
)
app.add_typer(queue_app, name="queue")
app.add_typer(config_app, name="config")
app.command("dev")(dev.dev)
app.command("explain")(explain.explain)
app.command("send")(send.send)
app.command("reload")(reload.reload)
app.command("admin")(admin_command.admin)
app.command("events")(admin_command.events)
app.command("top")(top.top)
app.command("passwd")(passwd.passwd)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pillarbox {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Configuration; flags win over it. [default: /etc/pillarbox/pillarbox.toml]"),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Listen here; repeat for more. smtps://HOST:PORT: TLS at once. [default: 127.0.0.1:2525]",
        ),
    ] = None,
    hostname: Annotated[
        str | None, typer.Option(help="Our name in greeting, Received and EHLO. [default: this machine's]")
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:PORT]", help="Smart host; repeat for failover. Without: to the MX of each domain."),
    ] = None,
    direct: Annotated[
        bool | None,
        typer.Option("--direct/--no-direct", help="Without --relay: deliver to the MX, or keep the mail queued."),
    ] = None,
    nameserver: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS[:PORT]", help="Ask this one; repeat for more. [default: system's]"),
    ] = None,
    dnsbl: Annotated[
        list[str] | None, typer.Option(metavar="ZONE", help="Refuse clients on this DNS list; repeat for more.")
    ] = None,
    sender_verify: Annotated[
        bool | None, typer.Option("--sender-verify", help="Refuse senders whose domain takes no mail.")
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN", help="Take mail for this domain from strangers, too; repeat for more."),
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Networks that may relay. [default: loopback]")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the queue. [default: /var/lib/pillarbox or XDG]")
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="PILLARBOX_QUEUE",
            help="A queue on PostgreSQL that many servers share: postgresql://USER@HOST/DATABASE. [default: in data_dir]",
        ),
    ] = None,
    paused: Annotated[bool | None, typer.Option("--paused", help="Keep mail until `pillarbox queue resume`.")] = None,
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM certificate chain: offers STARTTLS.")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="PEM private key.")] = None,
    auth_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Accounts made by `pillarbox passwd`: offers AUTH under TLS.")
    ] = None,
    relay_user: Annotated[str | None, typer.Option(help="AUTH at the smart host.")] = None,
    relay_pass_file: Annotated[str | None, typer.Option(metavar="FILE", help="File with the password for it.")] = None,
    relay_tls: Annotated[str | None, typer.Option(metavar="POLICY", help="none, may, encrypt or verify.")] = None,
    relay_ca: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM CAs for the smart host's certificate.")
    ] = None,
    relay_auth_in_clear: Annotated[
        bool | None, typer.Option("--relay-auth-in-clear", help="Allow AUTH without TLS.")
    ] = None,
    relay_auth_unverified: Annotated[
        bool | None, typer.Option("--relay-auth-unverified", help="Allow AUTH under --relay-tls encrypt.")
    ] = None,
    maxrelay: Annotated[
        int | None, typer.Option(metavar="N", help="Outgoing connections at once. [default: 100]")
    ] = None,
    max_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Largest message. [default: 64MiB]")] = None,
    max_sessions: Annotated[int | None, typer.Option(metavar="N", help="Sessions at once. [default: 10000]")] = None,
    retry_first: Annotated[
        str | None, typer.Option(metavar="TIME", help="Pause after the first try: 90s, 5m. [default: 5m]")
    ] = None,
    retry_longest: Annotated[str | None, typer.Option(metavar="TIME", help="Longest pause. [default: 4h]")] = None,
    expire: Annotated[str | None, typer.Option(metavar="TIME", help="Give up after this. [default: 4d]")] = None,
    delay_notice: Annotated[
        str | None, typer.Option(metavar="TIME", help="Tell senders of a delay after this.")
    ] = None,
    bare_line_ends: Annotated[
        str | None, typer.Option(metavar="POLICY", help="refuse or normalise bare CR and LF in content.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="KIND", help="sqlite; memory and null keep nothing (tests).")
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|off", help="Admin API and dashboard. [default: 127.0.0.1:8025, or any free port]"
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Worker processes; auto: one for each processor. SIGUSR2 restarts them."),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(metavar="USER[:GROUP]", help="Become this user once the ports are bound (start as root)."),
    ] = None,
    grace: Annotated[str | None, typer.Option(metavar="TIME", help="How long SIGTERM lets running work go on.")] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help=", ".join(LEVELS))] = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C. Prints a line with the address once it listens."""
    from ..daemon.serve import serve as run

    given = {
        "listen": listen,
        "hostname": hostname,
        "relay": relay,
        "direct": direct,
        "nameservers": nameserver,
        "dnsbl_enable": bool(dnsbl) or None,
        "dnsbl": dnsbl or None,
        "sender_verify": sender_verify,
        "domains": domain,
        "trust": trust,
        "data_dir": data_dir,
        "queue": queue,
        "paused": paused,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "auth_file": auth_file,
        "relay_user": relay_user,
        "relay_pass_file": relay_pass_file,
        "relay_tls": relay_tls,
        "relay_ca": relay_ca,
        "relay_auth_in_clear": relay_auth_in_clear,
        "relay_auth_unverified": relay_auth_unverified,
        "maxrelay": maxrelay,
        "max_size_bytes": max_size,
        "max_sessions": max_sessions,
        "retry_first_s": retry_first,
        "retry_longest_s": retry_longest,
        "expire_s": expire,
        "delay_notice_s": delay_notice,
        "bare_line_ends": bare_line_ends,
        "store": store,
        "admin": admin,
        "workers": workers,
        "user": user,
        "grace_s": grace,
        "log_level": log_level,
    }
    run(config, {name: value for name, value in given.items() if value is not None}, _admin)


def _admin(server: Any, address: tuple[str, int] | None, hosts: Any) -> Any:
    # Not on top: whoever switches it off need not wait for it.
    from ..admin.server import Admin

    return Admin(server, address, hosts=hosts)


@app.command(
    "sendmail",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
def sendmail_(context: typer.Context) -> None:
    """Take a message on stdin as /usr/sbin/sendmail does: -t -i -f SENDER -F NAME -N NOTIFY -R RET -bs -bp -q."""
    sys.exit(sendmail.run(context.args))


def main() -> None:
    """The entry point: every error of ours becomes one line that says what to do."""
    called = os.path.basename(sys.argv[0])
    try:
        if called in sendmail.NAMES:
            sys.exit(sendmail.run(sys.argv[1:], called))
        app()
    except OptionError as error:
        _die(error, 2)
    except PillarboxError as error:
        _die(error, 1)
    except BrokenPipeError:
        sys.exit(1)


def _die(error: Exception, code: int) -> None:
    text = error.args[1] if isinstance(error, OSError) and len(error.args) > 1 else str(error)
    for line in text.splitlines() or [""]:
        say(f"pillarbox: {line}", is_error=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
