"""Which configuration, folder, queue and server a command means that names none: flag, environment, file, default."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pillarbox import connect
from pillarbox.config.usual import usual, usual_server
from pillarbox.daemon.config import ConfigError, load
from pillarbox.daemon.loading import check
from pillarbox.errors import OptionError
from tests.daemon import PILLARBOX, Daemon


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PILLARBOX")}
    return subprocess.run(
        [*PILLARBOX, *words],
        env={**clean, "PILLARBOX_CONFIG": "/dev/null", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


COMMANDS: list[tuple[str, ...]] = [
    ("queue", "list"),
    ("queue", "pause"),
    ("queue", "resume"),
    ("queue", "retry", "--all"),
    ("queue", "sql", "SELECT count(*) FROM queue_messages"),
    ("queue", "export", "-", "--format", "jsonl"),
    ("top", "--count", "1"),
    ("explain", "a@b.example"),
    ("admin",),
    ("events", "--count", "0"),
    ("sendmail", "-bp"),
    ("sendmail", "-q"),
    ("reload",),
]


def test_every_command_means_the_folder_of_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text('data_dir = "data"\n')
    with Daemon(tmp_path, "--admin=127.0.0.1:0", "--paused") as daemon:
        for command in COMMANDS:
            for environment in ({"PILLARBOX_DATA_DIR": str(daemon.data)}, {"PILLARBOX_CONFIG": str(file)}):
                result = run(*command, **environment)
                assert not result.returncode, (command, environment, result.stderr)
        wrong = {"PILLARBOX_DATA_DIR": str(tmp_path / "nowhere")}
        for command in COMMANDS[:4]:
            assert "nowhere" in run(*command, **wrong).stderr
            assert not run(*command, f"--data-dir={daemon.data}", **wrong).returncode
        result = run("sendmail", "-bp", "--data-dir", str(daemon.data), **wrong)
        assert not result.returncode, result.stderr
        assert (
            connect(daemon.data).enqueue(
                reverse_path=None, recipients=["a@b.example"], content="Subject: x\r\n\r\n", uid="u1"
            )
            == "u1"
        )
        assert json.loads(run("queue", "list", "--json", PILLARBOX_CONFIG=str(file)).stdout)[0]["uid"] == "u1"


@pytest.mark.parametrize("words", [("sendmail", "--help"), ("sendmail", "-bp", "--help")])
def test_help_of_sendmail_is_shown(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert not result.returncode
    assert "mailq [--data-dir DIR" in result.stdout


def test_flag_is_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        'data_dir = "/of/file"\nqueue = "postgresql://file/x"\nlisten = ["submission://0.0.0.0", "0.0.0.0:2526"]\n'
    )
    environment = {"PILLARBOX_CONFIG": str(file)}
    assert usual(environment).data_dir == "/of/file"
    assert usual(environment).queue == "postgresql://file/x"
    more = {**environment, "PILLARBOX_DATA_DIR": "/of/environment", "PILLARBOX_QUEUE": "postgresql://env/x"}
    assert (usual(more).data_dir, usual(more).queue) == ("/of/environment", "postgresql://env/x")
    assert usual({"PILLARBOX_CONFIG": "/dev/null"}).queue is None


def test_program_sends_to_where_the_configuration_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.toml"
    file.write_text('listen = ["submission://0.0.0.0", "0.0.0.0:2526"]\n')
    monkeypatch.setenv("PILLARBOX_CONFIG", str(file))
    assert usual_server("127.0.0.1:25") == "127.0.0.1:2526"
    file.write_text("port = 2527\n")
    assert usual_server("127.0.0.1:25") == "127.0.0.1:2527"
    file.write_text("broken")
    assert usual_server("127.0.0.1:25") == "127.0.0.1:25"


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.toml: cannot be read: No such file"):
        usual({"PILLARBOX_CONFIG": str(tmp_path / "none.toml")})
    assert usual({"PILLARBOX_CONFIG": str(tmp_path / "none.toml")}, is_strict=False).queue is None


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("PILLARBOX_MAX_SESSION", "PILLARBOX_MAX_SESSIONS"),
        ("PILLARBOX_DATADIR", "PILLARBOX_DATA_DIR"),
        ("PILLARBOX_WORKER", "PILLARBOX_WORKERS"),
        ("PILLARBOX_LOGLEVEL", "PILLARBOX_LOG_LEVEL"),
    ],
)
def test_misspelt_variable_of_the_environment_is_a_fault(variable: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"environment {variable}: .*names no option; did you mean {hint}"):
        load(None, {variable: "1"}, {})


def test_unknown_variable_of_the_environment_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("")
    warnings = [str(one) for one in check(str(file), {"PILLARBOX_XYZZY": "1"})]
    assert warnings == ["environment PILLARBOX_XYZZY: variable PILLARBOX_XYZZY names no option"]
    result = run("config", "check", str(file), PILLARBOX_XYZZY="1")
    assert "warning: environment PILLARBOX_XYZZY" in result.stderr
    assert not result.returncode


@pytest.mark.parametrize("name", ["SERVICE_HOST", "SERVICE_PORT", "PORT_25_TCP_ADDR", "CONFIG", "SENDMAIL", "TOKEN"])
def test_variable_of_a_service_link_or_of_another_command_is_silent(name: str) -> None:
    assert not load(None, {f"PILLARBOX_{name}": "x"}, {}).warnings


def test_table_of_objects_in_the_environment_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="'plugins' cannot stand in the environment"):
        load(None, {"PILLARBOX_PLUGINS": "x"}, {})
