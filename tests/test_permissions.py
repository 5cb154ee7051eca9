"""Files, folders and sockets of the server are its user's alone, whatever the umask is and whatever lies in their way."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import apsw
import pytest

from pillarbox.admin.tokens import FILE, read_token, write_file
from pillarbox.cli.mailbox import _new_file
from pillarbox.config.files import check_folder, exposed_text, open_folder_text
from pillarbox.daemon import pid
from pillarbox.daemon.privileges import Identity, become, find_identity
from pillarbox.daemon.sockets import bind_all, close_all
from pillarbox.errors import ListenError, OptionError, StoreError, StoreLockedError
from pillarbox.options import parse_options
from pillarbox.queue.folder import make_folder, make_private_file, make_spool, take_lock
from pillarbox.queue.journal import Journal
from pillarbox.queue.spool import Spool
from pillarbox.queue.wal import lengthen
from pillarbox.server.accounts import update_file
from tests.conftest import run_async, serving


@pytest.fixture
def no_umask() -> Iterator[None]:
    """The modes are those of the code: no umask takes anything away."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# ------------------------------------------------------------------------- makers of private files


def _wal(path: Path) -> None:
    database = apsw.Connection(":memory:")
    lengthen(database, str(path).removesuffix("-wal"), 1)


def _exported(path: Path) -> None:
    with ExitStack() as stack:
        _new_file(str(path), stack)


MAKERS: dict[str, Callable[[Path], object]] = {
    "queue-0.db": lambda path: make_private_file(str(path), is_new_allowed=True),
    "queue-0.lock": lambda path: os.close(take_lock(str(path), "x")),
    "journal-0": lambda path: Journal(str(path)).make(),
    "queue-0.db-wal": _wal,
    "server.pid": lambda path: os.close(pid.claim(str(path.parent))),
    "accounts": lambda path: update_file(path, "ann", "ann:x"),
    "export.mbox": _exported,
    "spooled": lambda path: _spool(path),
}


def _spool(path: Path) -> None:
    async def main() -> None:
        spool = Spool(str(path.parent))
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        writer = spool.create(path.name, lambda wants: None)
        writer.write(b"x" * 10)
        writer.finish(done.set_result)
        error = await done
        spool.close()
        if error is not None:
            raise error  # type: ignore[misc]

    run_async(main)


@pytest.mark.parametrize("name", MAKERS)
def test_private_file_is_made_for_its_user_alone_without_help_of_the_umask(
    tmp_path: Path, no_umask: None, name: str
) -> None:
    MAKERS[name](tmp_path / name)
    assert mode_of(tmp_path / name) == 0o600


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "accounts"])
def test_private_file_that_is_a_link_leaves_its_target_alone(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / name).symlink_to(target)
    if name == "queue-0.db-wal":
        MAKERS[name](tmp_path / name)
    else:
        with pytest.raises((OSError, StoreError, OptionError, SystemExit)):
            MAKERS[name](tmp_path / name)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "accounts"])
def test_private_file_is_not_made_behind_a_dangling_link(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "target")
    with suppress(OSError, StoreError, OptionError):
        MAKERS[name](tmp_path / name)
    assert not (tmp_path / "target").exists()


def test_export_is_not_written_over_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "export.mbox").write_bytes(b"precious")
    with pytest.raises(OptionError, match="cannot write"):
        MAKERS["export.mbox"](tmp_path / "export.mbox")
    assert (tmp_path / "export.mbox").read_bytes() == b"precious"


def test_spool_file_is_not_written_over_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "spooled").write_bytes(b"precious")
    os.link(tmp_path / "spooled", tmp_path / "same")
    with pytest.raises(StoreError):
        MAKERS["spooled"](tmp_path / "spooled")
    assert (tmp_path / "same").read_bytes() == b"precious"


def test_folders_are_made_for_their_user_alone(tmp_path: Path, no_umask: None) -> None:
    make_folder(str(tmp_path / "data"))
    make_spool(str(tmp_path / "spool"))
    os.close(pid.claim(str(tmp_path / "served")))
    assert [mode_of(tmp_path / name) for name in ("data", "spool", "served")] == [0o700] * 3


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_spool_that_others_may_enter_is_closed_to_them(tmp_path: Path, mode: int) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(mode)
    make_spool(str(tmp_path / "spool"))
    assert mode_of(tmp_path / "spool") == 0o700


def test_spool_that_is_a_link_or_a_file_or_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StoreError, match="symbolic link"):
        make_spool(str(tmp_path / "link"))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StoreError, match="belongs to"):
        make_spool(str(tmp_path / "real"))


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_sockets_of_a_server_are_for_its_user_alone_and_the_umask_comes_back(
    tmp_path: Path, no_umask: None, kind: str
) -> None:
    async def main() -> None:
        path = tmp_path / "smtp.sock"
        async with serving(tmp_path / "data", store=kind, listen=[f"unix:{path}"]) as server:
            assert mode_of(path) == 0o600
            if kind == "sqlite":
                assert mode_of(Path(server.options.data_dir) / "control.sock") == 0o600

    run_async(main)
    before = os.umask(0)
    assert before == 0


def test_socket_that_outlives_workers_is_for_its_user_alone(tmp_path: Path, no_umask: None) -> None:
    path = tmp_path / "smtp.sock"
    rows = bind_all(parse_options({"store": "memory", "listen": [f"unix:{path}"]}), 2)
    assert mode_of(path) == 0o600 and os.umask(0) == 0
    close_all(rows)
    assert not path.exists()


def test_socket_is_not_bound_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="cannot listen"):
        bind_all(parse_options({"store": "memory", "listen": [f"unix:{path}"]}), 1)
    assert path.read_text() == "precious"


# ------------------------------------------------------------------------- readers


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o622])
def test_token_of_a_file_that_others_may_use_is_not_believed(tmp_path: Path, mode: int) -> None:
    path = write_file(str(tmp_path), "http://localhost:1", "t" * 43)
    assert mode_of(path) == 0o600 and read_token(str(tmp_path)) == "t" * 43
    os.chmod(path, mode)
    assert read_token(str(tmp_path)) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"token": 1}', '{"token": "short"}', '{"token": null}', "\xff", '{"token": ""}']
)
def test_token_that_is_short_or_none_is_not_believed(tmp_path: Path, text: str) -> None:
    path = Path(write_file(str(tmp_path), "http://localhost:1", "t" * 43))
    path.write_text(text, encoding="latin-1")
    assert read_token(str(tmp_path)) is None


def test_token_behind_a_link_or_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    path = write_file(str(tmp_path / "other"), "http://localhost:1", "t" * 43)
    (tmp_path / FILE).symlink_to(path)
    assert read_token(str(tmp_path)) is None
    # The next one takes the link's place, and leaves its target alone.
    write_file(str(tmp_path), "http://localhost:1", "u" * 43)
    assert read_token(str(tmp_path)) == "u" * 43 and read_token(str(tmp_path / "other")) == "t" * 43
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert read_token(str(tmp_path)) is None


def test_admin_file_is_private_whatever_the_umask_is_and_leaves_nothing_beside_it(
    tmp_path: Path, no_umask: None
) -> None:
    for token in ("t" * 43, "u" * 43):
        assert mode_of(write_file(str(tmp_path), "http://localhost:1", token)) == 0o600
    assert os.listdir(tmp_path) == [FILE]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o604, 0o602, 0o666, 0o400, 0o620])
def test_secret_is_exposed_where_every_user_may_read_or_write_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.touch()
    path.chmod(mode)
    assert (exposed_text(path, "the secret") is not None) is bool(mode & 0o006)
    assert (open_folder_text(str(path)) is not None) is bool(mode & 0o002)


def test_data_directory_that_others_could_replace_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "wide" / "data"
    folder.mkdir(parents=True)
    for mode, is_reported in ((0o755, False), (0o777, True), (0o1777, False), (0o775, False)):
        folder.parent.chmod(mode)
        assert any(str(folder.parent) in text for text in check_folder(str(folder))) is is_reported
    folder.parent.chmod(0o755)
    for mode in (0o702, 0o777, 0o1777):
        folder.chmod(mode)
        with pytest.raises(StoreError, match="every user may write"):
            check_folder(str(folder))
    folder.chmod(0o700)


def test_second_server_on_a_folder_is_refused(tmp_path: Path) -> None:
    assert pid.running_pid(str(tmp_path)) is None
    handle = pid.claim(str(tmp_path))
    assert pid.running_pid(str(tmp_path)) == os.getpid()
    with pytest.raises(StoreLockedError, match=str(os.getpid())):
        pid.claim(str(tmp_path))
    os.close(handle)
    assert pid.running_pid(str(tmp_path)) is None
    os.close(pid.claim(str(tmp_path)))


# ------------------------------------------------------------------------- from root to the user

OTHER = Identity("other", 4242, 4343)


def _calls(monkeypatch: pytest.MonkeyPatch, *, uid: int = 0, saved: int = 0) -> list[tuple[object, ...]]:
    """Root on paper: what `become` asks the system for, in order."""
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getresuid", lambda: (uid, uid, saved))
    for name in ("initgroups", "setgid", "setuid", "chown"):
        monkeypatch.setattr(os, name, lambda *given, name=name: calls.append((name, *given)))
    return calls


def _owned_by(uid: int, real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
    def stat_of(path: str, **more: bool) -> os.stat_result:
        found = list(real(path, **more))
        found[stat.ST_UID] = uid
        return os.stat_result(found)

    return stat_of


def test_root_gives_up_groups_and_group_before_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "data")
    calls = _calls(monkeypatch, uid=OTHER.uid, saved=OTHER.uid)
    monkeypatch.setenv("HOME", "/root")
    become(OTHER, folder)
    assert calls == [
        ("chown", folder, 4242, 4343), ("initgroups", "other", 4343), ("setgid", 4343), ("setuid", 4242),
    ]  # fmt: skip
    assert mode_of(folder) == 0o700 and "HOME" not in os.environ


def test_process_that_is_still_root_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "stat", _owned_by(OTHER.uid, os.stat))
    for uid in (0, OTHER.uid):
        # A saved user id of root would lead back.
        _calls(monkeypatch, uid=uid, saved=0)
        with pytest.raises(OptionError, match="still root"):
            become(OTHER, str(tmp_path))


def test_root_takes_no_data_directory_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _calls(monkeypatch)
    with pytest.raises(OptionError, match="is not other's"):
        become(OTHER, str(tmp_path))
    assert calls == []


def test_only_root_becomes_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _calls(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(OptionError, match="only root"):
        become(OTHER, str(tmp_path / "data"))
    become(Identity("me", 1000, 1000), str(tmp_path / "data"))
    assert calls == [] and not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["nobody-of-that-name", "4294000001", "root:no-such-group", "root:4x"])
def test_user_or_group_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="option 'user'"):
        find_identity(text)


def test_user_is_found_by_name_or_number_with_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_identity("root") == find_identity("0") == Identity("root", 0, 0)
    assert find_identity("root:12").gid == 12
