"""A connection to PostgreSQL that breaks at the worst moment: a proxy that cuts it off at COMMIT, before or behind it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Literal
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """In front of one database; `url` leads through it. `cut` arms it for the next COMMIT of anybody but a heart, `refuse` closes it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port is not None
        self._target = ("127.0.0.1", parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
        self.cuts = 0
        self._cut: Literal["", "before", "behind"] = ""
        self._is_refusing = False
        self._refuses_then = False
        # As a network that breaks without a word: the database does not hear that its client is gone.
        self.keeps_server_side = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._guard = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, where: Literal["before", "behind"], *, refuses_then: bool = False) -> None:
        """The next COMMIT never arrives ("before"), or its answer does not ("behind"); and from then on nobody is let in."""
        self._refuses_then = refuses_then
        self._cut = where

    def refuse(self, *, is_refusing: bool) -> None:
        """The database is away: what is open is closed, what is new too; or it is back."""
        with self._guard:
            self._is_refusing = is_refusing
            pairs = list(self._pairs) if is_refusing else []
        for pair in pairs:
            self._close(pair)

    def close(self) -> None:
        """For good."""
        self.refuse(is_refusing=True)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_refusing:
                    client.close()
                    continue
                try:
                    pair = (client, socket.create_connection(self._target))
                except OSError:
                    client.close()
                    continue
                with self._guard:
                    self._pairs.append(pair)
                threading.Thread(target=self._relay, args=(pair,), daemon=True).start()

    def _relay(self, pair: tuple[socket.socket, socket.socket]) -> None:
        client, server = pair
        is_doomed = is_heart = False
        with contextlib.suppress(OSError, ValueError):
            while True:
                for ready in select.select(pair, (), ())[0]:
                    octets = ready.recv(1 << 16)
                    if not octets:
                        return self._close(pair)
                    # A heart beats when it likes: the cut is for who does the work.
                    is_heart = is_heart or (ready is client and b"LISTEN pillarbox" in octets)
                    if ready is client and self._cut and not is_heart and b"COMMIT\0" in octets:
                        where, self._cut = self._cut, ""
                        self.cuts += 1
                        if where == "before":
                            return self._cut_off(pair)
                        is_doomed = True
                    elif ready is server and is_doomed and b"COMMIT\0" in octets:
                        # It is done, and nobody hears of it.
                        return self._cut_off(pair)
                    (server if ready is client else client).sendall(octets)
        return self._close(pair)

    def _cut_off(self, pair: tuple[socket.socket, socket.socket]) -> None:
        if self._refuses_then:
            self.refuse(is_refusing=True)
        if self.keeps_server_side:
            pair[0].shutdown(socket.SHUT_RDWR)
            pair[0].close()
        else:
            self._close(pair)

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for sock in pair:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        with self._guard:
            if pair in self._pairs:
                self._pairs.remove(pair)
