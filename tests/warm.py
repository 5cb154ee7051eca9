"""The `pillarbox` command in a process that has imported it already: each call is a fork of that one.

The same code in a process of its own, without the third of a second that importing takes; the tests make hundreds of calls.
What is about starting itself (servers, sendmail by its other names, the README) is run in full.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from typing import IO

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pillarbox.cli.main", "pillarbox.app", "pillarbox.queue.whole", "tests.warm"])


def _child(arguments: list[str], environment: dict[str, str], folder: str, files: list[str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(files):
        handle = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["pillarbox", *arguments]
    from pillarbox.cli.main import main

    main()


def call(arguments: list[str], stdin: str | None, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with captured output."""
    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, name) for name in ("in", "out", "err")]
        for name, text in zip(names, (stdin or "", "", ""), strict=True):
            _write(name, text)
        process = _context.Process(target=_child, args=(arguments, dict(os.environ), os.getcwd(), names), daemon=True)
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout_s, _read(names[1]), _read(names[2]))
        code = process.exitcode
        assert code is not None
        process.close()
        return subprocess.CompletedProcess(arguments, code, _read(names[1]), _read(names[2]))


def _write(name: str, text: str) -> None:
    with open(name, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def _read(name: str) -> str:
    file: IO[str]
    with open(name, encoding="utf-8") as file:
        return file.read()
