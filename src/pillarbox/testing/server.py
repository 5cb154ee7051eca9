"""A real server in a thread of its own, for tests of what sends mail: sync or async, many at once.

It is the engine of `pillarbox dev`: everything is taken and nothing leaves; `inbox` shows what came.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..app import MailServer
from ..capture import Captured, Faults, Inbox
from ..clock import loop_factory
from ..errors import OptionError, StateError
from ..server.accounts import Account
from ..smtp.reply import Reply, parse_reply

T = TypeVar("T")
_STEPS = ("connection", "helo", "ehlo", "mail", "rcpt", "data", "rset", "noop", "vrfy", "quit", "starttls", "message")
START_S = 30.0


class Script:
    """A plugin that answers as a script says: `MAIL`, `RCPT`, ..., `CONNECTION`, `MESSAGE` (the end of content)."""

    def __init__(self) -> None:
        self._replies: dict[str, list[Reply]] = {}
        self._lasting: dict[str, Reply] = {}

    def set(self, step: str, replies: str | Sequence[str]) -> None:
        """One reply that stays, or some that are given one after the other, before things are as usual again."""
        name = step.lower()
        if name not in _STEPS:
            raise OptionError(f"script: {step!r} is no step: there are {', '.join(s.upper() for s in _STEPS)}")
        try:
            made = [parse_reply(line) for line in ([replies] if isinstance(replies, str) else replies)]
        except ValueError as error:
            raise OptionError(f"script: {step}: {replies!r}: {error}") from None
        self._replies.pop(name, None)
        self._lasting.pop(name, None)
        if isinstance(replies, str):
            self._lasting[name] = made[0]
        else:
            self._replies[name] = made

    def clear(self) -> None:
        """As usual."""
        self._replies.clear()
        self._lasting.clear()

    def _next(self, name: str) -> Reply | None:
        waiting = self._replies.get(name)
        return waiting.pop(0) if waiting else self._lasting.get(name)


def _method(name: str) -> Callable[[Script, Any, Any], Reply | None]:
    def answer(self: Script, server: Any, event: Any) -> Reply | None:
        return self._next(name)

    return answer


for _step in _STEPS:
    setattr(Script, f"on_{_step}" if _step in ("connection", "message") else f"on_cmd_{_step}", _method(_step))


class TestInbox:
    """The inbox, for any thread: plain methods block, those that begin with `a` are awaited in whatever loop."""

    __test__ = False

    def __init__(self, run: Callable[[Callable[[Inbox], Coroutine[Any, Any, Any]]], Any]) -> None:
        self._run = run

    def wait_for(
        self,
        *,
        to: str | None = None,
        sender: str | None = None,
        subject: str | None = None,
        timeout: float = 10.0,
        where: Callable[[Captured], bool] | None = None,
    ) -> Captured:
        """The first message that is like that, there already or coming. TimeoutError says what came instead."""
        found: Captured = self._run(
            lambda inbox: inbox.wait_for(to=to, sender=sender, subject=subject, timeout=timeout, where=where)
        ).result()
        return found

    async def await_for(
        self,
        *,
        to: str | None = None,
        sender: str | None = None,
        subject: str | None = None,
        timeout: float = 10.0,
        where: Callable[[Captured], bool] | None = None,
    ) -> Captured:
        """`wait_for`, without holding the loop of an async test."""
        found: Captured = await asyncio.wrap_future(
            self._run(lambda inbox: inbox.wait_for(to=to, sender=sender, subject=subject, timeout=timeout, where=where))
        )
        return found

    def messages(
        self, *, to: str | None = None, sender: str | None = None, subject: str | None = None
    ) -> list[Captured]:
        """What is there now, oldest first; each filter is a part of the text, in any case."""
        found: list[Captured] = self._run(lambda inbox: inbox.messages(to=to, sender=sender, subject=subject)).result()
        return found[::-1]

    def clear(self) -> None:
        """Empties it."""
        self._run(lambda inbox: inbox.delete()).result()

    def __len__(self) -> int:
        return len(self.messages())

    def __iter__(self) -> Iterator[Captured]:
        return iter(self.messages())

    def __getitem__(self, index: int) -> Captured:
        return self.messages()[index]


class SmtpServer:
    """`with SmtpServer() as server: ...`; listening when the block begins, gone when it ends. See `start` for options.

    `host` and `port` are where it listens, `inbox` what came, `faults` (see `pillarbox.capture.Faults`) and `script` what
    goes wrong on purpose, `client_context` an SSL context that trusts it (with `tls`), `mail_server` the MailServer.
    """

    def __init__(
        self,
        *,
        tls: bool = False,
        implicit_tls: bool = False,
        auth: bool | Mapping[str, str] = False,
        faults: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """`tls`: offers STARTTLS; `implicit_tls`: begins with TLS; `auth`: takes any login, or those of a dict.

        AUTH is offered without TLS, too. Other options are those of MailServer, such as `plugins` or `max_size_bytes`.
        """
        self._tls, self._implicit_tls, self._auth = tls or implicit_tls, implicit_tls, auth
        self._options = options
        self.faults = Faults(faults)
        self._script = Script()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._fault: BaseException | None = None
        self._server: MailServer | None = None
        self.inbox = TestInbox(self._on_inbox)
        self.host, self.port = "127.0.0.1", 0
        self.client_context: ssl.SSLContext | None = None

    # -------------------------------------------------------------------- life

    def start(self) -> SmtpServer:
        """Returns when it listens. PillarboxError for what is in its way."""
        if self._thread is not None:
            raise StateError("this server has been started already")
        folder = tempfile.mkdtemp(prefix="pillarbox-test-")
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(folder, ready), name="pillarbox-test-server", daemon=True
        )
        self._thread.start()
        if not ready.wait(START_S):
            raise StateError(f"the test server did not listen within {START_S:g} s")
        if self._fault is not None:
            self._thread.join()
            raise self._fault
        return self

    def stop(self) -> None:
        """Returns when it is gone."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> SmtpServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _serve(self, folder: str, ready: threading.Event) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._main(folder, ready))
        except BaseException as error:
            self._fault = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            ready.set()

    async def _main(self, folder: str, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with MailServer(**self._given(folder)) as server:
            self._server = server
            self.host, self.port = server.getsockname()
            ready.set()
            await self._stop.wait()
            await server.shutdown(grace_s=0.0)

    def _given(self, folder: str) -> dict[str, Any]:
        scheme = "smtps" if self._implicit_tls else "smtp"
        host = self._options.get("address", "127.0.0.1")
        host = f"[{host}]" if ":" in host else host
        # One listener, of one scheme: it is written as `listen`.
        more = {name: value for name, value in self._options.items() if name not in ("address", "port")}
        given: dict[str, Any] = {
            "listen": [f"{scheme}://{host}:{self._options.get('port', 0)}"],
            "hostname": "localhost",
            "trust": ["0.0.0.0/0", "::/0"],
            "data_dir": folder,
            "store": "memory",
            "capture": True,
            "direct": False,
            "local_parts": True,
            "bare_line_ends": "normalise",
            "auth_in_clear": bool(self._auth),
        }
        if self._tls:
            given |= self._certificate(folder)
        if self._auth:
            given["authenticator"] = self._authenticate
        plugins = {"script": self._script, "faults": self.faults, **self._options.get("plugins", {})}
        return {**given, **more, "plugins": plugins}

    def _certificate(self, folder: str) -> dict[str, Any]:
        try:
            import trustme
        except ImportError:
            raise OptionError("tls wants the library trustme: pip install 'pillarbox[testing]'") from None
        authority = trustme.CA()
        path = f"{folder}/certificate.pem"
        authority.issue_cert("localhost", "127.0.0.1", "::1").private_key_and_cert_chain_pem.write_to_path(path)
        self.client_context = ssl.create_default_context()
        authority.configure_trust(self.client_context)
        return {"tls_cert": path}

    def _authenticate(self, name: str, password: str) -> Account | None:
        if isinstance(self._auth, Mapping) and self._auth.get(name) != password:
            return None
        return Account(name, ("*",))

    # ------------------------------------------------------------------ looking

    @property
    def mail_server(self) -> MailServer:
        """The server itself; it lives in another thread: use `call` for what changes it."""
        if self._server is None:
            raise StateError("this server does not run: start it first")
        return self._server

    def call(self, work: Callable[[MailServer], Coroutine[Any, Any, T]], timeout: float = 30.0) -> T:
        """`server.call(lambda s: s.pause_queue())`: a coroutine in the server's loop, and what it gives."""
        found: T = self._future(work).result(timeout)
        return found

    def _future(self, work: Callable[[MailServer], Coroutine[Any, Any, Any]]) -> Any:
        server, loop = self.mail_server, self._loop
        if loop is None or self._thread is None or not self._thread.is_alive():
            raise StateError("this server does not run any more")

        async def run() -> Any:
            # `work` is called in the server's loop, too: MailServer refuses calls from another thread.
            return await work(server)

        return asyncio.run_coroutine_threadsafe(run(), loop)

    def _on_inbox(self, work: Callable[[Inbox], Coroutine[Any, Any, Any]]) -> Any:
        return self._future(lambda server: work(server.inbox))

    def script(self, **replies: str | Sequence[str]) -> None:
        """`server.script(RCPT="450 4.2.1 later")` for good, or `RCPT=["450 4.2.1 later"]` once, then as usual.

        Steps are CONNECTION, EHLO, MAIL, RCPT, DATA, MESSAGE (the end of content) and the other commands.
        """
        for step, given in replies.items():
            self._script.set(step, given)

    def reset(self) -> None:
        """An empty inbox, no faults, no script."""
        self.faults.clear()
        self._script.clear()
        self.inbox.clear()
