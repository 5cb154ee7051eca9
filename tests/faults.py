"""A fault at every step: the server is killed, the call fails, or the power goes, at each write, sync, reply and
commit; what was not synced is gone then, or the last of it half there (a torn page).

A scenario of four messages (small; large; with a refused recipient and its DSN; deferred first) runs against a server in a
process of its own, which does one thing wrong at one point. Then a server without faults starts on what is left, and every
message that got its 250 is counted at the far end. Points are found by a run that only counts them.

`python -m tests.faults` lists every point with its result, for SQLite; with `--journal` for a busy SQLite queue, which has a
journal; with `--postgres` for PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import multiprocessing
import os
import signal
import smtplib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pillarbox.testing.scripted import ScriptedServer
from tests.postgres import Postgres

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pillarbox.app", "pillarbox.queue.postgres"])
# Calls of one kind that are tried, spread over all there are: some at the start, the others as mail comes and goes.
MOST_OF_A_KIND = 8
MODES = {
    "wal write": ("kill", "EIO", "ENOSPC", "power", "torn"),
    "wal sync": ("kill", "EIO", "power", "torn"),
    "database write": ("kill", "EIO", "power", "torn"),
    "database sync": ("kill", "power", "torn"),
    "journal write": ("kill", "EIO", "behind", "short", "torn"),
    "journal written": ("kill", "power"),
    "spool write": ("kill", "EIO", "ENOSPC", "short", "power"),
    "spool sync": ("kill", "EIO", "power", "torn"),
    "folder sync": ("kill", "EIO", "power"),
    "spool unlink": ("kill",),
    "reply": ("kill",),
    "relay write": ("kill",),
    "statement": ("kill", "cut"),
    "commit": ("kill", "cut"),
    "committed": ("kill", "cut"),
}


@dataclass
class Plan:
    """The one fault of a run: at the `number`-th call of a kind. Without a kind calls are only counted."""

    kind: str = ""
    number: int = 0
    mode: str = ""


class Point:
    """Counts calls in the child, and does what is planned. Unsynced writes are undone before the power goes."""

    def __init__(self, plan: Plan, counts: str) -> None:
        self._plan = plan
        self._counts_file = counts
        self.counts: Counter[str] = Counter()
        self._undo: dict[str, list[Callable[[bool], object]]] = {}
        self._guard = threading.RLock()

    def reach(self, kind: str) -> str:
        """A call of that kind begins: "" goes on, else the mode of the fault."""
        with self._guard:
            self.counts[kind] += 1
            if kind != self._plan.kind or self.counts[kind] != self._plan.number:
                return ""
            if self._plan.mode in ("kill", "power", "torn"):
                if self._plan.mode != "kill":
                    for undo in self._undo.values():
                        for one in reversed(undo):
                            one(False)
                        if self._plan.mode == "torn":
                            # Of the last write half has come to the disk, and nothing of those before it.
                            undo[-1](True)
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(10)
            return self._plan.mode

    def wrote(self, path: str, undo: Callable[[bool], object]) -> None:
        """Until it is synced, a power cut takes it back: `undo(False)`; `undo(True)` does half of it again."""
        with self._guard:
            self._undo.setdefault(path, []).append(undo)

    def synced(self, path: str) -> None:
        """It is on the disk."""
        with self._guard:
            self._undo.pop(path, None)

    def save(self) -> None:
        """What was counted, for the parent."""
        Path(self._counts_file).write_text("\n".join(f"{kind}\t{count}" for kind, count in self.counts.items()))


def _os_error(mode: str) -> OSError:
    number = errno.ENOSPC if mode == "ENOSPC" else errno.EIO
    return OSError(number, os.strerror(number))


def _watch_sqlite(point: Point) -> None:
    import apsw

    def fail(mode: str) -> None:
        raise apsw.FullError("no room") if mode == "ENOSPC" else apsw.IOError("input/output error")

    class File(apsw.VFSFile):
        def __init__(self, vfs: str, name: Any, flags: list[int]) -> None:
            super().__init__(vfs, name, flags)
            self._path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
            self._kind = "wal" if self._path.endswith("-wal") else "database"

        def xWrite(self, data: bytes, offset: int) -> None:
            if mode := point.reach(f"{self._kind} write"):
                fail(mode)
            path, size, before = self._path, os.path.getsize(self._path), b""
            with open(path, "rb") as file:
                before = os.pread(file.fileno(), len(data), offset)
            super().xWrite(data, offset)

            def undo(is_torn: bool) -> None:
                with open(path, "r+b") as file:
                    if is_torn:
                        os.pwrite(file.fileno(), data[: len(data) // 2], offset)
                        return
                    os.pwrite(file.fileno(), before, offset)
                    os.ftruncate(file.fileno(), size)

            point.wrote(path, undo)

        def xSync(self, flags: int) -> None:
            if mode := point.reach(f"{self._kind} sync"):
                fail(mode)
            super().xSync(flags)
            point.synced(self._path)

    class Vfs(apsw.VFS):
        def __init__(self) -> None:
            super().__init__("faulty", "unix", makedefault=True)

        def xOpen(self, name: Any, flags: list[int]) -> Any:
            return File("unix", name, flags)

    global _vfs
    _vfs = Vfs()


_vfs: Any = None


def _watch_spool(point: Point) -> None:
    real_writev, real_fdatasync, real_fsync, real_unlink = os.writev, os.fdatasync, os.fsync, os.unlink
    new: dict[str, list[str]] = {}

    def name_of(handle: int) -> str:
        return os.readlink(f"/proc/self/fd/{handle}")

    def writev(handle: int, pieces: Any) -> int:
        mode = point.reach("spool write")
        if mode == "short":
            return os.write(handle, pieces[0][: max(1, len(pieces[0]) // 2)])
        if mode:
            raise _os_error(mode)
        path, size = name_of(handle), os.fstat(handle).st_size
        if not size:
            folder = os.path.dirname(path)
            new.setdefault(folder, []).append(path)
            # Until the folder is synced the name may be lost.
            point.wrote(folder, lambda is_torn: not is_torn and os.path.exists(path) and real_unlink(path))
        written = real_writev(handle, pieces)
        octets = b"".join(pieces)
        half = octets[: len(octets) // 2]

        def undo(is_torn: bool) -> None:
            if os.path.exists(path):
                os.truncate(path, size)
                if is_torn:
                    with open(path, "ab") as file:
                        file.write(half)

        point.wrote(path, undo)
        return written

    def fdatasync(handle: int) -> None:
        if mode := point.reach("spool sync"):
            raise _os_error(mode)
        real_fdatasync(handle)
        point.synced(name_of(handle))

    def fsync(handle: int) -> None:
        path = name_of(handle)
        if path.endswith("spool"):
            if mode := point.reach("folder sync"):
                raise _os_error(mode)
            real_fsync(handle)
            point.synced(path)
        else:
            real_fsync(handle)

    def unlink(path: Any, *rest: Any, **more: Any) -> None:
        if "/spool/" in str(path):
            point.reach("spool unlink")
        real_unlink(path, *rest, **more)

    os.writev, os.fdatasync, os.fsync, os.unlink = writev, fdatasync, fsync, unlink  # type: ignore[assignment]


def _watch_journal(point: Point) -> None:
    real = os.pwritev

    def pwritev(handle: int, pieces: Any, offset: int, flags: int) -> int:
        octets = b"".join(pieces)

        def tear(is_torn: bool) -> None:
            if is_torn:
                os.pwrite(handle, octets[: len(octets) // 2], offset)

        # Synced when it returns: only a power cut in the middle of it finds half of it.
        point.wrote("the journal", tear)
        mode = point.reach("journal write")
        point.synced("the journal")
        if mode == "short":
            return os.pwrite(handle, octets[: len(octets) // 2], offset)
        if mode == "EIO":
            raise _os_error(mode)
        written = real(handle, pieces, offset, flags)
        if mode == "behind":
            # It is there, and the disk says no.
            raise _os_error("EIO")
        point.reach("journal written")
        return written

    os.pwritev = pwritev  # type: ignore[assignment]


def _be_busy() -> None:
    """As a server that has much to do: a journal from the first commit on, and a database that follows it soon."""
    from pillarbox.queue import ahead, commit

    ahead.BUSY_COMMITTED = 0
    ahead.BEHIND_S = commit.BEHIND_S = 0.02


def _watch_wire(point: Point) -> None:
    from pillarbox.delivery.client import ClientConnection
    from pillarbox.server.connection import Outbox

    for kind, owner, name in (("reply", Outbox, "flush"), ("relay write", ClientConnection, "_write")):
        real = getattr(owner, name)

        def watched(self: Any, *arguments: Any, _real: Any = real, _kind: str = kind) -> Any:
            point.reach(_kind)
            return _real(self, *arguments)

        setattr(owner, name, watched)


def _watch_postgres(point: Point) -> None:
    import psycopg

    real = psycopg.Connection.execute

    def execute(self: Any, query: Any, *arguments: Any, **more: Any) -> Any:
        if threading.current_thread().name != "pillarbox-writer":
            return real(self, query, *arguments, **more)
        kind = "commit" if query == "COMMIT" else "statement"
        if point.reach(kind) == "cut":
            # The connection goes, and nobody said a word.
            _shut(self.fileno())
        done = real(self, query, *arguments, **more)
        if kind == "commit" and point.reach("committed") == "cut":
            _shut(self.fileno())
        return done

    psycopg.Connection.execute = execute  # type: ignore[method-assign]


def _shut(handle: int) -> None:
    import socket

    with contextlib.suppress(OSError):
        socket.socket(fileno=os.dup(handle)).shutdown(socket.SHUT_RDWR)


def _serve(folder: str, options: dict[str, Any], plan: Plan | None) -> None:
    """In the child: a server, until SIGTERM."""
    from pillarbox import MailServer

    # What the faults make it say is no news.
    quiet = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(quiet, 2)
    if options.pop("is_busy", False):
        _be_busy()
    if plan is not None:
        point = Point(plan, f"{folder}/counts")
        _watch_sqlite(point) if "queue" not in options else _watch_postgres(point)
        _watch_spool(point)
        _watch_journal(point)
        _watch_wire(point)

    async def main() -> None:
        server = await MailServer.spawn(port=0, data_dir=f"{folder}/data", hostname="mx.test", direct=False, **options)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        ready = Path(folder, "port.new")
        ready.write_text(str(server.getsockname()[1]))
        ready.rename(Path(folder, "port"))
        await stop.wait()
        if plan is not None:
            point.save()
        await server.shutdown(grace_s=1.0)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


@dataclass
class Result:
    """Of one point."""

    plan: Plan
    acknowledged: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    was_reached: bool = False

    def __str__(self) -> str:
        what = f"{self.plan.mode} at {self.plan.kind} {self.plan.number}"
        found = f"{len(self.acknowledged)} got their 250, {len(self.lost)} lost, {len(self.twice)} sent again"
        return f"{what:28} {found}{'' if self.was_reached else ' (not reached)'}"


class Far:
    """The far end, in a thread of the parent: outlives every server."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.relay = ScriptedServer(RCPT=self._rcpt)
        self._deferred: set[str] = set()
        started = threading.Event()

        def live() -> None:
            self._loop.run_until_complete(self.relay.start())
            started.set()
            self._loop.run_forever()

        threading.Thread(target=live, daemon=True).start()
        started.wait(10)

    def _rcpt(self, line: str) -> str:
        if "refused" in line:
            return "550 5.1.1 No"
        if "later" in line and line not in self._deferred:
            self._deferred.add(line)
            return "450 4.2.1 Later"
        return "250 OK"

    def reset(self) -> None:
        self._deferred.clear()
        self.relay.messages.clear()

    def arrived(self) -> Counter[str]:
        """Recipients, and DSNs to the sender, by how often."""
        return Counter(line for _, recipients, _ in list(self.relay.messages) for line in recipients)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


MAIL = (("small@x.test",), ("large@x.test",), ("fine@x.test", "refused@x.test"), ("later@x.test",))


def _send(folder: Path, process: Any) -> list[str]:
    """The scenario: the recipients whose message got its 250. Ends when the server is gone."""
    acknowledged: list[str] = []
    for recipients in MAIL:
        body = "y" * 70 + "\r\n"
        text = "Subject: x\r\n\r\n" + body * (6000 if recipients[0].startswith("large") else 3)
        for _ in range(2):
            if not process.is_alive():
                return acknowledged
            with contextlib.suppress(OSError, smtplib.SMTPException, ValueError):
                port = int((folder / "port").read_text())
                with smtplib.SMTP("127.0.0.1", port, local_hostname="x.test", timeout=5) as client:
                    client.sendmail("a@b.test", list(recipients), text)
                    acknowledged += recipients
                    break
    return acknowledged


def _wait(condition: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def _start(folder: Path, options: dict[str, Any], plan: Plan | None) -> Any:
    (folder / "port").unlink(missing_ok=True)
    process = _context.Process(target=_serve, args=(str(folder), options, plan), daemon=True)
    process.start()
    _wait(lambda: (folder / "port").exists() or not process.is_alive(), 20)
    return process


def run(folder: Path, far: Far, plan: Plan, options: dict[str, Any]) -> Result:
    """One fault, then a server without, then all is counted."""
    far.reset()
    folder.mkdir()
    given = {
        "relay": f"127.0.0.1:{far.relay.port}",
        "retry_first_s": 0.05,
        "retry_longest_s": 0.1,
        "node_lease_s": 1.0,
        **options,
    }
    process = _start(folder, given, plan)
    result = Result(plan, _send(folder, process))
    wanted = [r for r in result.acknowledged if r != "refused@x.test"]

    def is_done() -> bool:
        arrived = far.arrived()
        return all(any(r in line for line in arrived) for r in wanted)

    # What a fault had hindered may go on, or the server is dead.
    _wait(lambda: is_done() or not process.is_alive(), 1.5)
    # It may die of its fault at this very moment.
    process.terminate()
    process.join(15)
    result.was_reached = process.exitcode == -signal.SIGKILL or plan.mode not in ("kill", "power")
    process = _start(folder, given, None)
    refusals = 1 if "refused@x.test" in result.acknowledged else 0
    _wait(lambda: is_done() and sum(n for line, n in far.arrived().items() if "a@b.test" in line) >= refusals, 15)
    process.terminate()
    process.join(15)
    arrived = far.arrived()
    times = {r: sum(n for line, n in arrived.items() if r in line) for r in (*wanted, "a@b.test")}
    result.lost = [r for r in wanted if not times[r]]
    if refusals and not times["a@b.test"]:
        result.lost.append("refused@x.test, and its DSN")
    if process.exitcode != 0:
        result.lost.append(f"the server behind the fault: it ended with {process.exitcode}")
    result.twice = [r for r, n in times.items() if n > 1]
    return result


def points(folder: Path, far: Far, options: dict[str, Any]) -> list[Plan]:
    """Every point of the scenario, found by counting."""
    run(folder, far, Plan(), options)
    plans = []
    for line in (folder / "counts").read_text().splitlines():
        kind, count = line.split("\t")
        step = max(1.0, int(count) / MOST_OF_A_KIND)
        for number in sorted({round(1 + n * step) for n in range(min(int(count), MOST_OF_A_KIND))}):
            plans += [Plan(kind, number, mode) for mode in MODES[kind]]
    return plans


def run_all(
    folder: Path, make_options: Callable[[], contextlib.AbstractContextManager[dict[str, Any]]], every: int = 1
) -> Iterator[Result]:
    """The result of every point, or of each `every`-th."""
    far = Far()
    try:
        with make_options() as options:
            plans = points(folder / "count", far, options)
        for number, plan in enumerate(plans[::every]):
            with make_options() as options:
                yield run(folder / f"run{number}", far, plan, options)
    finally:
        far.close()


@contextlib.contextmanager
def on_sqlite() -> Iterator[dict[str, Any]]:
    """The default queue, in the data directory."""
    yield {}


@contextlib.contextmanager
def on_journal() -> Iterator[dict[str, Any]]:
    """The same, busy."""
    yield {"is_busy": True}


@contextlib.contextmanager
def on_postgres(server: Postgres) -> Iterator[dict[str, Any]]:
    """A database for each run."""
    with server.database() as url:
        yield {"queue": url}


def main() -> None:
    """Lists them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--journal", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    server = Postgres() if given.postgres else None
    on_file = on_journal if given.journal else on_sqlite
    options = on_file if server is None else lambda: on_postgres(server)
    results = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for result in run_all(Path(folder), options, given.every):
                print(result, flush=True)
                results.append(result)
    finally:
        if server is not None:
            server.remove()
    lost = sum(bool(result.lost) for result in results)
    print(f"{len(results)} points, mail was lost at {lost}")
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
