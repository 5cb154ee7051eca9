"""The `pillarbox` command in a process that has imported it already: each call is a fork of that one.

The same code in a process of its own, without the third of a second that importing takes; the tests make hundreds of calls,
and start hundreds of servers. What is about starting itself (service managers, sendmail by its other names, the README) is
run in full; so is what a server starts anew of itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.reduction import DupFd
from typing import IO, Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.warmed", "tests.warm"])


def _child(arguments: list[str], environment: dict[str, str], folder: str, files: list[Any]) -> None:
    """`files` are the three standard ones, each a name or a descriptor on its way."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        is_name = isinstance(file, str)
        handle = os.open(file, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY) if is_name else file.detach()
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["pillarbox", *arguments]
    sys.orig_argv = [sys.executable, "-m", "pillarbox", *arguments]
    from pillarbox.cli.main import main

    main()


class Process:
    """What subprocess.Popen would give: the command with its standard output as a pipe, its errors at the end of a file."""

    def __init__(self, arguments: list[str], log: str) -> None:
        reading, writing = os.pipe()
        handed = [os.devnull, _Handed(writing), log]
        self._child = _context.Process(
            target=_child, args=(arguments, dict(os.environ), os.getcwd(), handed), daemon=True
        )
        self._child.start()
        os.close(writing)
        assert self._child.pid is not None
        self.pid: int = self._child.pid
        self.stdout: IO[str] = open(reading, encoding="utf-8")  # noqa: SIM115

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._child.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; subprocess.TimeoutExpired when it goes on."""
        self._child.join(timeout)
        code = self._child.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("pillarbox", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """As long as it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Handed:
    """A descriptor that goes along when the process is made."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __reduce__(self) -> Any:
        return _arrived, (DupFd(self._handle),)


def _arrived(handle: Any) -> Any:
    return handle


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
