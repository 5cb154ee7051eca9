"""What a handler's return value and exceptions mean, and what a handler may be."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Defer, Handler, Item, MailServer, Reject, Reply
from pillarbox.errors import OptionError
from tests.conftest import queued, until
from tests.simplesmtp.helpers import send, server_test


async def outcome(server: MailServer, handler: Handler) -> tuple[str, str | None, int]:
    """State, last reply and attempts of a recipient once the handler has had it."""
    server.set_handlers([handler])
    await send(server, to=b"a@d.test")

    def mine() -> Any:
        return next(v for v in queued(server) if v.recipients[0].address == "a@d.test").recipients[0]

    await until(lambda: mine().last_reply is not None)
    return mine().state, mine().last_reply, mine().attempts


ANSWERS: list[tuple[Any, str, str]] = [
    (None, "delivered", "250 2.0.0 Taken by the handler"),
    (Reply(250, "2.1.5", "Noted"), "delivered", "250 2.1.5 Noted"),
    (Reply(550, "5.1.1", "No such ticket"), "bounced", "550 5.1.1 No such ticket"),
    (Reply(452, "4.2.2", "Full"), "deferred", "452 4.2.2 Full"),
    (Reply(354), "deferred", "451 4.3.0 The handler failed: TypeError"),
    (False, "deferred", "451 4.3.0 The handler failed: TypeError"),
    (True, "deferred", "451 4.3.0 The handler failed: TypeError"),
    (0, "deferred", "451 4.3.0 The handler failed: TypeError"),
    ("550 5.1.1 no", "deferred", "451 4.3.0 The handler failed: TypeError"),
]


@pytest.mark.parametrize("kind", ["plain", "async", "thread"])
@pytest.mark.parametrize(("answer", "state", "reply"), ANSWERS, ids=[repr(row[0]) for row in ANSWERS])
def test_handler_return_value_decides(answer: Any, state: str, reply: str, kind: str, tmp_path: Path) -> None:
    async def coroutine(item: Item) -> Any:
        await asyncio.sleep(0)
        return answer

    @server_test()
    async def check(server: MailServer) -> None:
        callback = coroutine if kind == "async" else lambda item: answer
        assert await outcome(server, Handler("@d", callback, in_thread=kind == "thread")) == (state, reply, 1)

    check(tmp_path)


@pytest.mark.parametrize("kind", ["plain", "async", "async later", "thread"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration])
def test_handler_that_ends_the_process_is_deferred(error: type[BaseException], kind: str, tmp_path: Path) -> None:
    def ends(item: Item) -> None:
        if error is SystemExit:
            sys.exit("no more")
        raise error("no more")

    async def ends_async(item: Item) -> None:
        if kind == "async later":
            await asyncio.sleep(0.001)
        ends(item)

    @server_test()
    async def check(server: MailServer) -> None:
        callback = ends_async if kind.startswith("async") else ends
        state, reply, attempts = await outcome(server, Handler("@d", callback, in_thread=kind == "thread"))
        assert (state, attempts) == ("deferred", 1) and reply is not None and reply.startswith("451 4.3.0 The handler")
        # The server lives, and the next message is handled.
        taken: list[str] = []
        server.set_handlers([Handler("@e", lambda item: taken.append(item.uid))])
        await send(server, to=b"b@e.test")
        await until(lambda: len(taken) == 1)

    check(tmp_path)


@server_test()
async def test_handler_by_event_return_value_decides(server: MailServer) -> None:
    seen: list[str] = []
    server.define_event("order_mail")
    server.register(lambda item: Reply(550, "5.1.1", "No"), "order_mail")
    server.register(lambda item: seen.append(item.uid), "order_mail")
    server.set_handlers([{"match": "@d", "event": "order_mail"}])
    await send(server, to=b"a@d.test")
    await until(lambda: queued(server)[0].recipients[0].state == "bounced")
    assert not seen


@pytest.mark.parametrize(
    ("make", "reply"),
    [
        (lambda: Reject(), "550 5.7.1 The message was refused"),
        (lambda: Reject("no"), "550 5.7.1 no"),
        (lambda: Reject("no", 554, "5.1.1"), "554 5.1.1 no"),
        (lambda: Reject(550, "5.1.1", "no"), "550 5.1.1 no"),
        (lambda: Reject(550, "5.1.1", "no", "never"), "550 5.1.1 no never"),
        (lambda: Reject(550, "5.1.1"), "550 5.1.1 The message was refused"),
        (lambda: Reject(550, "no"), "550 5.7.1 no"),
        (lambda: Reject(550, "5.1.1 no"), "550 5.1.1 no"),
        (lambda: Reject(550, None, "no"), "550 no"),
        (lambda: Reject(550), "550 5.7.1 The message was refused"),
        (lambda: Reject(text="no", code=552, enhanced="5.2.2"), "552 5.2.2 no"),
        (lambda: Reject(552, text="no"), "552 5.7.1 no"),
        (lambda: Reject(550, "5.1.1", "no\r\nsuch"), "550 5.1.1 no??such"),
        (lambda: Defer(), "451 4.3.0 The handler wants it later"),
        (lambda: Defer("later"), "451 4.3.0 later"),
        (lambda: Defer(452, "4.2.2", "full"), "452 4.2.2 full"),
        (lambda: Defer("full", 452, "4.2.2"), "452 4.2.2 full"),
    ],
)  # fmt: skip
def test_reject_and_defer_take_either_order(make: Callable[[], Any], reply: str) -> None:
    assert str(make().reply) == reply


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Reject(450, "4.1.1", "no"), ValueError), (lambda: Reject("no", 450), ValueError),
        (lambda: Reject(550, "4.1.1", "no"), ValueError), (lambda: Defer(550), ValueError),
        (lambda: Reject("no", "5.1.1"), TypeError), (lambda: Reject("no", 550, "5.1.1", "more"), TypeError),  # type: ignore[call-overload]
        (lambda: Reject(5.5), TypeError), (lambda: Reject(True), TypeError),  # type: ignore[call-overload]
        (lambda: Reject(550, 511, "no"), TypeError), (lambda: Reject(550, "5.1.1", 7), TypeError),  # type: ignore[call-overload]
        (lambda: Reject("no", text="no"), TypeError), (lambda: Reject(txt="no"), TypeError),  # type: ignore[call-overload]
    ],
)  # fmt: skip
def test_reject_with_wrong_arguments_says_what_is_expected(make: Callable[[], Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"expected|does not fit") as caught:
        make()
    assert str(caught.value)


def test_reply_whose_second_argument_is_text() -> None:
    assert Reply(550, "not you") == Reply(550, None, "not you")
    assert Reply(550, "not you", "nor you").lines == ("not you", "nor you")
    assert Reply(550, "5.7.1 not you") == Reply(550, "5.7.1", "not you")
    for wrong in ("4.7.1", "5.7", "5", ""):
        with pytest.raises(ValueError, match="does not fit reply code 550"):
            Reply(550, wrong)
    with pytest.raises(ValueError, match="expected text"):
        Reply(550, 571)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected text"):
        Reply(550, "5.7.1", 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="control character"):
        Reply(550, "not\r\nyou")


@server_test()
async def test_item_has_the_match_of_its_handler(server: MailServer) -> None:
    got: list[Any] = []
    server.set_handlers(
        [Handler(r"(?i)^support\+(?P<token>\w+)@", lambda item: got.append((item.match, item.matches)))]
    )
    await server.enqueue(
        reverse_path="a@b.test",
        recipients=["support+ABC@D.test", "Support+x@d.test"],
        content=b"From: a@b.test\r\n\r\n",
    )
    await until(lambda: len(got) == 1)
    match, matches = got[0]
    assert match["token"] == match[1] == "ABC" and [one["token"] for one in matches] == ["ABC", "x"]
    assert match.string == "support+ABC@d.test"


def take(item: Item) -> None:
    """A handler."""


class Taker:
    """A class in place of an instance."""

    def __call__(self, item: Item) -> None:
        """Takes."""


def yields(item: Item) -> Any:
    yield item


async def called(item: Any) -> None:
    """A coroutine function that was called."""


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda s: s.handler(take), "did you mean @server.handler("), (lambda s: s.handler(7), "regular expression"),
        (lambda s: s.handler(None), "regular expression"), (lambda s: s.handler(b"x"), "regular expression"),
        (lambda s: s.handler(""), "regular expression"), (lambda s: s.handler("(")(take), "no regular expression"),
        (lambda s: s.handler("x")(Taker), "is a class"), (lambda s: s.handler("x")(yields), "yield"),
        (lambda s: s.handler("x")(called(1)), "did you mean called?"), (lambda s: s.handler("x")(7), "cannot be called"),
        (lambda s: s.handler("x", concurrency=0)(take), "'concurrency'"),
        (lambda s: s.handler("x", concurrency=True)(take), "'concurrency'"),
        (lambda s: s.handler("x", time_out_s="5m")(take), "'time_out_s'"),
        (lambda s: s.handler("x", time_out_s=0)(take), "'time_out_s'"),
        (lambda s: MailServer(handlers=[Handler]), "neither a Handler"),
        (lambda s: MailServer(handlers=[take]), "neither a Handler"),
    ],
)  # fmt: skip
def test_handler_of_a_wrong_kind_is_refused(make: Callable[[MailServer], Any], text: str) -> None:
    server = MailServer(port=0, store="memory")
    with pytest.raises(OptionError) as caught:
        make(server)
    assert text in str(caught.value) and server.get_handlers() == []
