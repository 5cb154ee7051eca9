"""`pillarbox serve` as a process of its own, and the programs that talk to it; for the tests that run them for real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import warm
from tests.conftest import free_port, tool

PILLARBOX = [sys.executable, "-m", "pillarbox"]


class Daemon:
    """A server process; ended by its pid when the block ends."""

    def __init__(self, folder: Path, *arguments: str, listen: str = "127.0.0.1:0", wrap: tuple[str, ...] = ()) -> None:
        folder.mkdir(exist_ok=True)
        self.data = folder / "data"
        self.log = folder / "server.log"
        command = [
            "serve",
            f"--listen={listen}",
            f"--data-dir={self.data}",
            "--hostname=mx.test",
            "--no-direct",
            *(() if any(one.startswith("--admin") for one in arguments) else ("--admin=off",)),
        ]
        self.process: subprocess.Popen[str] | warm.Process
        with open(self.log, "ab") as log:
            if wrap:
                line = [*wrap, *PILLARBOX, *command, *arguments]
                self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True)
            else:
                self.process = warm.Process([*command, *arguments], str(self.log))
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        if "ready on" not in self.ready:
            raise AssertionError(f"not ready: {self.ready!r} {self.log.read_text()}")
        self.address = self.ready.split("ready on ")[1].split(" ")[0]
        self.port = int(self.address.rpartition(":")[2])

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(40)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def pillarbox(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """`pillarbox queue ...` on its data directory."""
        return pillarbox("queue", *arguments, f"--data-dir={self.data}", ok=ok)

    def queue(self, *arguments: str) -> list[dict[str, Any]]:
        """`queue list --json`."""
        return list(json.loads(self.pillarbox("list", "--json", *arguments).stdout))

    def peak_mb(self) -> float:
        """The highest resident memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def pillarbox(*arguments: str, ok: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command; `ok` False leaves its exit code to the test."""
    done = warm.call([*arguments], stdin, 60)
    assert not ok or done.returncode == 0, done.stderr + done.stdout
    return done


def wait_until(condition: Any, seconds: float = 60.0, step: float = 0.05) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(step)
    raise TimeoutError("the condition did not come true")


@contextlib.contextmanager
def sink(folder: Path, *arguments: str, port: int | None = None, host: str = "127.0.0.1") -> Iterator[tuple[int, Path]]:
    """smtp-sink: (port, folder). With -d it writes each message to a file there."""
    port = port or free_port()
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    for parent in (folder.parent, folder.parent.parent):
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o055)
    command = [tool("smtp-sink")]
    if os.geteuid() == 0:
        command += ["-u", "nobody"]
    # -R keeps relative dump paths inside the folder.
    child = subprocess.Popen(
        [*command, *arguments, f"{host}:{port}", "512"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_open(port, host), 10)
        yield port, folder
    finally:
        child.terminate()
        child.wait()


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    """Something listens there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


def smtp_source(port: int, count: int, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """smtp-source with unique subjects (-N counts recipients up: r1@..., r2@...)."""
    command = [tool("smtp-source"), "-m", str(count), "-f", "a@b.test", "-t", "c@d.test", *arguments]
    return subprocess.run([*command, f"127.0.0.1:{port}"], capture_output=True, timeout=120)
