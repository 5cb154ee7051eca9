"""`pillarbox dev`: the same engine with an inbox: it takes everything for everyone, and delivers nothing outside."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..app import MailServer
from ..capture import Faults
from ..config.files import check_folder
from ..errors import OptionError
from ..queue.model import Action, Query
from ..server.accounts import AnyAccount
from .config import admin_address
from .logs import configure_logs
from .serve import MakeSide

EVERYONE = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class DevOptions:
    """What the command was given. `data_dir` None: a folder that goes when the server goes."""

    listen: Sequence[str] = ()
    admin: str | None = None
    admin_hosts: Sequence[str] = ()
    data_dir: str | None = None
    keep: int = 1000
    relay: Sequence[str] = ()
    faults: Sequence[str] = ()
    is_tls: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    takes_any_login: bool = False
    log_level: str = "info"
    more: dict[str, Any] = field(default_factory=dict)


def make_certificate(folder: str) -> tuple[str, str]:
    """(certificate, key): PEM files for localhost, made here and trusted by nobody. OptionError without trustme."""
    try:
        import trustme
    except ImportError:
        raise OptionError(
            "--tls wants the library trustme: pip install 'pillarbox[testing]'; or give --tls-cert and --tls-key"
        ) from None
    cert, key = os.path.join(folder, "dev-cert.pem"), os.path.join(folder, "dev-key.pem")
    leaf = trustme.CA().issue_cert("localhost", "127.0.0.1", "::1")
    leaf.cert_chain_pems[0].write_to_path(cert)
    leaf.private_key_pem.write_to_path(key)
    os.chmod(key, 0o600)
    return cert, key


def dev(given: DevOptions, make_side: MakeSide) -> None:
    """Blocks until SIGTERM or SIGINT. Raises PillarboxError for what is in its way."""
    configure_logs(given.log_level)
    os.umask(0o077)
    faults = Faults(given.faults)
    folder = given.data_dir or tempfile.mkdtemp(prefix="pillarbox-dev-")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        # Before the certificate is written there.
        check_folder(folder)
        cert, key = (given.tls_cert, given.tls_key) if given.tls_cert or not given.is_tls else make_certificate(folder)
        options = {
            "listen": list(given.listen) or ["127.0.0.1:1025"],
            "hostname": "localhost",
            "trust": list(EVERYONE),
            "data_dir": folder,
            "capture": True,
            "capture_messages": given.keep,
            # What was deleted is gone.
            "history_messages": 0,
            "relay": list(given.relay),
            "direct": False,
            "device_networks": list(EVERYONE),
            "local_parts": True,
            "bare_line_ends": "normalise",
            "tls_cert": cert,
            "tls_key": key,
            "authenticator": AnyAccount() if given.takes_any_login else None,
            "auth_in_clear": given.takes_any_login,
            "plugins": {"faults": faults},
            # Until what is in the queue from before is held, too.
            "paused": True,
            **given.more,
        }
        _run(options, given, make_side)
    finally:
        if given.data_dir is None:
            shutil.rmtree(folder, ignore_errors=True)


def _run(options: dict[str, Any], given: DevOptions, make_side: MakeSide) -> None:
    sides: list[Any] = []

    async def announce(server: MailServer) -> None:
        for state in ("queued", "deferred"):
            await server.queue.change(Action.HOLD, Query(state=state))
        await server.resume_queue()
        address = admin_address(given.admin)
        line = "pillarbox: ready on " + " ".join(
            f"{host}:{port}" if port else host for host, port in server.getsocknames()
        )
        if address != "off":
            side = make_side(server, address, given.admin_hosts)
            await side.start()
            sides.append(side)
            # A link that logs in is for a terminal, not for the log of a container.
            is_shown = side.is_open or sys.stdout.isatty()
            command = f"pillarbox admin --data-dir {shlex.quote(str(server.options.data_dir))}"
            line += f", inbox: {side.login_url()}" if is_shown else f", inbox: {side.url} (`{command}` prints a link)"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    async def end(server: MailServer) -> None:
        for side in sides:
            await side.stop()

    MailServer.run(on_ready=announce, on_closing=end, grace_s=1.0, **options)
