"""The HTTP server of the admin side: uvicorn in the mail server's own loop, on a socket of ours.

deviates: nothing of it runs in a thread or process of its own, for it reads what belongs to the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..app import MailServer
from ..errors import ListenError, PillarboxError
from . import inbox
from .access import Access, Guard
from .api import ROWS, Api
from .audit import Audit
from .bounded import Bounded, Places
from .inbox import InboxApi
from .pages import SAMPLE_S, STATIC, Samples, page_routes
from .rows import answering_errors
from .tokens import read_token, scoped_tokens, write_file

_log = logging.getLogger("pillarbox.admin")
DEFAULT = ("127.0.0.1", 8025)
_STOP_S = 3.0


class _Quiet(uvicorn.Server):
    """Signals are the mail server's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None of them."""
        yield


class Admin:
    """The admin side of one server. `address` None: the usual one, or any free port if that is taken."""

    def __init__(
        self,
        server: MailServer,
        address: tuple[str, int] | None = None,
        *,
        hosts: Sequence[str] = (),
        is_open: bool = False,
    ) -> None:
        self._server = server
        self._hosts = tuple(hosts)
        # On loopback alone: whoever is on this machine needs no token.
        self._wants_open = is_open
        self._address = address
        self._uvicorn: _Quiet | None = None
        self._task: asyncio.Task[None] | None = None
        self._samples = Samples()
        self._sampling: asyncio.Task[None] | None = None
        self.access: Access
        self.url = ""
        # The usual address, where another process has it.
        self.moved_from = ""

    async def start(self) -> None:
        """Listens. ListenError when an address that was asked for cannot be had."""
        sock = self._bind()
        if self.moved_from:
            _log.warning(
                "admin: %s is taken by another process; this server's dashboard is on another port, which `pillarbox admin` "
                "prints; do not trust a page on %s; --admin HOST:PORT makes this an error",
                self.moved_from,
                self.moved_from,
            )
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # Nobody can call a wildcard.
        self.url = f"http://127.0.0.1:{port}" if host in ("0.0.0.0", "::") else f"http://{shown}"
        folder = self._server.options.data_dir
        own = self._server.options.hostname
        proxies = {name.lower().removeprefix("https://") for name in self._hosts if name.lower().startswith("https://")}
        given = [name for name in self._hosts if "://" not in name]
        # The bare name is how a TLS proxy in front is called.
        names = {
            *given,
            *(f"{name}:{port}" for name in given),
            own,
            f"{own}:{port}",
            shown,
            f"localhost:{port}",
            f"127.0.0.1:{port}",
            f"[::1]:{port}",
        }
        is_open = self._wants_open and ipaddress.ip_address(host).is_loopback
        self.access = Access(
            {name.lower() for name in names},
            read_token(folder),
            proxies=proxies,
            scoped=scoped_tokens(folder),
            is_open=is_open,
            is_wildcard=host in ("0.0.0.0", "::"),
        )
        write_file(folder, self.url, self.access.token)
        config = uvicorn.Config(
            Audit(Guard(self._app(), self.access)),
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            http=functools.partial(Bounded, places=Places(self.access.is_holder)),  # type: ignore[arg-type]
            ws="none",
            h11_max_incomplete_event_size=64 * 1024,
        )
        self._uvicorn = _Quiet(config)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._uvicorn.serve([sock]))
        self._sampling = loop.create_task(self._sample())

    async def _sample(self) -> None:
        """The counters, now and then, for the charts."""
        while True:
            try:
                self._samples.add((await self._server.queue.live())["counters"])
            except PillarboxError:
                pass
            except Exception:
                _log.exception("the counters could not be read")
            await asyncio.sleep(SAMPLE_S)

    def _bind(self) -> socket.socket:
        host, port = self._address or DEFAULT
        try:
            return _listen(host, port)
        except OSError as error:
            if self._address is None and error.errno == errno.EADDRINUSE:
                self.moved_from = f"{host}:{port}"
                return _listen(host, 0)
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ListenError(
                error.errno or 0,
                f"cannot listen on {host}:{port} for the admin API: {reason}; use --admin HOST:PORT or off",
            ) from None

    def _app(self) -> Starlette:
        has_inbox = self._server.options.capture
        rows = (*inbox.ROWS, *ROWS) if has_inbox else ROWS
        api, inbox_api = Api(self._server, self.access, self.login_url, rows), InboxApi(self._server)
        routes: list[Route | Mount] = [
            Route(
                row.path,
                answering_errors(getattr(api, row.name, None) or getattr(inbox_api, row.name)),
                methods=[row.method],
            )
            for row in rows
        ]
        routes.append(Route("/login", self._login))
        routes += page_routes(self._server, self._samples)
        routes.append(Mount("/static", StaticFiles(directory=STATIC)))
        return Starlette(routes=routes, exception_handlers={Exception: _failed})

    async def _login(self, request: Request) -> Response:
        return self.access.login(request)

    @property
    def is_open(self) -> bool:
        """True where no token is asked for."""
        return self.access.is_open

    def login_url(self) -> str:
        """A URL that logs a browser in, once; where nobody has to, that of the first page."""
        if self.access.is_open:
            return f"{self.url}/inbox" if self._server.options.capture else self.url
        return f"{self.url}/login?code={self.access.logins.new_code()}"

    async def stop(self) -> None:
        """Ends it; open streams are cut."""
        if self._uvicorn is None or self._task is None:
            return
        if self._sampling is not None:
            self._sampling.cancel()
        self._uvicorn.should_exit = True
        done, _ = await asyncio.wait([self._task], timeout=_STOP_S)
        if not done:
            self._task.cancel()
            await asyncio.wait([self._task])
        with contextlib.suppress(FileNotFoundError):
            # The token stays: scripts go on over a restart.
            write_file(self._server.options.data_dir, "", self.access.token)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "internal fault: see the server's log"}, 500)
