"""Parses strangers' messages in a process of its own, bounded in time and memory: the mail server never waits for a parser.

Run as a module it is that process: what to do in the first line of stdin, the message behind it; JSON on stdout.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from typing import Any

from .parsed import attachment, html_page, parsed_view

MOST_S = 5.0
MOST_MEMORY_BYTES = 768 << 20
# So many at once: more wait for their turn.
MOST_PROCESSES = 2
_SLOTS: dict[int, asyncio.Semaphore] = {}
_FAILED = "(this message cannot be shown: reading it took too long, or too much memory)"


async def view(octets: bytes) -> dict[str, Any]:
    """`parsed_view`; of a message that cannot be read the headers are left out, and a text says so."""
    found = await _ask({"what": "view"}, octets)
    if isinstance(found, dict):
        return found
    return {"headers": [], "text": _FAILED, "html": None, "attachments": []}


async def html(octets: bytes) -> str | None:
    """`html_page`."""
    found = await _ask({"what": "html"}, octets)
    return f"<p>{_FAILED}</p>" if found is False else found


async def part(octets: bytes, number: int) -> tuple[str, bytes] | None:
    """`attachment`."""
    found = await _ask({"what": "part", "number": number}, octets)
    return (found[0], base64.b64decode(found[1])) if found else None


async def _ask(request: dict[str, Any], octets: bytes) -> Any:
    """False where the process failed."""
    loop = asyncio.get_running_loop()
    for number in [number for number in _SLOTS if number != id(loop)]:
        # Of loops that are no more, in tests.
        del _SLOTS[number]
    async with _SLOTS.setdefault(id(loop), asyncio.Semaphore(MOST_PROCESSES)):
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            # Not from the working directory, whatever lies there.
            "-P",
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(MOST_S):
                answer, _ = await child.communicate(json.dumps(request).encode() + b"\n" + octets)
            return json.loads(answer)
        except (TimeoutError, ValueError):
            return False
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()


def main() -> None:
    """The process."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    seconds = int(MOST_S) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    os.nice(10)
    request = json.loads(sys.stdin.buffer.readline())
    octets = sys.stdin.buffer.read()
    found: Any
    if request["what"] == "view":
        found = parsed_view(octets)
    elif request["what"] == "html":
        found = html_page(octets)
    else:
        named = attachment(octets, int(request["number"]))
        found = [named[0], base64.b64encode(named[1]).decode()] if named else None
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
