"""Who may read secrets, who may write the data directory, and who imports plugins."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import threading
from pathlib import Path

import pytest

from pillarbox import MailServer, StoreError
from pillarbox.admin.tokens import read_token, write_file
from pillarbox.config.files import check_folder, exposed_text
from pillarbox.daemon.config import ConfigError, load
from pillarbox.daemon.loading import check
from pillarbox.server.accounts import AuthFile, format_line, hash_password, update_file
from tests.daemon import Daemon

is_root = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")


@pytest.mark.parametrize(
    ("mode", "is_exposed"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True), (0o602, True)]
)
def test_secret_that_every_user_may_read_is_reported_with_its_mend(tmp_path: Path, mode: int, is_exposed: bool) -> None:
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(mode)
    text = exposed_text(file, "the password")
    assert (text is not None) == is_exposed
    if text is not None:
        assert text.endswith(f"(mode {mode:04o}): chmod o-rwx {file}")
    assert exposed_text(tmp_path / "none", "x") is None


@pytest.mark.parametrize("option", ["tls_key", "tls_cert", "auth_file", "relay_pass_file"])
def test_file_option_with_an_exposed_secret_is_warned_about(tmp_path: Path, option: str) -> None:
    file, secret = tmp_path / "p.toml", tmp_path / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o644)
    more = {"tls_key": 'tls_cert = "cert"\n', "relay_pass_file": 'relay = "a.test"\nrelay_user = "u"\n'}.get(option, "")
    file.write_text(f'{more}{option} = "secret"\n')
    assert [one.text for one in load(str(file), {}, {}).warnings if "every user may read" in one.text]
    secret.chmod(0o640)
    assert not [one for one in load(str(file), {}, {}).warnings if "every user may read" in one.text]


@pytest.mark.parametrize(
    "line", ['relay = "a.test"\nrelay_user = "u"\nrelay_pass = "x"', 'queue = "postgresql://u:pw@db.test/mail"']
)
def test_password_within_an_exposed_configuration_is_a_fault(tmp_path: Path, line: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(line + "\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"every user may read .*chmod o-rwx") as caught:
        load(str(file), {}, {})
    assert "pw" not in str(caught.value).replace(str(tmp_path), "")
    file.chmod(0o640)
    load(str(file), {}, {})
    file.write_text('queue = "postgresql://u@db.test/mail"\n')
    file.chmod(0o644)
    load(str(file), {}, {})


def test_plugin_folder_that_every_user_may_write_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code").chmod(0o777)
    file = tmp_path / "p.toml"
    file.write_text('python_path = ["code"]\n')
    assert "every user may write" in str(check(str(file), {})[0])


def test_data_directory_that_every_user_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreError, match=r"every user may write the data directory .*chmod 700"):
        check_folder(str(folder))
    with pytest.raises(StoreError, match="every user may write"):
        asyncio.run(MailServer.spawn(port=0, data_dir=folder))
    folder.chmod(0o770)
    check_folder(str(folder))
    assert check_folder(str(tmp_path / "none")) == []


def test_folder_above_that_every_user_may_write_is_reported(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    top.chmod(0o777)
    assert [text for text in check_folder(str(top / "d")) if f"every user may write {top}" in text]
    top.chmod(0o1777)
    assert not [text for text in check_folder(str(top / "d")) if str(top) in text]


@pytest.mark.skipif(not is_root, reason="gives files to another user")
def test_data_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir(0o700)
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(StoreError, match=r"belongs to nobody, this process is root: start the server as nobody"):
        asyncio.run(MailServer.spawn(port=0, data_dir=folder))
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "d").mkdir(0o700)
    os.chown(tmp_path / "up", NOBODY.pw_uid, NOBODY.pw_gid)
    assert "who could replace it" in check_folder(str(tmp_path / "up" / "d"))[0]


def test_token_of_a_file_that_is_not_ours_alone_is_not_believed(tmp_path: Path) -> None:
    path = write_file(str(tmp_path), "http://x", "A" * 40)
    assert read_token(str(tmp_path)) == "A" * 40
    os.chmod(path, 0o640)
    assert read_token(str(tmp_path)) is None
    os.chmod(path, 0o600)
    os.rename(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    assert read_token(str(tmp_path)) is None
    if is_root:
        os.unlink(path)
        write_file(str(tmp_path), "http://x", "A" * 40)
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        assert read_token(str(tmp_path)) is None


def test_admin_file_is_written_beside_what_others_prepared(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / f"admin.json.{os.getpid()}.tmp").symlink_to(victim)
    path = write_file(str(tmp_path), "http://x", "A" * 40)
    assert json.loads(Path(path).read_text())["url"] == "http://x"
    assert victim.read_text() == "kept"


def test_accounts_file_keeps_owner_and_mode(tmp_path: Path) -> None:
    file, link = tmp_path / "accounts", tmp_path / "link"
    update_file(file, "a", format_line("a", hash_password("x"), ()))
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    if is_root:
        os.chown(file, 0, NOBODY.pw_gid)
    before = file.stat()
    link.symlink_to(file)
    assert not update_file(link, "b", format_line("b", hash_password("y"), ()))
    assert update_file(str(file), "a", None)
    after = file.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert link.is_symlink()
    assert AuthFile(str(file))("b", "y") is not None


def test_accounts_that_are_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    line = hash_password("x")
    names = [f"u{number}" for number in range(40)]
    threads = [threading.Thread(target=update_file, args=(file, one, format_line(one, line, ()))) for one in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {text.partition(":")[0] for text in file.read_text().splitlines()} == set(names)
    assert not update_file(tmp_path / "none", "x", None)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["accounts"]


@pytest.mark.skipif(not is_root, reason="becomes another user")
def test_plugin_is_imported_by_the_user_that_serves(tmp_path: Path) -> None:
    for folder in (*reversed(tmp_path.parents[:-2]), tmp_path):
        folder.chmod(folder.stat().st_mode | 0o011)
    code = tmp_path / "code"
    code.mkdir()
    code.chmod(0o755)
    (code / "whoplug.py").write_text(
        "import os, sys\nsys.stderr.write(f'imported by {os.geteuid()}\\n')\nclass P:\n    pass\n"
    )
    (tmp_path / "p.toml").write_text(f'python_path = ["{code}"]\nuser = "nobody"\n[[plugins]]\nuse = "whoplug:P"\n')
    with Daemon(tmp_path, f"--config={tmp_path / 'p.toml'}") as daemon:
        assert f"imported by {NOBODY.pw_uid}" in daemon.log.read_text()
        assert "imported by 0" not in daemon.log.read_text()


@pytest.mark.skipif(not is_root, reason="serves as root")
def test_server_that_stays_root_says_so(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        assert "serving as root" in daemon.log.read_text()
