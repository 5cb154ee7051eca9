"""Plugins, subscribers and authenticators that end the process; answers as text; replies that are owed and never come."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Eat, MailServer, Reply
from tests.conftest import Client, run_async, serving, until


class Answers:
    """A plugin that gives one answer to RCPT, by each way that a method may take."""

    def __init__(self, answer: Any, kind: str) -> None:
        self.answer, self.kind = answer, kind
        self.on_cmd_rcpt = self.later if kind.startswith("async") else self.now

    def now(self, server: Any, event: Any) -> Any:
        if isinstance(self.answer, type):
            raise self.answer("no more")
        return self.answer

    async def later(self, server: Any, event: Any) -> Any:
        if self.kind == "async later":
            await asyncio.sleep(0.001)
        return self.now(server, event)


KINDS = pytest.mark.parametrize("kind", ["plain", "async", "async later"])


async def rcpt(server: MailServer) -> str:
    client = await Client.connect(server)
    await client.ask(b"EHLO x")
    await client.ask(b"MAIL FROM:<a@b.test>")
    try:
        return await client.ask(b"RCPT TO:<c@d.test>")
    finally:
        client.close()


@KINDS
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_plugin_that_ends_the_process_fails_one_command(error: type[BaseException], kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", plugins={"p": Answers(error, kind)}) as server:
            assert await rcpt(server) == "451 4.3.0 Temporary failure: try again later"
            server.plugin_del("p")
            assert (await rcpt(server)).startswith("250")

    run_async(main)


@KINDS
def test_plugin_answer_as_text_is_a_reply(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", plugins={"p": Answers("550 5.7.1 not you", kind)}) as server:
            assert await rcpt(server) == "550 5.7.1 not you"
            for nonsense in ("not you", "250 OK", "354 go on", "550 a\r\nb", "", 550, True, ("550",)):
                server.plugin_del("p")
                server.plugin_add("p", Answers(nonsense, kind))
                assert await rcpt(server) == "451 4.3.0 Temporary failure: try again later"

    run_async(main)


@pytest.mark.parametrize("kind", ["plain", "async", "async later"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_subscriber_that_ends_the_process_learns_of_the_next_event(
    error: type[BaseException], kind: str, tmp_path: Path
) -> None:
    async def main() -> None:
        got: list[Any] = []

        def now(event: Any) -> None:
            got.append(event)
            if error is SystemExit:
                sys.exit(3)
            raise error

        async def later(event: Any) -> None:
            if kind == "async later":
                await asyncio.sleep(0.001)
            now(event)

        async with serving(tmp_path, store="memory") as server:
            server.register(now if kind == "plain" else later, "cmd_rcpt")
            for count in (1, 2):
                await rcpt(server)
                await until(lambda count=count: len(got) == count)  # type: ignore[misc]

    run_async(main)


def test_reply_that_never_comes_names_the_plugin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Eats:
        def on_cmd_noop(self, server: Any, event: Any) -> Eat:
            return Eat.PLUGIN

    class Listens:
        def on_cmd_noop(self, server: Any, event: Any) -> None:
            """Says nothing."""

        def on_cmd_help(self, server: Any, event: Any) -> Reply:
            return Reply(214, "2.0.0", "No help")

    async def ask(**options: Any) -> str:
        caplog.clear()
        async with serving(tmp_path, store="memory", client_time_out=0.2, **options) as server:
            client = await Client.connect(server)
            assert await client.ask(b"NOOP") == "451 4.3.0 No answer in time"
            client.close()
        return "\n".join(record.getMessage() for record in caplog.records if "unanswered" in record.getMessage())

    with caplog.at_level(logging.WARNING, "pillarbox.session"):
        told = run_async(lambda: ask(plugins={"eats": Eats()}))
        assert "NOOP is unanswered: plugin 'eats' ate the event and sent no reply" in told
        told = run_async(lambda: ask(simple=False, plugins={"listens": Listens()}))
        assert "no plugin answered, and the program did not (plugins that get cmd_noop: 'listens')" in told
