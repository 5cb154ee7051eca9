"""`pillarbox reload` says what came of it, by the control socket: names that changed, names that want a restart, faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.daemon import Daemon, pillarbox, wait_until
from tests.test_config import log_events


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_answers_with_what_changed_and_with_faults(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "p.toml"
    base = f'log_format = "json"\nlog_level = "info"\nworkers = {workers}\n'
    file.write_text(base)
    with Daemon(tmp_path, f"--config={file}") as daemon:
        pid, here = daemon.process.pid, f"--data-dir={daemon.data}"
        done = pillarbox("reload", here)
        assert (
            done.stdout
            == f"the server (pid {pid}) has reloaded: no option changed, certificates and accounts are read again\n"
        )

        file.write_text(base + 'max_size_bytes = "1MB"\nretry_first_s = "10m"\nalias = "other"\n')
        done = pillarbox("reload", here)
        first, second = done.stdout.splitlines()
        assert first == f"the server (pid {pid}) has reloaded: retry_first_s, max_size_bytes"
        assert second == "only a restart changes alias: pillarbox reload --restart"
        wait_until(lambda: sum("reloaded: retry_first_s, max_size_bytes" in e for e in log_events(daemon)) == workers)
        assert sum(e.startswith("only a restart changes alias") for e in log_events(daemon)) >= 1

        file.write_text(base + 'max_size_bytes = "much"\nprot = 1\n')
        done = pillarbox("reload", here, ok=False)
        assert done.returncode == 1
        assert f"{file}:4: option 'max_size_bytes': invalid size 'much'" in done.stdout
        assert f"{file}:5: option 'prot' is not known" in done.stdout
        assert "everything stays as it was" in done.stderr

        file.write_text(base)
        assert "max_size_bytes" in pillarbox("reload", here).stdout
        actions = [json.loads(line) for line in daemon.log.read_text().splitlines() if '"action"' in line]
        assert sum(row["action"] == "reload" for row in actions) == 3


def test_restart_by_the_control_socket_is_answered(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--workers=2") as daemon:
        done = pillarbox("reload", "--restart", f"--data-dir={daemon.data}")
        assert done.stdout.startswith(f"the server (pid {daemon.process.pid}) restarts")
        wait_until(lambda: sum("is new" in event for event in log_events(daemon)) == 2)
