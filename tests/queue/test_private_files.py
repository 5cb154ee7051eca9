"""The files of a shard are its user's alone: links are not followed, modes are narrowed, other owners are named."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pillarbox.errors import StoreError
from pillarbox.queue.folder import make_private_file, make_spool
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.queue.sqlite_read import connect
from pillarbox.queue.whole import ask_queue


def test_database_that_is_a_link_is_refused_and_its_target_stays(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("not ours\n")
    victim.chmod(0o644)
    data = tmp_path / "data"
    data.mkdir(0o700)
    (data / "queue-0.db").symlink_to(victim)
    with pytest.raises(StoreError, match="is a symbolic link"):
        SqliteStore(str(data)).open()
    with pytest.raises(StoreError, match="is a symbolic link"):
        ask_queue(str(data), {"verb": "list"})
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644 and victim.read_text() == "not ours\n"


def test_database_that_is_a_dangling_link_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "queue-0.db").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is a symbolic link"):
        SqliteStore(str(tmp_path)).open()
    with pytest.raises(StoreError, match="is a symbolic link"):
        ask_queue(str(tmp_path), {"verb": "list"})
    assert not (tmp_path / "nowhere").exists()


def test_reader_does_not_follow_a_link(tmp_path: Path) -> None:
    SqliteStore(str(tmp_path)).open()
    (tmp_path / "queue-1.db").symlink_to(tmp_path / "queue-0.db")
    with pytest.raises(Exception, match="unable to open"):
        connect(str(tmp_path / "queue-1.db"), is_read_only=True)


def test_data_directory_behind_a_link_is_the_operators_choice(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = SqliteStore(str(tmp_path / "link"))
    store.open()
    store.close()
    connect(str(tmp_path / "link" / "queue-0.db"), is_read_only=True).close()


def test_wide_mode_of_a_database_is_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "queue-0.db"
    path.touch(0o644)
    make_private_file(str(path), is_new_allowed=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_missing_database_is_not_made_where_it_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_private_file(str(tmp_path / "queue-0.db"), is_new_allowed=False)


def test_files_of_another_user_are_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool"
    spool.mkdir(0o700)
    (tmp_path / "queue-0.db").touch(0o600)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 12345)
    with pytest.raises(StoreError, match="chown -R") as caught:
        make_spool(str(spool))
    # The spool holds queued mail: no text may advise to remove it.
    assert "remove" not in str(caught.value) and "start the server as" in str(caught.value)
    with pytest.raises(StoreError, match="expected a file of"):
        make_private_file(str(tmp_path / "queue-0.db"), is_new_allowed=False)
