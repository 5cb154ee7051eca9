"""`pillarbox serve`: one MailServer until SIGTERM or SIGINT, and a line on stdout once it listens."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

from ..app import MailServer
from .logs import configure_logs

SWITCH_S = 0.0003


def serve(options: dict[str, Any], *, log_level: str, grace_s: float) -> None:
    """Blocks until the server has been shut down. Raises PillarboxError for what is in its way."""
    configure_logs(log_level)
    # The queue is nobody else's business.
    os.umask(0o077)
    MailServer.run(on_ready=_announce, grace_s=grace_s, **options)


def _announce(server: MailServer) -> None:
    # What exists now lives as long as the server: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # The queue's writer shares the interpreter's lock with the loop: by default it may wait 5 ms for its turn, which is
    # longer than a commit takes. Measured with 20 sessions: a tenth more messages.
    sys.setswitchinterval(SWITCH_S)
    names = " ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in server.getsocknames())
    options = server.options
    relay = ",".join(options.relay) or ("none, delivers to the MX" if options.direct else "none, mail stays queued")
    sys.stdout.write(f"pillarbox: ready on {names} (queue: {options.data_dir}, relay: {relay})\n")
    sys.stdout.flush()
