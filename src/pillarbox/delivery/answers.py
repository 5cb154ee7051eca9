"""Reject and Defer: the exceptions by which a handler answers."""

from __future__ import annotations

from typing import Any, overload

from ..errors import PillarboxError, StateError
from ..smtp.reply import Reply, read_status

_FORM = '(550, "5.1.1", "text") as Reply has it, or ("text", 550, "5.1.1")'


class Reject(PillarboxError):
    """Raised by a handler: the message bounces. `Reject(550, "5.1.1", "No such ticket")`, as Reply has it.

    The code is 5yz (default 550), the enhanced status code belongs to it (default 5.7.1). `Reject("No such ticket")` and
    `Reject("No such ticket", 550, "5.1.1")` mean the same. ValueError for another code, TypeError for other types.
    """

    @overload
    def __init__(self, text: str = ..., code: int = ..., enhanced: str | None = ...) -> None: ...

    @overload
    def __init__(self, code: int, enhanced: str | None = ..., *text: str) -> None: ...

    def __init__(self, *given: Any, **named: Any) -> None:
        self.reply = _reply("Reject", given, named, Reply(550, "5.7.1", "The message was refused"))
        super().__init__(self.reply.text)


class Defer(PillarboxError):
    """Raised by a handler: the message is tried again later, as after any exception, and the queue shows this text.

    Arguments are those of Reject. The code is 4yz (default 451), the enhanced status code belongs to it (default 4.3.0).
    """

    @overload
    def __init__(self, text: str = ..., code: int = ..., enhanced: str | None = ...) -> None: ...

    @overload
    def __init__(self, code: int, enhanced: str | None = ..., *text: str) -> None: ...

    def __init__(self, *given: Any, **named: Any) -> None:
        self.reply = _reply("Defer", given, named, Reply(451, "4.3.0", "The handler wants it later"))
        super().__init__(self.reply.text)


class NoSubscriberError(StateError):
    """No callback is registered for the event of a handler: the message waits for one, and has had no attempt."""


def _reply(where: str, given: tuple[Any, ...], named: dict[str, Any], default: Reply) -> Reply:
    wrong = f"{where}: invalid arguments {(*given, *named.values())!r}: expected {_FORM}"
    is_text_first = not given or isinstance(given[0], str)
    names = ("text", "code", "enhanced") if is_text_first else ("code", "enhanced")
    found = {**named, **dict(zip(names, given, strict=False))}
    more = given[len(names) :]
    if found.keys() - {"text", "code", "enhanced"} or len(found) != len(named) + len(given) - len(more):
        raise TypeError(wrong)
    code, enhanced = found.get("code", default.code), found.get("enhanced", default.enhanced)
    texts = (found["text"], *more) if "text" in found else more
    is_code = isinstance(code, int) and not isinstance(code, bool)
    if (is_text_first and more) or not is_code or not all(isinstance(one, str) for one in (enhanced or "", *texts)):
        raise TypeError(wrong)
    kind = default.code // 100
    if code // 100 != kind:
        other = "raise Defer, or anything else, to have it tried again" if kind == 5 else "raise Reject to bounce it"
        raise ValueError(f"{where}: invalid reply code {code}: expected {kind}yz; {other}")
    if enhanced:
        enhanced, texts = read_status(code, enhanced, texts)
        enhanced = enhanced or default.enhanced
    # A text may come from anywhere: what cannot be printed does not reach a log or a DSN.
    lines = ["".join(c if c.isprintable() else "?" for c in text) for text in texts]
    return Reply(code, enhanced or None, *([line for line in lines if line] or default.lines))
