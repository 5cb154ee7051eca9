"""Reads strangers' messages in a process of its own, bounded in time and memory: the mail server never waits for a parser.

Run as a module it is that process: the request is the first line of stdin, the message follows; the answer is one line of
JSON on stdout, and for an attachment its octets behind that line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .confined import confine
from .parsed import MOST_PARSED_BYTES, attachment, html_page, parsed_view

MOST_S = 5.0
# A large message gets more time: so many octets a second at least.
SLOWEST_BYTES_PER_S = 8 << 20
MOST_MEMORY_BYTES = 1 << 30
# So many at once: more wait for their turn.
MOST_PROCESSES = 2
_IN_MEMORY_BYTES = 1 << 20
_CHUNK_BYTES = 256 << 10
_SLOTS: dict[int, asyncio.Semaphore] = {}
_FAILED = (
    "(this message cannot be shown: reading it took too long, or too much memory; the raw message can be downloaded)"
)
_TOO_LARGE = (
    f"(a message of more than {MOST_PARSED_BYTES >> 20} MB is not taken apart: the raw message can be downloaded)"
)
_ROOT = str(Path(__file__).resolve().parents[2])
# Isolated: neither the environment nor the working directory has a say in what is imported.
_COMMAND = f"import sys; sys.path.insert(0, {_ROOT!r}); from {__name__} import main; main()"


@dataclass(frozen=True, slots=True)
class Attached:
    """An attachment: its file name as it was sent, its type, and a file that is read from its start."""

    name: str
    kind: str
    size_bytes: int
    file: IO[bytes]

    def chunks(self) -> Iterator[bytes]:
        """The octets, piece by piece; closes the file."""
        with self.file:
            while piece := self.file.read(_CHUNK_BYTES):
                yield piece


def is_too_large(size_bytes: int) -> bool:
    """True for a message that is not taken apart."""
    return size_bytes > MOST_PARSED_BYTES


async def view(pieces: Iterable[bytes], size_bytes: int) -> dict[str, Any]:
    """`parsed_view`; for a message that cannot be read a note says so."""
    if is_too_large(size_bytes):
        note = _TOO_LARGE
    else:
        note = _FAILED
        found, _ = await _ask({"what": "view"}, pieces, size_bytes)
        if isinstance(found, dict):
            return found
    return {"headers": [], "text": note, "html": None, "attachments": [], "notes": [note.strip("()")]}


async def html(pieces: Iterable[bytes], size_bytes: int) -> str | None:
    """`html_page`."""
    if is_too_large(size_bytes):
        return f"<p>{_TOO_LARGE}</p>"
    found, _ = await _ask({"what": "html"}, pieces, size_bytes)
    return f"<p>{_FAILED}</p>" if found is False else found


async def part(pieces: Iterable[bytes], size_bytes: int, number: int) -> Attached | bool | None:
    """One attachment; None without it; False where the message cannot be read."""
    found, file = await _ask({"what": "part", "number": number}, pieces, size_bytes)
    if not found or file is None:
        return False if found is False else None
    return Attached(found["name"], found["type"], found["bytes"], file)


async def _ask(request: dict[str, Any], pieces: Iterable[bytes], size_bytes: int) -> tuple[Any, IO[bytes] | None]:
    """(the answer, the octets behind it); False where the process failed."""
    loop = asyncio.get_running_loop()
    for number in [number for number in _SLOTS if number != id(loop)]:
        # Of loops that are no more, in tests.
        del _SLOTS[number]
    async with _SLOTS.setdefault(id(loop), asyncio.Semaphore(MOST_PROCESSES)):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", _COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            # No secret of the server's environment is near a stranger's message.
            env={},
            cwd="/",
        )  # fmt: skip
        feeding = loop.create_task(_feed(child, request, pieces))
        try:
            async with asyncio.timeout(MOST_S + size_bytes / SLOWEST_BYTES_PER_S):
                return await _answer(child, request["what"] == "part")
        except (TimeoutError, ValueError, KeyError, TypeError):
            return False, None
        finally:
            feeding.cancel()
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            await child.wait()
            await asyncio.gather(feeding, return_exceptions=True)


async def _feed(child: asyncio.subprocess.Process, request: dict[str, Any], pieces: Iterable[bytes]) -> None:
    assert child.stdin is not None
    # A process that has ended early has its answer, or none.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        child.stdin.write(json.dumps(request).encode() + b"\n")
        waiting = iter(pieces)
        while (piece := await asyncio.to_thread(next, waiting, None)) is not None:
            for at in range(0, len(piece), _CHUNK_BYTES):
                child.stdin.write(piece[at : at + _CHUNK_BYTES])
                await child.stdin.drain()
        child.stdin.close()


async def _answer(child: asyncio.subprocess.Process, has_octets: bool) -> tuple[Any, IO[bytes] | None]:
    assert child.stdout is not None
    if not has_octets:
        return json.loads(await child.stdout.read()), None
    found = json.loads(await child.stdout.readline())
    if found is None:
        return None, None
    file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115
    size = 0
    while piece := await child.stdout.read(_CHUNK_BYTES):
        size += len(piece)
        await asyncio.to_thread(file.write, piece)
    if size != found["bytes"]:
        file.close()
        return False, None
    file.seek(0)
    return found, file


def main() -> None:
    """The process."""
    confine(int(MOST_S + MOST_PARSED_BYTES / SLOWEST_BYTES_PER_S) + 1, MOST_MEMORY_BYTES)
    request = json.loads(sys.stdin.buffer.readline())
    octets = sys.stdin.buffer.read()
    found: Any
    behind = b""
    if request["what"] == "view":
        found = parsed_view(octets)
    elif request["what"] == "html":
        found = html_page(octets)
    else:
        named = attachment(octets, int(request["number"]))
        found = None
        if named is not None:
            name, kind, behind = named
            found = {"name": name[:500], "type": kind[:200], "bytes": len(behind)}
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
    sys.stdout.buffer.write(behind)


if __name__ == "__main__":
    main()
