"""Logs of the daemon: standard logging, rendered by structlog for people (a terminal) or as JSON lines.

What a peer sent can stand in a log line; control characters are escaped, so that no line can be forged (CWE-117).
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, TextIO

# What a line may have beside its text: of which session, message, peer and next hop, and why.
FIELDS = ("session", "queue_id", "reason", "peer", "next_hop", "state")
LEVELS = ("debug", "info", "warning", "error")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escape_controls(text: str) -> str:
    r"""Control characters become \xNN or \uNNNN."""
    return _CONTROL.sub(lambda m: m.group().encode("unicode_escape").decode("ascii"), text)


def _escape(logger: Any, name: str, event: Any) -> Any:
    for key, value in event.items():
        # A traceback is ours, and has lines.
        if isinstance(value, str) and key not in ("exception", "stack"):
            event[key] = escape_controls(value)
    return event


def configure_logs(level: str, *, as_json: bool | None = None, stream: TextIO | None = None) -> None:
    """Sets the root logger up. `as_json` None: for people on a terminal, else JSON lines."""
    # Not on top: the commands that only look need not wait for it.
    import structlog

    stream = stream or sys.stderr
    is_terminal = stream.isatty()
    renderer: Any = structlog.processors.JSONRenderer()
    if as_json is False or (as_json is None and is_terminal):
        renderer = structlog.dev.ConsoleRenderer(colors=is_terminal, sort_keys=False, pad_event_to=0)
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if isinstance(renderer, structlog.processors.JSONRenderer):
        # For people all of it stands in the text already.
        shared.append(structlog.stdlib.ExtraAdder(allow=FIELDS))
    shared.append(_escape)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel("WARNING")
    # It tells of its start and end at "info", which our own ready line does already.
    logging.getLogger("uvicorn").setLevel("WARNING")
