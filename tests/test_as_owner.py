"""Commands that root runs on a data directory of another user become that user first, and touch nothing of root's."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pillarbox.daemon.logs import LogHandler
from pillarbox.errors import StoreError
from pillarbox.queue import whole
from tests.daemon import PILLARBOX

is_root = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
needs_root = pytest.mark.skipif(not is_root, reason="only root can become another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of root's that every user may enter, with a data directory `data` of nobody's in it."""
    folder = Path(tempfile.mkdtemp(prefix="pillarbox-owner-"))
    folder.chmod(0o755)
    (folder / "data").mkdir(0o700)
    if is_root:
        os.chown(folder / "data", NOBODY.pw_uid, NOBODY.pw_gid)
    yield folder
    shutil.rmtree(folder)


def run(*arguments: str, ok: bool = True, user: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PILLARBOX")}
    env["PILLARBOX_CONFIG"] = "/dev/null"
    done = subprocess.run(
        [*PILLARBOX, *arguments], capture_output=True, text=True, timeout=60, env=env, user=user, cwd="/"
    )
    assert not ok or done.returncode == 0, done.stderr
    return done


MBOX = "From x Thu Jan  1 00:00:00 1970\nSubject: hello\n\nhi\n"


def fill(place: Path) -> None:
    (place / "mbox").write_text(MBOX)
    (place / "mbox").chmod(0o600)
    run("queue", "import", str(place / "mbox"), "--from=a@b.test", "--to=c@d.test", f"--data-dir={place / 'data'}")


@needs_root
def test_import_reads_as_root_and_writes_as_the_owner(place: Path) -> None:
    fill(place)
    made = list((place / "data").rglob("*"))
    assert made and {path.lstat().st_uid for path in made} == {NOBODY.pw_uid}


@needs_root
def test_owner_has_no_group_of_roots(place: Path) -> None:
    script = (
        "import os, sys\nos.setgroups([0, 4])\nfrom pillarbox.daemon.privileges import become_owner\n"
        "become_owner(sys.argv[1])\nprint(*os.getresuid(), *os.getresgid(), *os.getgroups())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(place / "data")], capture_output=True, text=True, timeout=60
    )
    uid, gid = str(NOBODY.pw_uid), str(NOBODY.pw_gid)
    assert done.stdout.split() == [uid] * 3 + [gid] * 3 + [gid], done.stderr


@needs_root
@pytest.mark.parametrize("kind", ["mbox", "maildir", "jsonl"])
def test_export_writes_where_root_may(kind: str, place: Path) -> None:
    fill(place)
    private = place / "private"
    private.mkdir(0o700 if kind != "maildir" else 0o755)
    target = private / "target"
    run("queue", "export", str(target), f"--format={kind}", f"--data-dir={place / 'data'}")
    files = [path for path in target.rglob("*") if path.is_file()] if kind == "maildir" else [target]
    assert len(files) == 1 and b"hello" in (files[0].read_bytes() if kind != "jsonl" else _content(files[0]))
    if kind == "jsonl":
        run("queue", "cancel", "--all", f"--data-dir={place / 'data'}")
        again = run("queue", "import", str(target), "--format=jsonl", f"--data-dir={place / 'data'}")
        assert "were there already" in again.stderr


def _content(path: Path) -> bytes:
    import base64

    return base64.b64decode(json.loads(path.read_text())["content"])


COMMANDS = (
    ("queue", "list"), ("queue", "list", "--json"), ("queue", "show", "x"), ("queue", "show", "x", "--content"),
    ("queue", "hold", "--all"), ("queue", "pause"), ("queue", "resume"), ("queue", "sql", "SELECT 1"),
    ("queue", "export", "-"), ("explain", "c@d.test"), ("top", "--count=1"), ("reload",), ("admin",), ("admin", "--token=read"),
    ("events", "--count=1"), ("sendmail", "-bp"), ("sendmail", "-q"),
)  # fmt: skip


@needs_root
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_links_in_the_folder_lead_root_nowhere(command: tuple[str, ...], place: Path) -> None:
    """Every file that a command may open is a link to a file of root's, or to a place where root could make one."""
    data = place / "data"
    victims = []
    for name in ("queue-0.db", "queue-0.db-wal", "queue-0.db-shm", "queue-0.lock", "journal-0", "server.pid",
                 "admin.json", "admin-tokens.json"):  # fmt: skip
        victim = place / f"victim-of-{name}"
        victim.write_text("root's\n")
        victim.chmod(0o644)
        victims.append(victim)
        os.symlink(victim, data / name)
    os.symlink(place / "new", data / "queue-1.db")
    before = [(victim.read_text(), victim.stat().st_mode, victim.stat().st_uid) for victim in victims]
    run(*command, f"--data-dir={data}", ok=False)
    assert [(victim.read_text(), victim.stat().st_mode, victim.stat().st_uid) for victim in victims] == before
    assert not (place / "new").exists()
    assert {path.lstat().st_uid for path in data.iterdir() if not path.is_symlink()} <= {NOBODY.pw_uid}


@needs_root
def test_config_check_makes_nothing_in_the_owners_folder(place: Path) -> None:
    fill(place)
    (place / "pillarbox.toml").write_text(f'data_dir = "{place / "data"}"\n')
    before = sorted((path, path.stat().st_uid) for path in (place / "data").rglob("*"))
    assert "no faults" in run("config", "check", str(place / "pillarbox.toml")).stdout
    assert sorted((path, path.stat().st_uid) for path in (place / "data").rglob("*")) == before


@needs_root
def test_dev_writes_no_certificate_into_another_users_folder(place: Path) -> None:
    os.symlink(place / "new", place / "data" / "dev-key.pem")
    done = run("dev", "--tls", "--listen=127.0.0.1:0", "--admin=off", f"--data-dir={place / 'data'}", ok=False)
    assert done.returncode == 1 and "belongs to nobody" in done.stderr
    assert not (place / "new").exists()


@needs_root
@pytest.mark.parametrize("flags", [(), ("--restart",)])
def test_reload_signals_no_process_that_the_owner_could_not(flags: tuple[str, ...], place: Path) -> None:
    data = place / "data"
    target = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (data / "server.pid").write_text(f"{target.pid}\n")
    os.chown(data / "server.pid", NOBODY.pw_uid, NOBODY.pw_gid)
    hold = "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(data / "server.pid")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        done = run("reload", *flags, f"--data-dir={data}", ok=False)
        assert done.returncode == 1 and "is not yours" in done.stderr
        assert target.poll() is None
    finally:
        for process in (holder, target):
            process.send_signal(signal.SIGKILL)
            process.communicate()


@needs_root
def test_log_file_of_another_users_folder_is_no_link(place: Path) -> None:
    victim = place / "victim"
    victim.write_text("root's\n")
    os.symlink(victim, place / "data" / "mail.log")
    with pytest.raises(OSError, match="symbolic"):
        LogHandler(path=str(place / "data" / "mail.log"), as_json=True)
    # A second name of a file is not given away.
    os.link(victim, place / "data" / "other.log")
    handler = LogHandler(path=str(place / "data" / "other.log"), as_json=True)
    handler.give_to(NOBODY.pw_uid, NOBODY.pw_gid)
    assert victim.stat().st_uid == 0


def test_shards_that_come_and_go_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(whole, "find_shards", lambda folder: [0])
    asked: list[object] = []

    def ask_shard(*arguments: object) -> object:
        asked.append(arguments)
        assert len(asked) < 1000
        return whole.GONE

    monkeypatch.setattr(whole, "ask_shard", ask_shard)
    monkeypatch.setattr(whole.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(whole.time, "sleep", lambda seconds: None)
    with pytest.raises(StoreError, match="appear and disappear"):
        whole.ask_all("/nowhere", {"verb": "status"})
