"""`pillarbox queue export` and `queue import`: messages to and from mbox and Maildir, with their envelope in two fields; or
as JSON, a line each, with all that a queue knows of them.

Return-Path is the reverse-path, X-Envelope-To each recipient that was not final. The queue may run or not; export only
reads, import gives each message to the running server, or writes it into the queue of one that does not run.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import mailbox
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from typing import Annotated, Any, BinaryIO

import typer

from ..client import field_texts
from ..clock import SystemClock, UidSource
from ..config.usual import usual_folder
from ..errors import DuplicateUidError, OptionError, PillarboxError, StoreError, StoreLockedError
from ..log.record import escape_controls
from ..mail.content import Content
from ..mail.fieldtext import field_addresses
from ..places import default_hostname
from ..queue.control import MAX_REQUEST_BYTES, ask, parse_query
from ..queue.enqueue import Stamp, build_message, parse_enqueue, spooled_content
from ..queue.kept import as_json
from ..queue.kept import parse as parse_kept
from ..queue.model import FINAL, View
from ..queue.shards import database, find_shards, spool_folder
from ..queue.shared import open_postgres
from ..queue.spool import Spool
from ..queue.sqlite import SqliteStore
from ..queue.sqlite_read import SqliteReader, connect
from ..queue.store import Store
from ..queue.whole import catch_up
from .place import DataDir, QueueUrl, check_url, give_to_owner, server_folder
from .terminal import say

FORMATS = ("mbox", "maildir", "jsonl")
_TO, _FROM, _STATE = "X-Envelope-To", "Return-Path", "X-Envelope-State"
_SPOOL_ABOVE_BYTES = 128 * 1024
_EXPIRE_S = 4 * 86400.0

Format = Annotated[
    str, typer.Option("--format", metavar="KIND", help="mbox, maildir, or jsonl: all that a queue knows")
]


def export(
    target: Annotated[str, typer.Argument(metavar="FILE|FOLDER", help="An mbox file (- for stdout), or a Maildir.")],
    uids: Annotated[list[str] | None, typer.Argument(metavar="[UID]...", help="Queue ids. [default: all]")] = None,
    kind: Format = "mbox",
    state: Annotated[str | None, typer.Option("--state", help="queued, deferred or held.")] = None,
    sender: Annotated[str | None, typer.Option("--from", metavar="TEXT", help="Part of the reverse-path.")] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TEXT", help="Part of a recipient's address.")] = None,
    data_dir: DataDir = None,
    queue: QueueUrl = None,
) -> None:
    """Write queued messages into a file or a Maildir; the queue stays as it is (`queue cancel` empties it).

    With --format jsonl nothing is lost: DSN options, ages, tries and history go along, for `queue import` elsewhere.
    """
    _check_format(kind)
    fields = {"uids": uids, "state": state, "sender": sender, "recipient": to}
    try:
        query = parse_query({name: value for name, value in fields.items() if value})
    except ValueError as error:
        raise OptionError(str(error)) from None
    done: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            # The target is the caller's: root opens it, and then becomes the owner of the queue.
            file = _new_file(target, stack) if kind != "maildir" else None
            folder = None if queue and data_dir is None else data_dir or usual_folder()
            take = _to_mbox(file) if file is not None else _to_maildir(target, folder)
            found = _shared(queue or "", query) if folder is None else _stored(server_folder(folder), query)
            if kind == "jsonl" and file is not None:
                for view, content, reader in found:
                    if _write_line(file, view, content, reader):
                        done.append(view.uid)
            else:
                for view, content, _ in found:
                    take(view, _with_envelope(view, content))
                    done.append(view.uid)
    except OSError as error:
        raise StoreError(
            f"the export ends behind {len(done)} messages: {error.strerror or error}; what was written last may be cut"
        ) from None
    print(f"{len(done)} message{'' if len(done) == 1 else 's'} exported", file=sys.stderr)
    missing = set(uids or ()) - set(done)
    if missing:
        raise StoreError(f"not exported: {', '.join(sorted(missing))} (unknown or final)")


def import_(
    source: Annotated[str, typer.Argument(metavar="FILE|FOLDER", help="An mbox file, or a Maildir.")],
    kind: Format = "mbox",
    sender: Annotated[
        str | None, typer.Option("--from", metavar="ADDRESS", help="Reverse-path where a message names none.")
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="ADDRESS", help="These recipients, whatever a message names.")
    ] = None,
    headers: Annotated[
        bool, typer.Option("--headers", help="Recipients from To, Cc and Bcc, where none are named.")
    ] = False,
    data_dir: DataDir = None,
    queue: QueueUrl = None,
) -> None:
    """Put messages into the queue. All are read first: with a fault in one, none is taken; what is there already stays one."""
    _check_format(kind)
    shared = queue if data_dir is None else None
    if kind == "jsonl":
        if sender or to or headers:
            raise OptionError("--from, --to and --headers are for messages without an envelope: jsonl has one for each")
        _import_kept(source, data_dir, shared)
        return
    found = list(_read(source, kind))
    items = [_item(octets, number, sender, to, headers=headers) for number, octets in found]
    held = {item["uid"] for item in items if item.pop("is_held")}
    for number, item in enumerate(items, 1):
        try:
            parse_enqueue(item, {})
        except OptionError as error:
            raise OptionError(f"{source}: message {number}: {error}; nothing was imported") from None
    taken = _give_shared(shared, items, held) if shared else _give(server_folder(data_dir), items, held)
    print(f"{len(taken)} message{'' if len(taken) == 1 else 's'} imported", file=sys.stderr)


def _check_format(kind: str) -> None:
    if kind not in FORMATS:
        raise OptionError(f"--format {kind!r}: there are {', '.join(FORMATS)}")


def _import_kept(source: str, data_dir: str | None, queue: str | None) -> None:
    """Messages of another queue, as they were there; what is there already stays as it is."""
    restored = skipped = 0
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(source, "rb"))
        except OSError as error:
            raise OptionError(f"cannot read {source}: {error.strerror}") from None
        # All are judged before the first is taken.
        total = sum(1 for _ in _kept_lines(source, file))
        give = _way_into("" if queue else server_folder(data_dir), queue, stack)
        for number, told, octets in _kept_lines(source, file):
            try:
                give(told, octets)
            except DuplicateUidError:
                skipped += 1
                continue
            except PillarboxError as error:
                raise StoreError(
                    f"{source}: message {number}: {error}; {restored} of {total} were imported: import again for the "
                    "rest, none comes twice"
                ) from None
            restored += 1
            say(told["uid"])
    there = f", {skipped} were there already" if skipped else ""
    print(f"{restored} message{'' if restored == 1 else 's'} imported{there}", file=sys.stderr)


def _kept_lines(source: str, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any], bytes]]:
    file.seek(0)
    for number, line in enumerate(file, 1):
        try:
            told = json.loads(line)
            parse_kept(told)
            octets = base64.b64decode(told.pop("content", ""), validate=True)
        except (ValueError, TypeError, RecursionError, OptionError) as error:
            raise OptionError(f"{source}: line {number}: {error}; nothing was imported") from None
        yield number, told, octets


def _way_into(folder: str, queue: str | None, stack: contextlib.ExitStack) -> Callable[[dict[str, Any], bytes], None]:
    """What takes a message: a queue on PostgreSQL, the one in the folder, or the server that has that."""
    store: Store
    if queue:
        check_url(queue)
        store, spool_at = open_postgres(queue), stack.enter_context(tempfile.TemporaryDirectory())
        store.open()
    else:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        store = own = SqliteStore(folder)
        spool_at = own.spool
        try:
            own.open()
        except StoreLockedError:
            return lambda told, octets: _restore_running(folder, told, octets)
    stack.callback(store.close)
    spool = Spool(spool_at)
    stack.callback(spool.close)
    new_name = UidSource(SystemClock())

    def give(told: dict[str, Any], octets: bytes) -> None:
        message = parse_kept(told)
        if store.get(message.uid) is not None:
            raise DuplicateUidError(f"{message.uid} is there already")
        message.content = asyncio.run(spooled_content(octets, new_name(), spool, _SPOOL_ABOVE_BYTES))
        with store.transaction():
            store.restore([message], time.time())

    return give


def _restore_running(folder: str, told: dict[str, Any], octets: bytes) -> None:
    request = {"verb": "enqueue", "item": {"kept": told}, "size_bytes": len(octets)}
    if len(json.dumps(request)) >= MAX_REQUEST_BYTES:
        raise StoreError("its recipients and history are too many for a running server: stop it, and import again")
    ask(folder, request, content=[octets], shard=(find_shards(folder) or [0])[0], timeout_s=120.0)


# ------------------------------------------------------------------------------ export


def _stored(folder: str, query: Any) -> Generator[tuple[View, Content, Any], None, None]:
    if not os.path.isdir(folder) or not find_shards(folder):
        raise StoreError(f"there is no queue in {folder}: name its folder with --data-dir")
    catch_up(folder)
    for shard in find_shards(folder):
        connection = connect(database(folder, shard), is_read_only=True)
        try:
            reader = SqliteReader(connection, spool_folder(folder, shard))
            for view in reader.search(query):
                content = reader.content(view.uid)
                # One that has just been delivered is nobody's loss.
                if content is not None:
                    yield view, content, reader
        finally:
            connection.close()


def print_content(uid: str, data_dir: str | None, queue: str | None) -> None:
    """Writes the octets of one queued message to stdout; on a terminal its control characters are escaped."""
    query = parse_query({"uids": [uid], "is_all": True})
    sources = _shared(queue, query) if queue and data_dir is None else _stored(server_folder(data_dir), query)
    with contextlib.closing(sources):
        for _, content, _ in sources:
            for piece in content.chunks():
                if not sys.stdout.isatty():
                    sys.stdout.buffer.write(piece)
                    continue
                for line in piece.decode("utf-8", "replace").splitlines(keepends=True):
                    print(escape_controls(line.rstrip("\r\n")), end="\n" if line.endswith("\n") else "")
            return
    raise StoreError(f"no content of {uid}: no such message, or it is finished")


def _shared(url: str, query: Any) -> Generator[tuple[View, Content, Any], None, None]:
    check_url(url)
    store = open_postgres(url)
    store.open()
    try:
        for view in store.search(query):
            content = store.content(view.uid)
            if content is not None:
                yield view, content, store
    finally:
        store.close()


def _write_line(file: BinaryIO, view: View, content: Content, reader: Any) -> bool:
    """One message, content included; False for one that has just been delivered, which is nobody's loss."""
    whole, envelope = reader.get(view.uid), reader.envelope(view.uid)
    if whole is None or envelope is None or whole.finished_at is not None:
        return False
    told = as_json(whole, envelope, time.time())
    told["content"] = base64.b64encode(content.read()).decode()
    file.write(json.dumps(told).encode() + b"\n")
    file.flush()
    if file is not sys.stdout.buffer:
        # Whoever empties the queue behind this has nothing else.
        os.fsync(file.fileno())
    return True


def _new_file(target: str, stack: contextlib.ExitStack) -> BinaryIO:
    if target == "-":
        return sys.stdout.buffer
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OptionError(f"cannot write {target}: {error.strerror}; name a file that is not there") from None
    return stack.enter_context(os.fdopen(handle, "wb"))


def _with_envelope(view: View, content: Content) -> Iterator[bytes]:
    # What claims to be an envelope in the message itself is not.
    waiting = [r.address for r in view.recipients if r.state not in FINAL]
    head = f"{_FROM}: <{view.reverse_path or ''}>\r\n" + "".join(f"{_TO}: {address}\r\n" for address in waiting)
    if view.state == "held":
        head += f"{_STATE}: held\r\n"
    for name in (_TO, _STATE):
        content.remove_header(name)
    yield head.encode("utf-8")
    yield from content.chunks()


def _to_mbox(file: BinaryIO) -> Any:
    def take(view: View, pieces: Iterator[bytes]) -> None:
        moment = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(view.received_at))
        file.write(f"From {view.reverse_path or 'MAILER-DAEMON'} {moment}\n".encode())
        last = b""
        for line in _lines(pieces):
            # mboxrd: a line that could be a separator, quoted or not, gets one > more.
            file.write((b">" if line.lstrip(b">").startswith(b"From ") else b"") + line)
            last = line
        file.write(b"\n" if last.endswith(b"\n") else b"\n\n")
        file.flush()
        if file is not sys.stdout.buffer:
            # Whoever empties the queue behind this has nothing else.
            os.fsync(file.fileno())

    return take


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        for line in lines:
            yield line.removesuffix(b"\r") + b"\n"
    if rest:
        yield rest


def _to_maildir(target: str, folder: str | None) -> Any:
    try:
        for path in (target, *(os.path.join(target, name) for name in ("tmp", "new", "cur"))):
            if not os.path.isdir(path):
                os.makedirs(path, mode=0o700)
                give_to_owner(path, folder)
    except OSError as error:
        raise OptionError(f"cannot make the Maildir {target}: {error.strerror}") from None

    def take(view: View, pieces: Iterator[bytes]) -> None:
        name = f"{int(view.received_at)}.{view.uid}.pillarbox"
        path = os.path.join(target, "tmp", name)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            for line in _lines(pieces):
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path, os.path.join(target, "new", name))

    return take


# ------------------------------------------------------------------------------ import


def _read(source: str, kind: str) -> Iterator[tuple[int, bytes]]:
    if not os.path.exists(source):
        raise OptionError(f"there is no {source}")
    if kind == "mbox":
        if os.path.isdir(source):
            raise OptionError(f"{source} is a folder: say --format maildir")
        box: Any = mailbox.mbox(source, create=False)
        for number, key in enumerate(box.iterkeys(), 1):
            octets = box.get_bytes(key)
            yield (
                number,
                b"\n".join(
                    line[1:] if line.startswith(b">") and line.lstrip(b">").startswith(b"From ") else line
                    for line in octets.split(b"\n")
                ),
            )
        return
    if not all(os.path.isdir(os.path.join(source, name)) for name in ("new", "cur")):
        raise OptionError(f"{source} is no Maildir: it has no folders new and cur")
    number = 0
    for name in ("new", "cur"):
        for file in sorted(os.listdir(os.path.join(source, name))):
            path = os.path.join(source, name, file)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            number += 1
            with open(path, "rb") as handle:
                yield number, handle.read()


def _item(octets: bytes, number: int, sender: str | None, to: list[str] | None, *, headers: bool) -> dict[str, Any]:
    fields = field_texts(octets)
    recipients = list(to or ()) or [text.strip() for name, text in fields if name == _TO.lower()]
    by_headers = not recipients and headers
    if by_headers:
        try:
            for name, text in fields:
                if name in ("to", "cc", "bcc"):
                    recipients += field_addresses(name.title(), text)
        except ValueError as error:
            raise OptionError(f"message {number}: {error}. Nothing was imported") from None
    if not recipients:
        raise OptionError(
            f"message {number} names no recipient: it has no {_TO}; give --to ADDRESS, or --headers. Nothing was imported"
        )
    path = next((text for name, text in fields if name == _FROM.lower()), None)
    reverse_path = path.strip().removeprefix("<").removesuffix(">") if path is not None else sender
    content = Content(octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    for name in (_TO, _FROM, _STATE, *(("Bcc", "Resent-Bcc") if by_headers else ())):
        content.remove_header(name)
    item: dict[str, Any] = {"reverse_path": reverse_path or "", "recipients": recipients, "content": content.read()}
    # The same message has the same uid at every import: a second one takes what the first has left.
    told = json.dumps([item["reverse_path"], recipients, number]).encode() + item["content"]
    item["uid"] = f"i-{hashlib.sha256(told).hexdigest()[:40]}"
    is_held = any(name == _STATE.lower() and text.strip() == "held" for name, text in fields)
    return {**item, "is_held": is_held}


def _give(folder: str, items: list[dict[str, Any]], held: set[str]) -> list[str]:
    """To the server that runs there, or into its queue; tells each uid as it is taken."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    store = SqliteStore(folder)
    try:
        store.open()
    except StoreLockedError:
        return _give_running(folder, items, held)
    try:
        new = [item for item in items if store.get(item["uid"]) is None]
        taken = asyncio.run(_write(store, new, held, store.spool))
    finally:
        store.close()
    for uid in taken:
        say(uid)
    return taken


def _give_shared(url: str, items: list[dict[str, Any]], held: set[str]) -> list[str]:
    """Into a queue on PostgreSQL; its nodes hear of it."""
    check_url(url)
    store = open_postgres(url)
    store.open()
    try:
        new = [item for item in items if store.get(item["uid"]) is None]
        with tempfile.TemporaryDirectory() as folder:
            taken = asyncio.run(_write(store, new, held, folder))
    finally:
        store.close()
    for uid in taken:
        say(uid)
    return taken


def _give_running(folder: str, items: list[dict[str, Any]], held: set[str]) -> list[str]:
    from ..client import connect as connect_client

    client, taken = connect_client(folder), []
    try:
        for item in items:
            with contextlib.suppress(DuplicateUidError):
                taken.append(client.enqueue(**item, hold="held before it was imported" if item["uid"] in held else ""))
                say(taken[-1])
    except PillarboxError as error:
        raise StoreError(
            f"message {item['uid']}: {error}; {len(taken)} of {len(items)} were imported: import again for the rest, "
            "none comes twice"
        ) from None
    return taken


async def _write(store: Store, items: list[dict[str, Any]], held: set[str], folder: str) -> list[str]:
    """One transaction for all of them; large contents come by way of the folder."""
    clock, spool = SystemClock(), Spool(folder)
    new_uid = UidSource(clock)
    messages = []
    try:
        for item in items:
            stamp = Stamp(default_hostname(), item["uid"], new_uid(), clock.time(), _EXPIRE_S)
            message = await build_message(parse_enqueue(item, {}), stamp, spool, _SPOOL_ABOVE_BYTES)
            if item["uid"] in held:
                message.hold("held before it was imported")
            messages.append(message)
        with store.transaction():
            store.accept(messages)
    except BaseException:
        spool.remove([message.content.path for message in messages if message.content.path])
        raise
    finally:
        spool.close()
    return [message.uid for message in messages]
