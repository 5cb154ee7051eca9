"""One HTTP POST with one deadline for all of it: name look-up, connections, TLS, request, and the head of the answer.

http.client has a time-out for each read: a receiver that sends an octet a second would hold a thread for hours. Must not
know mail.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult

# Of an answer's body: enough for a reason that people read.
MAX_BODY_BYTES = 2000
_SEND_BYTES = 1 << 16


class PostError(Exception):
    """No status came: the text says why, for people."""


def post(
    url: SplitResult, body: bytes, headers: Mapping[str, str], time_out_s: float, tls: ssl.SSLContext | None
) -> tuple[int, str]:
    """The status and the beginning of the answer's body. Redirects are not followed. Raises PostError without a status.

    The status counts once the head of the answer is read; what becomes of the body changes nothing.
    """
    host, port = url.hostname or "", url.port or (443 if tls is not None else 80)
    deadline = time.monotonic() + time_out_s
    connection: Any = http.client.HTTPConnection(host, port)
    step, sock = "no connection to", None
    try:
        sock = _connected(host, port, deadline, tls)
        connection.sock = _Timed(sock, deadline)
        step = "no answer from"
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", url.netloc)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        if 200 <= answer.status < 300:
            return answer.status, ""
        return answer.status, _text(answer)
    except TimeoutError:
        raise PostError(f"{step} {host}:{port} within {time_out_s:.0f} s") from None
    except ssl.SSLCertVerificationError as error:
        raise PostError(f"{host}:{port}: TLS certificate not accepted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise PostError(f"{host}:{port}: TLS failed: {error.reason or 'handshake'}") from None
    except (http.client.HTTPException, ValueError) as error:
        what = "closed the connection" if isinstance(error, http.client.RemoteDisconnected) else "sent no valid answer"
        raise PostError(f"{host}:{port} {what}") from None
    except OSError as error:
        raise PostError(f"{step} {host}:{port}: {error.strerror or 'network error'}") from None
    finally:
        if sock is not None:
            sock.close()


def _text(answer: http.client.HTTPResponse) -> str:
    try:
        octets = answer.read(MAX_BODY_BYTES)
    except (OSError, http.client.HTTPException, ValueError):
        return ""
    return " ".join(octets.decode("utf-8", "replace").split())[:200]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connected(host: str, port: int, deadline: float, tls: ssl.SSLContext | None) -> socket.socket:
    """A connection to the first address that takes one; each has its share of the time that is left."""
    addresses = _resolved(host, port, deadline)
    last: OSError = TimeoutError()
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        left = _left(deadline)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left / (len(addresses) - number))
            sock.connect(address)
            if tls is None:
                return sock
            # The handshake as a whole is bounded by the socket's time-out.
            sock.settimeout(_left(deadline))
            return tls.wrap_socket(sock, server_hostname=host)
        except OSError as error:
            sock.close()
            if isinstance(error, ssl.SSLError):
                raise
            last = error
        except BaseException:
            sock.close()
            raise
    raise last


def _resolved(host: str, port: int, deadline: float) -> list[Any]:
    """getaddrinfo(3) has no time-out of its own: it runs in a thread that is left behind when the time is over."""
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=look_up, name="webhook-look-up", daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], OSError):
        raise found[0]
    return list(found[0])


class _Timed:
    """What http.client needs of a socket; each operation ends with the deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, octets: Any) -> None:
        """In pieces: the time-out of a TLS socket is one of each piece."""
        view = memoryview(octets)
        while view:
            self._sock.settimeout(_left(self._deadline))
            view = view[self._sock.send(view[:_SEND_BYTES]) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """For the answer."""
        return io.BufferedReader(_Reading(self._sock, self._deadline))

    def close(self) -> None:
        """Nothing: http.client closes a connection before the body of its last answer is read."""


class _Reading(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Within the time that is left."""
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)
