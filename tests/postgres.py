"""A real PostgreSQL for the tests: one server for a test process, in a scratch folder, a database of its own for each test.

fsync is off unless a test is about it: these databases have nobody's mail in them.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import free_port
from tests.daemon import wait_until

_numbers = itertools.count()


def programs() -> str | None:
    """The folder with initdb and postgres, the newest there is."""
    on_path = shutil.which("postgres")
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda f: int(f.split("/")[4]))
    if on_path is not None:
        folders.append(os.path.dirname(os.path.realpath(on_path)))
    return folders[-1] if folders else None


class Postgres:
    """One server, on a port of its own at 127.0.0.1."""

    def __init__(self, *options: str) -> None:
        found = programs()
        if found is None:
            if os.environ.get("CI"):
                pytest.fail("PostgreSQL is missing: tools/install-test-programs.sh installs it")
            pytest.skip("PostgreSQL is not installed (tools/install-test-programs.sh)")
        self._programs = found
        self.folder = Path(tempfile.mkdtemp(prefix="pillarbox-pg-"))
        self._data = self.folder / "data"
        self._options = options or ("-c", "fsync=off", "-c", "full_page_writes=off")
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            # It does not run as root.
            user = pwd.getpwnam("postgres" if _has_user("postgres") else "nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            "-D",
            str(self._data),
            "-U",
            "pillarbox",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C.UTF-8",
        )
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [os.path.join(self._programs, program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **self._as)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        command = [os.path.join(self._programs, "postgres"), "-D", str(self._data), "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-k", "", "-c", "max_connections=120", *self._options]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._as)
        wait_until(self._answers, 30)

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self.url("postgres"), connect_timeout=2):
            return True
        return False

    def stop(self, *, at_once: bool = False) -> None:
        """SIGINT: it ends the sessions and stops; `at_once` without a checkpoint, as after a crash."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
            self.process.wait(60)
            self.process = None

    def remove(self) -> None:
        """For good."""
        self.stop(at_once=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """A URL of one of its databases."""
        return f"postgresql://pillarbox@127.0.0.1:{self.port}/{database}"

    def ask(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """One statement."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database; gone behind."""
        name = f"q{next(_numbers)}"
        self.ask(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            if self.process is not None:
                self.ask(f"DROP DATABASE {name} WITH (FORCE)")


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
