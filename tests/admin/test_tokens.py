"""Tokens that may less than the full one: for metrics, and for reading."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pillarbox.admin.tokens import SCOPED_FILE, read_token, scoped_tokens, write_file
from tests.conftest import free_port
from tests.daemon import Daemon, pillarbox, wait_until
from tests.test_admin import Client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Client]]:
    with Daemon(tmp_path_factory.mktemp("tokens"), "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        yield daemon, Client(daemon)


def printed(daemon: Daemon, name: str) -> str:
    return pillarbox("admin", "--token", name, f"--data-dir={daemon.data}").stdout.strip()


def status(client: Client, token: str, method: str, path: str) -> int:
    body = b"" if method != "GET" else None
    return client.ask(method, path, body, token=False, Authorization=f"Bearer {token}")[0]


def test_metrics_token_opens_metrics_and_readyz_alone(server: tuple[Daemon, Client]) -> None:
    daemon, client = server
    token = printed(daemon, "metrics")
    for path in ("/metrics", "/readyz", "/healthz"):
        assert status(client, token, "GET", path) == 200
    for method, path in (
        ("GET", "/api/status"), ("GET", "/"), ("GET", "/api/messages"), ("GET", "/api/options"), ("GET", "/samples"),
        ("GET", "/api/logins"), ("POST", "/api/logins"), ("POST", "/api/queue/pause"), ("GET", "/metrics/x"),
        ("GET", "/static/app.js"), ("GET", "/api/events"),
    ):  # fmt: skip
        assert status(client, token, method, path) == 403, path


def test_read_token_reads_and_changes_nothing(server: tuple[Daemon, Client]) -> None:
    daemon, client = server
    token = printed(daemon, "read")
    for path in ("/api/status", "/", "/queue", "/api/messages", "/api/options", "/metrics", "/readyz", "/api/logins"):
        assert status(client, token, "GET", path) == 200
    for method, path in (
        ("POST", "/api/logins"), ("DELETE", "/api/logins"), ("POST", "/api/queue/resume"), ("POST", "/api/messages"),
        ("POST", "/api/messages/x/hold"), ("PUT", "/api/status"), ("DELETE", "/api/logins/this"),
    ):  # fmt: skip
        assert status(client, token, method, path) == 403, path
    assert client.get("/api/status")["paused"] is True


def test_log_names_the_token_that_was_refused(server: tuple[Daemon, Client]) -> None:
    daemon, client = server
    assert status(client, printed(daemon, "read"), "POST", "/api/queue/cancel") == 403
    assert status(client, printed(daemon, "metrics"), "GET", "/api/sessions") == 403

    def refused() -> set[tuple[str, str]]:
        lines = [json.loads(line) for line in daemon.log.read_text().splitlines() if line.startswith("{")]
        return {(one["by"], one["path"]) for one in lines if one["event"] == "admin-refused" and "by" in one}

    wanted = {("read-token", "/api/queue/cancel"), ("metrics-token", "/api/sessions")}
    wait_until(lambda: wanted <= refused())


def test_tokens_differ_outlive_a_restart_and_are_private(tmp_path: Path) -> None:
    with Daemon(tmp_path, f"--admin=127.0.0.1:{free_port()}") as daemon:
        names = ("metrics", "read", "full")
        before = [printed(daemon, name) for name in names]
        assert len(set(before)) == 3 and before[2] == Client(daemon).token
        assert (daemon.data / SCOPED_FILE).stat().st_mode & 0o777 == 0o600
    with Daemon(tmp_path, f"--admin=127.0.0.1:{free_port()}") as daemon:
        assert [printed(daemon, name) for name in names] == before
    wrong = pillarbox("admin", "--token=all", f"--data-dir={daemon.data}", ok=False)
    assert wrong.returncode == 2 and "expected metrics, read or full" in wrong.stderr


def test_token_file_of_other_users_is_not_believed(tmp_path: Path) -> None:
    write_file(str(tmp_path), "", "A" * 40)
    assert read_token(str(tmp_path)) == "A" * 40
    (tmp_path / "admin.json").chmod(0o644)
    assert read_token(str(tmp_path)) is None
    (tmp_path / SCOPED_FILE).write_text(json.dumps({"metrics": "B" * 40, "read": "short"}))
    (tmp_path / SCOPED_FILE).chmod(0o600)
    found = scoped_tokens(str(tmp_path))
    assert found["metrics"] == "B" * 40 and len(found["read"]) > 40
    (tmp_path / SCOPED_FILE).chmod(0o640)
    assert "B" * 40 not in scoped_tokens(str(tmp_path)).values()
    (tmp_path / SCOPED_FILE).unlink()
    os.symlink("/dev/zero", tmp_path / SCOPED_FILE)
    assert len(scoped_tokens(str(tmp_path))) == 2


def test_tokens_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        scoped_tokens(str(tmp_path))
        write_file(str(tmp_path), "", "A" * 40)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
