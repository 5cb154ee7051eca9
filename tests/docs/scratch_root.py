"""A machine for one documentation page: this one's files under an overlay, a network of loopback alone, its own processes.

What a page does (accounts, files in /etc, ports below 1024, services) is gone with it. Needs root on Linux.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

# A server in the foreground: it goes on behind the next commands.
_SERVER = re.compile(
    r"^\s*(?:exec\s+|sudo\s+)?(?:\S*/)?(?:pillarbox\s+(?:serve|dev)\b|make\s+serve\b|python3?\s+\S+\.py\b)"
)
# What shows things until the reader ends it.
_ENDLESS = re.compile(r"^\s*(?:\S*/)?(?:pillarbox\s+(?:top|events)\b|curl\s+(?:-\w*N|--no-buffer)|journalctl\s+-f)")
_START_S, _COMMAND_S, _SHOW_S = 100.0, 100.0, 4.0
_SETUP = """
set -e
mount --make-rprivate /
mount -t tmpfs none {scratch}
mkdir {scratch}/upper {scratch}/work {scratch}/root
mount -t overlay overlay -o lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work {scratch}/root
mount --rbind /dev {scratch}/root/dev
mount -t proc proc {scratch}/root/proc
mount -t tmpfs none {scratch}/root/run
ip link set lo up
exec chroot {scratch}/root /usr/bin/env -i HOME=/root TERM=dumb LANG=C.UTF-8 PATH={path} PYTHONUNBUFFERED=1 bash --norc --noprofile
"""


class PageError(AssertionError):
    """A command of a page failed."""


class ScratchRoot:
    """A shell in a scratch root. `run` executes commands one after the other, as a reader would type them."""

    def __init__(self, folder: Path) -> None:
        path = f"{ROOT / '.venv' / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        script = _SETUP.format(scratch=folder, path=path)
        self._shell = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
        )  # fmt: skip
        self._count = 0
        self.transcript: list[str] = []
        self.run('stop_one() { [ -z "$1" ] || { kill -- -$1; wait $1; } 2>/dev/null; true; }')
        self.run("stop() { stop_one $SERVER_PID; stop_one $PROGRAM_PID; SERVER_PID= PROGRAM_PID=; }")
        self.run("set -m; mkdir -p /root/work && cd /root/work && umask 022")

    def close(self) -> None:
        """Ends the shell, and with it every process of the page."""
        self._shell.kill()
        self._shell.wait()
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.stdin.close()
        self._shell.stdout.close()

    def run(self, command: str, *, timeout_s: float = _COMMAND_S) -> str:
        """Returns what a command printed. PageError for an exit code that is not 0, unless the line names it (`# exit 1`)."""
        expected = re.search(r"#\s*exit (?:code |status )?(\d+)\s*$", command)
        code, text = self._evaluate(command, timeout_s)
        self.transcript.append(f"$ {command}\n{text}")
        wanted = {int(expected[1])} if expected else {0}
        if code not in wanted:
            raise PageError(f"{command}\nexit code {code}: {text[-3000:]}")
        return text

    def type(self, command: str) -> str:
        """Returns what a command of a page printed; servers go on in the background, endless displays end after a moment."""
        if _ENDLESS.match(command):
            return self.run(f"timeout {_SHOW_S} {command.lstrip()} || [ $? = 124 ]")
        if _SERVER.match(command) and not command.rstrip().endswith("&"):
            return self._serve(command)
        return self.run(command)

    def _serve(self, command: str) -> str:
        """Starts a server in place of the one before, and returns what it printed until it was ready, or ended.

        A program of the page takes the place of the program before it; the server beside it goes on. `stop` ends both.
        """
        self._count += 1
        log = f"/root/server-{self._count}.log"
        is_program = re.match(r"\s*python3?\s", command) is not None
        name = "PROGRAM_PID" if is_program else "SERVER_PID"
        self.run(f"stop_one ${name}" if is_program else "stop")
        listeners = self.run("ss -Hltn")
        self.run(f"{{ {command}\n}} >{log} 2>&1 & {name}=$!")
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            text = self.run(f"cat {log}; kill -0 ${name} 2>/dev/null || echo '[ended]'")
            # A program of the page may say nothing: then its listener counts.
            if "ready on" in text or (is_program and self.run("ss -Hltn") != listeners):
                return text
            if "[ended]" in text:
                self.run(f"wait ${name} && {name}= || {{ cat {log}; false; }}")
                return text
            time.sleep(0.1)
        raise PageError(f"{command}\nis not ready after {_START_S:.0f} s: {text}")

    def _evaluate(self, command: str, timeout_s: float) -> tuple[int, str]:
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._count += 1
        mark = f"--{os.getpid()}-{self._count}--"
        # A here-document keeps every quote of the page; stdin is not the page's to read.
        script = f"IFS= read -r -d '' COMMAND <<'{mark}'\n{command}\n{mark}\neval \"$COMMAND\" </dev/null\necho \"{mark} $?\"\n"
        try:
            self._shell.stdin.write(script.encode())
        except BrokenPipeError:
            raise PageError(f"the scratch root could not be made: {self._shell.stdout.read().decode()}") from None
        said, end = b"", time.monotonic() + timeout_s
        while mark.encode() + b" " not in said or not said.endswith(b"\n"):
            ready, _, _ = select.select([self._shell.stdout], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._shell.stdout.fileno(), 65536) if ready else b""
            if not piece:
                why = "the shell ended" if ready else f"no end within {timeout_s:.0f} s"
                raise PageError(f"{command}\n{why}: {said.decode(errors='replace')[-3000:]}")
            said += piece
        text, _, code = said.decode(errors="replace").rpartition(mark + " ")
        return int(code), text


def missing() -> str | None:
    """Why no scratch root can be made here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a scratch root needs root on Linux"
    return next(
        (f"{name} is not installed" for name in ("unshare", "ip", "chroot") if shutil.which(name) is None), None
    )


@contextlib.contextmanager
def scratch_root(folder: Path) -> Iterator[ScratchRoot]:
    """A scratch root, ended with the block."""
    root = ScratchRoot(folder)
    try:
        yield root
    finally:
        root.close()
