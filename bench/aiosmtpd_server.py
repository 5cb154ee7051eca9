"""The peer "aiosmtpd+fsync": each message in a file of its own, fsync'd, and its folder's entry too, before 250."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from typing import Any

from aiosmtpd.smtp import SMTP


class Keeper:
    """Stores what comes."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._handle = os.open(folder, os.O_RDONLY)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """aiosmtpd's hook."""
        await asyncio.get_running_loop().run_in_executor(None, self._store, envelope.content)
        return "250 2.0.0 stored"

    def _store(self, content: bytes) -> None:
        handle = os.open(f"{self._folder}/{next(self._numbers)}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(handle, content)
        os.fsync(handle)
        os.close(handle)
        os.fsync(self._handle)


async def main(port: int, folder: str) -> None:
    """Serves until it is ended."""
    keeper = Keeper(folder)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: SMTP(keeper, hostname="bench.test"), "127.0.0.1", port, backlog=512)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
