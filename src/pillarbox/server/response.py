"""The `response` event of a session: plugins may change each reply before it leaves, or keep it back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..events.catalogue import Response, Session
from ..events.dispatch import Dispatcher, Parked, Verdict
from ..events.plugin import Eat
from ..smtp.reply import Reply

if TYPE_CHECKING:
    from .atonce import AtOnce

_log = logging.getLogger("pillarbox.session")


def is_left(dispatcher: Dispatcher, session: AtOnce, reply: Reply, verb: str, send: Callable[..., None]) -> bool:
    """Shows the reply to everyone. True: it is left as it is, and the caller's to send, as nearly always.

    False: what became of it has gone, or will go, to `send(reply, is_sent=...)`; not once the client is gone.
    """
    facts = session.facts
    event = Response(facts.client_id, facts, reply, verb)
    verdict = dispatcher.dispatch(event)
    if verdict is None and event.reply is reply and not session.is_lost:
        return True
    settle(session, event, reply, send, verdict)
    return False


def settle(
    session: AtOnce, event: Response, reply: Reply, send: Callable[..., None], verdict: Verdict | Parked
) -> None:
    """What dispatch gave for the event of a reply that is not simply left: `send` hears of it, now or when it is known."""
    if isinstance(verdict, Parked):
        verdict.done = partial(_decided, session, event, reply, send)
    else:
        _decided(session, event, reply, send, verdict)


def _decided(session: AtOnce, event: Response, reply: Reply, send: Callable[..., None], verdict: Verdict) -> None:
    if session.is_lost:
        return
    final = event.reply
    if final is not reply and not isinstance(final, Reply):
        _log.error("session %s: a plugin set the reply to %r: ignored", session.facts.client_id, final)
        final = reply
    send(final, is_sent=verdict is not Eat.CLIENT and verdict is not Eat.ALL)


def last_word(dispatcher: Dispatcher, facts: Session, reply: Reply) -> Reply:
    """The `response` event of a 421 that ends the session: it cannot wait for a plugin that suspends."""
    event = Response(facts.client_id, facts, reply, "")
    dispatcher.dispatch(event)
    return event.reply if isinstance(event.reply, Reply) and event.reply.code == 421 else reply
