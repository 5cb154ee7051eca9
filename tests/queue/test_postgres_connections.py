"""Connections of a queue on PostgreSQL: fail-over, poolers, standbys, TLS warnings, texts, and questions in SQL."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pillarbox.errors import OptionError, StoreError
from pillarbox.queue.pgconnect import StoreAwayError, reason_of, warn_of_clear_text
from pillarbox.queue.postgres import PostgresStore
from pillarbox.queue.shared import ask_shared_sql
from tests.conftest import free_port, tool
from tests.daemon import wait_until

from .test_store_contract import message


@pytest.fixture
def store(tmp_path: Path, database: str) -> Iterator[PostgresStore]:
    made = PostgresStore(database, str(tmp_path), lease_s=2.0)
    made.open()
    yield made
    made.close()


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def backend(store: PostgresStore) -> int:
    return store._session._backend[0]


@pytest.fixture
def read_only(database: str) -> Iterator[Callable[[bool], None]]:
    """Makes the server read-only, open sessions included, as a former primary is after a fail-over."""

    def turn(is_on: bool) -> None:
        word = "SET default_transaction_read_only = on" if is_on else "RESET default_transaction_read_only"
        run(database, "SET default_transaction_read_only = off", f"ALTER SYSTEM {word}", "SELECT pg_reload_conf()")

        def is_there() -> bool:
            with psycopg.connect(database) as connection:
                return connection.execute("SHOW transaction_read_only").fetchone() == ("on" if is_on else "off",)

        wait_until(is_there, 10)

    yield turn
    turn(False)


def test_server_that_becomes_read_only_is_left_and_another_connection_is_made(
    store: PostgresStore, read_only: Callable[[bool], None]
) -> None:
    store.commit([message("A")], ())
    before = backend(store)
    reader = store.reader()
    assert reader.counts() == {"queued": 1}
    read_only(True)
    with pytest.raises(StoreAwayError, match=r"read-only .*target_session_attrs=read-write"):
        store.commit([message("B")], ())
    with pytest.raises(StoreAwayError, match="read-only"), store.transaction():
        store.claim(10, 0.0, 100.0, 1 << 20)
    wait_until(lambda: store.heart.is_away, 10)
    read_only(False)
    wait_until(lambda: not store.heart.is_away, 10)
    store.commit([message("B")], ())
    assert backend(store) != before and reader.counts() == {"queued": 2}
    assert store._session.is_in_doubt is False


def test_read_only_server_is_refused_at_the_start_and_read_all_the_same(
    store: PostgresStore, tmp_path: Path, read_only: Callable[[bool], None]
) -> None:
    store.commit([message("A")], ())
    store.close()
    read_only(True)
    with pytest.raises(StoreAwayError, match="read-only"):
        PostgresStore(store.url, str(tmp_path / "other")).open()
    looking = PostgresStore(store.url, is_node=False)
    looking.open()
    assert looking.counts() == {"queued": 1}
    looking.close()


def test_sessions_that_the_database_ends_are_made_again(store: PostgresStore, database: str) -> None:
    store.commit([message("A")], ())
    reader = store.reader()
    assert reader.counts() == {"queued": 1}
    run(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()",
    )
    wait_until(lambda: store.heart.generation > 0 and not store.heart.is_away, 10)
    store.commit([message("B")], ())
    assert reader.counts() == {"queued": 2}


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_pooler_is_refused_in_transaction_mode_only(tmp_path: Path, database: str, mode: str) -> None:
    program, port = tool("pgbouncer"), free_port()
    server, _, name = database.rpartition("/")
    folder = tmp_path / "bouncer"
    folder.mkdir()
    (folder / "users").write_text('"pillarbox" ""\n')
    (folder / "ini").write_text(
        f"[databases]\n{name} = host=127.0.0.1 port={server.rpartition(':')[2]} dbname={name}\n[pgbouncer]\n"
        f"listen_addr=127.0.0.1\nlisten_port={port}\nauth_type=trust\nauth_file={folder}/users\npool_mode={mode}\n"
        f"default_pool_size=5\nunix_socket_dir=\nignore_startup_parameters=extra_float_digits\n"
    )
    shutil.chown(folder, "nobody")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen([program, "-u", "nobody", str(folder / "ini")], stdout=log, stderr=log)
    try:
        url = f"postgresql://pillarbox@127.0.0.1:{port}/{name}"

        def answers() -> bool:
            with psycopg.connect(url, connect_timeout=2):
                return True

        wait_until(lambda: _quietly(answers), 10)
        store = PostgresStore(url, str(tmp_path / "data"))
        if mode == "transaction":
            with pytest.raises(StoreError, match=r"pooler .* pool_mode = session"):
                store.open()
            return
        store.open()
        store.commit([message("A")], ())
        assert store.counts() == {"queued": 1}
        store.close()
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def _quietly(call: Callable[[], bool]) -> bool:
    try:
        return call()
    except psycopg.Error:
        return False


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("postgresql://u@db.example.org/mail", True),
        ("postgresql://u@192.0.2.1/mail?sslmode=require", True),
        ("postgresql://u@localhost,db.example.org/mail", True),
        ("postgresql://u@db.example.org/mail?sslmode=verify-full", False),
        ("postgresql://u@127.0.0.1/mail", False),
        ("postgresql://u@[::1]/mail", False),
        ("postgresql:///mail", False),
        ("postgresql:///mail?host=/run/postgresql", False),
    ],
)
def test_unverified_way_to_another_machine_is_warned_of(
    url: str, warns: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.WARNING):
        warn_of_clear_text(url)
    assert ("sslmode=verify-full" in caplog.text) is warns


def test_reasons_of_the_driver_are_one_bounded_line() -> None:
    text = reason_of(psycopg.OperationalError("connection to a failed:\n\tfirst line\n" * 50))
    assert "\n" not in text and "\t" not in text and len(text) <= 404 and text.endswith(" ...")


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT; BEGIN READ WRITE; UPDATE message SET subject = 'x'; COMMIT",
        "SELECT 1; DELETE FROM message",
        "DELETE FROM message",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY message TO '/tmp/x'",
        "SET default_transaction_read_only = off",
        "DO $$ BEGIN DELETE FROM message; END $$",
        "CALL nothing()",
        "SELECT 1 INTO new_table",
        "WITH gone AS (DELETE FROM message RETURNING 1) SELECT * FROM gone",
        "SELECT * FROM message FOR UPDATE",
        "SELECT nextval('message_id')",
        "SELECT set_config('transaction_read_only', 'off', true)",
        "EXPLAIN ANALYZE DELETE FROM message",
        "LOCK message",
    ],
)
def test_question_in_sql_changes_nothing(store: PostgresStore, database: str, sql: str) -> None:
    store.commit([message("A")], ())
    with pytest.raises(OptionError):
        list(ask_shared_sql(database, sql)[1])
    columns, rows = ask_shared_sql(database, "SELECT subject FROM queue_messages")
    assert columns == ["subject"] and list(rows) == [("subject A",)]
    with psycopg.connect(database) as connection:
        found: Any = connection.execute("SELECT to_regclass('new_table')").fetchone()
        assert found == (None,)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1 AS a;", [(1,)]),
        ("-- a comment\nWITH x AS (SELECT 2 AS a) TABLE x", [(2,)]),
        ("VALUES (3)", [(3,)]),
        ("SELECT '100%' WHERE 'a%b' LIKE 'a%'", [("100%",)]),
        ("SELECT g FROM generate_series(1, 2500) AS g", [(n,) for n in range(1, 2501)]),
        ("SELECT 1 WHERE false", []),
    ],
)
def test_question_in_sql_is_answered(store: PostgresStore, database: str, sql: str, rows: list[Any]) -> None:
    assert list(ask_shared_sql(database, sql)[1]) == rows
