"""From synchronous programs, in any thread or process: mail for the running server, durable when the call returns.

    mail = pillarbox.connect("/var/lib/pillarbox")          # or connect("http://127.0.0.1:8025", token=...)
    uid = mail.enqueue(reverse_path="shop@example.org", recipients=["you@example.net"], content=message)

A server that is just being restarted is waited for. Each message has its uid before it is sent, so that a call whose
answer was lost is asked again and never doubled.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from email.errors import MessageError
from email.message import Message
from email.parser import BytesHeaderParser
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

from .config.usual import usual
from .errors import DuplicateUidError, NotRunningError, OptionError, PillarboxError, StateError, StoreError
from .mail.fieldtext import field_addresses
from .queue.control import MAX_REQUEST_BYTES, ask
from .queue.enqueue import message_octets, text_octets
from .queue.shards import find_shards
from .smtp.address import ascii_mailbox

_PIECE_BYTES = 1 << 18
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


def connect(
    where: str | os.PathLike[str] | None = None, *, token: str | None = None, patience_s: float = 15.0
) -> Client:
    """A client for the server on that data directory or at that URL of its admin API.

    Default: $PILLARBOX_DATA_DIR, the folder of the configuration file, or the usual one.

    `token` is needed with a URL: it stands in admin.json. `patience_s`: so long a server that is not there is waited for.
    Nothing is opened until mail is sent; threads may share it, and it may be made before a fork.
    """
    place = os.fspath(where) if where is not None else usual(is_strict=False).data_dir
    if place.startswith(("http://", "https://")):
        if not token:
            raise OptionError("connect: a URL wants token=: it stands in admin.json in the server's data directory")
        return Client(_Http(place, token), patience_s)
    return Client(_Socket(place), patience_s)


class Client:
    """See the module's text; `connect` makes one."""

    def __init__(self, way: _Socket | _Http, patience_s: float) -> None:
        self._way = way
        self._patience_s = patience_s

    def enqueue(
        self,
        *,
        reverse_path: str | None,
        recipients: str | Sequence[str],
        content: str | bytes | Message | IO[bytes],
        uid: str | None = None,
        hold: str = "",
    ) -> str:
        """Puts a message into the queue and returns its uid once it is on the disk.

        `hold`, a reason, keeps it there until somebody releases it. OptionError says what is wrong with it,
        DuplicateUidError that your `uid` is there already, NotRunningError that no server answers: then it may be called
        again, with the same `uid` if it must not come twice.
        """
        if reverse_path is not None and not isinstance(reverse_path, str):
            raise OptionError(
                f"enqueue: key 'reverse_path': {type(reverse_path).__name__} is not allowed: give str, or None"
            )
        listed = [recipients] if isinstance(recipients, str) else list(recipients)
        item = {"reverse_path": reverse_path, "recipients": listed, "uid": uid or f"c-{uuid.uuid4().hex}"}
        if hold:
            item["hold"] = hold
        is_utf8 = not all(ascii_mailbox(str(address)).isascii() for address in (reverse_path or "", *listed))
        file, size = _file_of(content, is_utf8=is_utf8)
        start = file.tell()
        deadline = time.monotonic() + self._patience_s
        pause, is_again = _FIRST_PAUSE_S, False
        while True:
            file.seek(start)
            try:
                self._way.enqueue(item, _pieces(file, size), size)
                return str(item["uid"])
            except DuplicateUidError:
                if is_again:
                    # The answer to the call before was lost on its way: it was taken.
                    return str(item["uid"])
                raise
            except _Unreachable as error:
                is_again = is_again or error.was_sent
                if time.monotonic() + pause > deadline:
                    raise NotRunningError(f"{error}: start it, or call again") from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def send_message(
        self,
        message: Message,
        sender: str | None = None,
        recipients: Sequence[str] | None = None,
        *,
        uid: str | None = None,
        hold: str = "",
    ) -> str:
        """`enqueue` for an email.message: who it is from and to stands in Sender or From, and in To, Cc and Bcc.

        Bcc fields are not sent. OptionError if no recipient is named, or a field is not a valid list of addresses. `uid` and
        `hold` are those of `enqueue`.
        """
        resent = "Resent-" if any(name.lower().startswith("resent-") for name in message) else ""
        if recipients is None:
            recipients = _addresses_of(message, *(resent + name for name in ("To", "Cc", "Bcc")))
        if sender is None:
            found = _addresses_of(message, f"{resent}Sender") or _addresses_of(message, f"{resent}From")
            sender = found[0] if found else ""
        if not recipients:
            raise OptionError("send_message: nobody is named in To, Cc and Bcc: give recipients=")
        octets = without_bcc(message_octets(message))
        return self.enqueue(reverse_path=sender, recipients=recipients, content=octets, uid=uid, hold=hold)


def _addresses_of(message: Message, *names: str) -> list[str]:
    found = []
    for name in names:
        try:
            for value in message.get_all(name, []):
                found += field_addresses(name, value)
        except (IndexError, AttributeError, TypeError, LookupError, ValueError, MessageError) as error:
            # Reading a field may fail within the package email.
            raise OptionError(f"send_message: {error or type(error).__name__}") from None
    return found


def field_texts(octets: bytes) -> list[tuple[str, str]]:
    """(name in lower case, text) of each header field; UTF-8 stands as it is (RFC 6532)."""
    found = []
    for name, value in BytesHeaderParser().parsebytes(octets).raw_items():
        # The parser keeps octets that are not ASCII as surrogates.
        found.append((name.lower(), str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")))
    return found


def without_bcc(octets: bytes) -> bytes:
    """A message without its Bcc and Resent-Bcc fields, the rest untouched; line ends are CRLF or LF."""
    from .mail.content import Content

    content = Content(octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    content.remove_header("Bcc")
    content.remove_header("Resent-Bcc")
    return content.read()


class _Unreachable(Exception):
    """Nobody answers; `was_sent`: the message may have arrived."""

    def __init__(self, text: str, *, was_sent: bool) -> None:
        super().__init__(text)
        self.was_sent = was_sent


class _Socket:
    """The control socket of a worker on this machine."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def enqueue(self, item: dict[str, Any], content: Iterator[bytes], size: int) -> None:
        request = {"verb": "enqueue", "item": item, "size_bytes": size}
        if len(json.dumps(request)) >= MAX_REQUEST_BYTES:
            raise OptionError(
                f"enqueue: {len(item['recipients'])} recipients are too many for one message: send several"
            )
        if not os.path.isdir(self._folder):
            # A wrong path does not become right while the caller waits.
            raise NotRunningError(
                f"no server runs on {self._folder}: it is not a folder; mend the path, or start it, or call again"
            )
        shards = find_shards(self._folder) or [0]
        try:
            ask(self._folder, request, content=content, shard=shards[0], timeout_s=120.0)
        except DuplicateUidError:
            raise
        except StateError as error:
            # It is just ending, and has taken nothing.
            raise _Unreachable(str(error), was_sent=False) from None
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, PermissionError):
                raise StoreError(f"{self._folder} is not yours to use: {error}") from None
            if isinstance(cause, (FileNotFoundError, ConnectionRefusedError)):
                raise _Unreachable(f"no server runs on {self._folder}", was_sent=False) from None
            if isinstance(cause, OSError):
                raise _Unreachable(str(error), was_sent=True) from None
            raise


class _Http:
    """The admin API."""

    def __init__(self, url: str, token: str) -> None:
        self._parts = urlsplit(url)
        self._token = token

    def enqueue(self, item: dict[str, Any], content: Iterator[bytes], size: int) -> None:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.netloc, timeout=120)
        asked = urlencode(
            [("from", item["reverse_path"] or ""), *(("to", one) for one in item["recipients"])], quote_via=quote
        )
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "message/rfc822",
            "Content-Length": str(size),
            "X-Uid": item["uid"],
        }
        if "hold" in item:
            headers["X-Hold"] = quote(item["hold"])
        try:
            connection.connect()
        except OSError as error:
            raise _Unreachable(f"{self._parts.geturl()} does not answer: {error}", was_sent=False) from None
        try:
            connection.request("POST", f"{self._parts.path.rstrip('/')}/api/messages?{asked}", content, headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise _Unreachable(f"{self._parts.geturl()} hung up: {error}", was_sent=True) from None
        finally:
            connection.close()
        if answer.status < 300:
            return
        raise _error_of(answer.status, body)


def _error_of(status: int, body: bytes) -> Exception:
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = f"HTTP {status}"
    if status == 409:
        return DuplicateUidError(text)
    if status in (400, 413):
        return OptionError(text)
    if status == 503:
        return _Unreachable(text, was_sent=True)
    return PillarboxError(f"the server says {status}: {text}")


def _file_of(content: str | bytes | Message | IO[bytes], *, is_utf8: bool) -> tuple[IO[bytes], int]:
    if isinstance(content, Message):
        content = message_octets(content)
    if isinstance(content, str):
        content = text_octets(content, is_utf8=is_utf8)
    if isinstance(content, (bytes, bytearray, memoryview)):
        return io.BytesIO(content), len(content)
    if not (callable(getattr(content, "read", None)) and callable(getattr(content, "seek", None))):
        raise OptionError(
            f"enqueue: key 'content': {type(content).__name__} is not allowed: give str, bytes, an EmailMessage or a binary file"
        )
    start = content.tell()
    size = content.seek(0, os.SEEK_END) - start
    content.seek(start)
    return content, size


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0:
        piece = file.read(min(size, _PIECE_BYTES))
        if not isinstance(piece, bytes):
            raise OptionError("enqueue: key 'content': the file gives text: open it in binary mode")
        if not piece:
            raise OptionError("enqueue: key 'content': the file became shorter while it was read")
        size -= len(piece)
        yield piece
