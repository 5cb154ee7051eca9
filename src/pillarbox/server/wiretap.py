"""The flag `trace`: every line of every session, and every event, to the log. For finding out; not for every day.

Written from what was understood, not from segments, so that however a client cuts its octets no secret of AUTH shows:
what is said within AUTH is left out, and content is counted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..smtp.command import Command
from ..smtp.server import AuthLine, EndOfContent

if TYPE_CHECKING:
    from .session import SmtpSession

_log = logging.getLogger("pillarbox.trace")


def tap(session: SmtpSession, what: Command | AuthLine | EndOfContent | bytes) -> None:
    """What a client said, understood; or (bytes) what it is answered."""
    name = session.facts.client_id
    if isinstance(what, bytes):
        for line in what.split(b"\r\n")[:-1]:
            _log.info("%s S: %s", name, _shown(line.decode("latin-1")))
    elif isinstance(what, Command):
        # A verb that is not known may be half of something that is secret.
        is_secret = what.verb == "AUTH" or (what.error is not None and what.error.code == 500)
        _log.info("%s C: %s %s", name, _shown(what.verb), "***" if is_secret and what.args else _shown(what.args))
    elif isinstance(what, EndOfContent):
        _log.info("%s C: (%d octets of content)", name, what.size_bytes)
    else:
        _log.info("%s C: ***", name)


def _shown(text: str) -> str:
    return ascii(text)[1:-1]


def log_event(event: Any) -> None:
    """A subscriber to everything."""
    _log.info("event %s: %.1000r", event.name, event)
