"""A queued message as JSON, with all that is known of it: so that it can move to another queue, and nothing is lost.

Envelope with its DSN parameters, recipients in every state, pauses and tries, history, facts, ages. Contents go beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ..errors import OptionError
from ..mail.content import Content
from ..mail.envelope import Envelope, EnvelopeRecipient
from ..smtp.address import parse_mailbox
from .model import ACTIVE, FINAL, Attempt, Message, Recipient, View

VERSION = 1
_STATES = frozenset((*ACTIVE, *FINAL, "held"))
_ATTEMPT = ("number", "at", "seconds", "outcome", "next_hop", "remote", "stage", "reply")
_RECIPIENT = ("number", "address", "state", "orcpt", "attempts", "due_at", "next_hop", "last_reply", "last_stage")


def as_json(view: View, envelope: Envelope, now: float) -> dict[str, Any]:
    """Everything but the content. What is in somebody's hands is due at once: whoever takes it over does not have it."""
    recipients = []
    for r in view.recipients:
        told = {name: getattr(r, name) for name in _RECIPIENT}
        told |= {"notify": list(r.notify), "is_delay_reported": r.is_delay_reported}
        if r.is_leased and r.state in ACTIVE:
            told["due_at"] = now
        recipients.append(told)
    return {
        "pillarbox": VERSION,
        "uid": view.uid,
        "reverse_path": view.reverse_path,
        "body": envelope.body,
        "is_smtputf8": envelope.is_smtputf8,
        "ret": envelope.ret,
        "envid": envelope.envid,
        "subject": view.subject,
        "received_at": view.received_at,
        "expires_at": view.expires_at,
        "facts": view.facts,
        "recipients": recipients,
        "attempts": [{name: getattr(a, name) for name in _ATTEMPT} for a in view.attempts],
    }


def parse(given: Any) -> Message:
    """The message, without its content. OptionError says what is wrong."""
    if not isinstance(given, Mapping) or given.get("pillarbox") != VERSION:
        raise OptionError(f"this is no message that `pillarbox queue export --format jsonl` wrote, version {VERSION}")
    recipients = _list(given, "recipients")
    if not recipients:
        raise OptionError("recipients: there is none")
    reverse_path = _text(given, "reverse_path", may_miss=True)
    _check_mailbox("reverse_path", reverse_path)
    envelope = Envelope(
        reverse_path,
        [],
        "8BITMIME" if given.get("body") == "8BITMIME" else "7BIT",
        bool(given.get("is_smtputf8")),
        _one_line(given, "ret"),
        _one_line(given, "envid"),
    )
    kept = [_recipient(one) for one in recipients]
    if len({r.number for r in kept}) < len(kept):
        raise OptionError("recipients: two have the same number")
    envelope.recipients = [EnvelopeRecipient(r.address, r.notify, r.orcpt) for r in kept]
    uid = _text(given, "uid")
    if not uid or len(uid) > 64 or not uid.isascii() or not all(c.isalnum() or c in "-_." for c in uid):
        raise OptionError(f"uid: {uid!r} is not allowed: up to 64 letters, digits, '-', '_', '.'")
    message = Message(
        uid,
        envelope,
        Content(b""),
        _number(given, "received_at"),
        _number(given, "expires_at"),
        _text(given, "subject", may_miss=True) or "",
        _facts(given.get("facts")),
        kept,
    )
    message.attempts = [_attempt(one) for one in _list(given, "attempts")]
    return message


def _facts(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return {}
    try:
        orjson.dumps(dict(given))
    except TypeError as error:
        raise OptionError(f"facts: no queue can hold them: {error}") from None
    return dict(given)


def _recipient(given: Any) -> Recipient:
    if not isinstance(given, Mapping):
        raise OptionError(f"recipients: {given!r} is no object")
    state, address = _text(given, "state"), _text(given, "address")
    if state not in _STATES:
        raise OptionError(f"state: {state!r} is not known: there are {', '.join(sorted(_STATES))}")
    _check_mailbox("address", address)
    due_at = None if given.get("due_at") is None else float(_number(given, "due_at"))
    return Recipient(
        int(_number(given, "number")),
        address,
        state,
        tuple(str(word) for word in _list(given, "notify") if str(word).isalpha()),
        _one_line(given, "orcpt"),
        int(_number(given, "attempts")),
        due_at if state in ACTIVE else None,
        _text(given, "next_hop", may_miss=True),
        _text(given, "last_reply", may_miss=True),
        _text(given, "last_stage", may_miss=True),
        bool(given.get("is_delay_reported")),
    )


def _attempt(given: Any) -> Attempt:
    if not isinstance(given, Mapping):
        raise OptionError(f"attempts: {given!r} is no object")
    words = [_text(given, name, may_miss=True) for name in _ATTEMPT[4:]]
    at, seconds = _number(given, "at"), _number(given, "seconds")
    return Attempt(int(_number(given, "number")), at, seconds, _text(given, "outcome"), *words)


def _check_mailbox(name: str, address: str | None) -> None:
    # By the same grammar as on the wire, so that nothing can break out of a command line later.
    if address is not None and parse_mailbox(address) is None and address.lower() != "postmaster":
        raise OptionError(f"{name}: {address!r} is no mailbox")


def _text(given: Mapping[str, Any], name: str, *, may_miss: bool = False) -> Any:
    value = given.get(name)
    if not isinstance(value, str) and not (value is None and may_miss):
        raise OptionError(f"{name}: {value!r} is no text")
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"{name}: {value!r} is no text: {error}") from None
    return value


def _one_line(given: Mapping[str, Any], name: str) -> str | None:
    value: str | None = _text(given, name, may_miss=True)
    if value is not None and not value.isprintable():
        raise OptionError(f"{name}: {value!r} has what no command line may have")
    return value


def _number(given: Mapping[str, Any], name: str) -> float:
    value = given.get(name)
    # Numbers that a queue counts stay far below that; so do unix seconds.
    most = 1e12 if name.endswith("_at") or name in ("at", "seconds") else 1e9
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < most:
        raise OptionError(f"{name}: {value!r} is no number that it may be")
    return value


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    value = given.get(name, [])
    if not isinstance(value, list):
        raise OptionError(f"{name}: {value!r} is no list")
    return value
