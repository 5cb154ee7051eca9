"""Servers really start with the documented values that decide how a process serves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.daemon import Daemon

CERTIFICATES = ("none", "may", "encrypt", "verify")
FILES = {
    "workers auto": 'workers = "auto"\nlog_format = "json"\nlog_level = "debug"\n',
    "store memory": 'store = "memory"\nlog_format = "text"\nlog_level = "warning"\nretry_first_s = "5m"\n',
    "store null": 'store = "null"\nlog_format = "auto"\nlog_level = "error"\nmax_size_bytes = "10MB"\n',
    "store sqlite": 'store = "sqlite"\nworkers = 1\nlog_level = "info"\nip_preference = "ipv6-only"\ndelay_notice_s = "none"\n',
}


@pytest.mark.parametrize("name", FILES)
def test_server_starts_with_documented_values_of_a_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text(FILES[name])
    with Daemon(tmp_path, f"--config={file}") as daemon:
        assert daemon.port


def test_server_starts_with_workers_as_a_flag_of_one_word(tmp_path: Path) -> None:
    count = len(os.sched_getaffinity(0))
    with Daemon(tmp_path, "--workers=auto", "--max-size=20MiB", "--retry-first=5m", "--grace=10s") as daemon:
        assert (f"workers: {count}" in daemon.ready) == (count > 1)


@pytest.mark.parametrize("policy", CERTIFICATES)
def test_server_starts_with_each_policy_for_tls_to_a_smart_host(tmp_path: Path, policy: str) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text(f'relay_tls = {json.dumps(policy)}\nmx_tls = {json.dumps(policy)}\nsender_verify = "rcpt"\n')
    with Daemon(tmp_path, f"--config={file}", "--relay=127.0.0.1:9") as daemon:
        assert "relay: 127.0.0.1:9" in daemon.ready
