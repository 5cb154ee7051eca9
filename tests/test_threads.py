"""Methods of MailServer from another thread or loop: refused before anything happens, with the way that works."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Handler, MailServer, Plugin
from pillarbox.errors import StateError
from tests.conftest import run_async, serving

MAIL: dict[str, Any] = {
    "reverse_path": "a@b.test",
    "recipients": ["c@d.test"],
    "content": b"From: a@b.test\r\n\r\nx\r\n",
}
COROUTINES: dict[str, Callable[[MailServer], Any]] = {
    "enqueue": lambda s: s.enqueue(**MAIL),
    "mail_queue": lambda s: s.mail_queue(),
    "queued_content": lambda s: s.queued_content("x"),
    "cancel_message": lambda s: s.cancel_message("x"),
    "reroute_message": lambda s: s.reroute_message("x"),
    "pause_queue": lambda s: s.pause_queue(),
    "resume_queue": lambda s: s.resume_queue(),
    "explain": lambda s: s.explain(uid="x"),
    "shutdown": lambda s: s.shutdown(),
    "wait_closed": lambda s: s.wait_closed(),
    "start_listener": lambda s: s.start_listener(),
}
PLAIN: dict[str, Callable[[MailServer], Any]] = {
    "set_handlers": lambda s: s.set_handlers([]),
    "handler": lambda s: s.handler("x"),
    "reload": lambda s: s.reload(),
    "queue": lambda s: s.queue,
    "send_to_client": lambda s: s.send_to_client("s1", "250 OK"),
    "data_mode": lambda s: s.data_mode("s1", io.BytesIO()),
    "disconnect": lambda s: s.disconnect("s1"),
    "plugin_add": lambda s: s.plugin_add("x", Plugin()),
    "plugin_del": lambda s: s.plugin_del("simple"),
    "register": lambda s: s.register(print, "message_queued"),
    "unregister": lambda s: s.unregister(print, "message_queued"),
    "events": lambda s: s.events("message_queued"),
    "send_event": lambda s: s.send_event("mine"),
}


@pytest.mark.parametrize("name", COROUTINES)
def test_coroutine_from_another_loop_is_refused_before_anything_happens(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:

            async def call() -> Any:
                return await COROUTINES[name](server)

            with pytest.raises(StateError, match=r"run_coroutine_threadsafe\(server\." + name):
                await asyncio.to_thread(lambda: asyncio.run(call()))
            assert await server.mail_queue(is_all=True) == [] and not server.paused()
            assert server.getsockname()

    run_async(main)


@pytest.mark.parametrize("name", PLAIN)
def test_method_from_another_thread_is_refused_before_anything_happens(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory", handlers=[Handler("^only$", print)]) as server:
            server.define_event("mine")
            with pytest.raises(StateError, match="another thread or event loop"):
                await asyncio.to_thread(lambda: PLAIN[name](server))
            assert len(server.get_handlers()) == 1 and "simple" in server.plugin_list()

    run_async(main)


def test_enqueue_by_the_way_that_is_named_works(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            loop = asyncio.get_running_loop()

            def work() -> str:
                return asyncio.run_coroutine_threadsafe(server.enqueue(**MAIL), loop).result(20)

            uid = await asyncio.to_thread(work)
            assert [view.uid for view in await server.mail_queue()] == [uid]

    run_async(main)


def test_methods_before_start_and_between_runs_of_the_loop_work(tmp_path: Path) -> None:
    server = MailServer(port=0, store="memory", data_dir=str(tmp_path), direct=False)
    server.handler("^x@")(print)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(server.start())
        server.register(print, "message_queued")
        server.plugin_add("x", Plugin())
        loop.run_until_complete(server.shutdown())
    finally:
        loop.close()
    server.plugin_list()
