"""Threads of their own for password hashes: a bounded line, in which log-ins that are likely right go first.

A hash takes a tenth of a second of a processor. In the loop's default pool, guesses would hold up DNS and files. Must not
know what is asked.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Verdicts that wait for a thread, of networks that the account knows and of others; beyond, the client tries again later.
MAX_FIRST = 64
MAX_OTHERS = 16
MAX_THREADS = 4


class HashLineFull(Exception):
    """Too many verdicts wait for a thread."""


class HashPool:
    """Runs callables in half as many threads as there are processors, one at least."""

    def __init__(self, threads: int | None = None) -> None:
        self._free = threads or min(MAX_THREADS, max(1, (os.cpu_count() or 1) // 2))
        self._executor = ThreadPoolExecutor(self._free, thread_name_prefix="pillarbox-auth")
        # Of networks from which the account has logged in lately, and all others.
        self._first: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    async def run(self, call: Callable[..., Any], *arguments: Any, goes_first: bool = False) -> Any:
        """Returns what the call returns. HashLineFull when too many calls wait."""
        if self._free:
            self._free -= 1
        else:
            line = self._first if goes_first else self._others
            if len(line) >= (MAX_FIRST if goes_first else MAX_OTHERS):
                raise HashLineFull
            turn = asyncio.get_running_loop().create_future()
            line.append(turn)
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    # The thread was ours already.
                    self._next()
                raise
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)
        finally:
            self._next()

    def _next(self) -> None:
        """Gives the thread to the next one in line."""
        for line in (self._first, self._others):
            while line:
                turn = line.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1

    def close(self) -> None:
        """Waits for no thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)
