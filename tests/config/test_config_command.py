"""`pillarbox config` and the order of commands in the help."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

from tests.daemon import pillarbox


def test_config_show_as_json_has_values_of_their_types(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('port = 26\ndomains = ["a.test"]\nretry_first_s = "5m"\npaused = true\n')
    rows = {row["option"]: row["value"] for row in json.loads(pillarbox("config", "show", str(file), "--json").stdout)}
    assert (rows["port"], rows["domains"], rows["retry_first_s"], rows["paused"]) == (26, ["a.test"], 300.0, True)
    assert rows["tls_cert"] is None
    assert rows["alias"] == "pillarbox"
    assert '["a.test"]' in pillarbox("config", "show", str(file)).stdout


def test_config_init_gives_the_file_to_the_group_of_the_service(tmp_path: Path) -> None:
    file, other = tmp_path / "p.toml", tmp_path / "q.toml"
    done = pillarbox("config", "init", str(file), "--user", "nobody")
    status = file.stat()
    if os.geteuid() == 0:
        assert (status.st_gid, status.st_mode & 0o777) == (pwd.getpwnam("nobody").pw_gid, 0o640)
        assert "the group of nobody may read it" in done.stdout
    done = pillarbox("config", "init", str(other), "--user", "no-such-user")
    assert other.stat().st_mode & 0o777 == 0o600
    assert "mode 0600" in done.stdout and f"chmod 640 {other}" in done.stdout


def test_help_lists_the_commands_that_are_needed_first() -> None:
    text = pillarbox("--help").stdout
    places = [text.index(f"\n  {name} ") for name in ("serve", "dev", "send", "queue", "explain", "config", "sendmail")]
    assert places == sorted(places)
    assert "<bool>" not in text
    queue = pillarbox("queue", "--help").stdout
    assert queue.index("\n  list ") < queue.index("\n  hold ") < queue.index("\n  export ")
