"""What guards the queue from a slip of its operator or a program: filters that must narrow, fields that are read strictly, SQL that only reads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import apsw
import pytest

from pillarbox.cli.terminal import json_text, say
from pillarbox.errors import OptionError
from pillarbox.log.record import escape_controls, format_value
from pillarbox.queue import look
from pillarbox.queue.control import PAGE_RECIPIENTS, PAGE_ROWS, make_query, parse_query, perform
from pillarbox.queue.look import ask_sql
from pillarbox.queue.model import Action, Query
from tests.queue.test_look import fill

ACTIONS = [action.value for action in Action]


class Noting:
    """A steering that notes what reaches it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*given: Any) -> list[Any]:
            self.calls.append((name, *given))
            return []

        return call


def ask(request: Any) -> list[tuple[Any, ...]]:
    steering = Noting()
    asyncio.run(perform(steering, request))  # type: ignore[arg-type]
    return steering.calls


WIDE: list[dict[str, Any]] = [
    {},
    {"limit": 5},
    {"is_all": True},
    {"is_newest_first": True},
    {"uids": []},
    {"state": None},
    {"sender": None, "limit": 1},
]
NARROW: list[dict[str, Any]] = [
    {"uids": ["U1"]}, {"state": "held"}, {"sender": "a@b.test"}, {"sender": ""}, {"recipient": "c@d.test"}, {"next_hop": "mx:d.test"}, {"received_before": 0}, {"received_before": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("verb", ACTIONS)
def test_action_without_a_filter_changes_nothing_unless_everything_is_meant(verb: str) -> None:
    for fields in WIDE:
        for more in ({}, {"is_everything": False}, {"is_everything": None}, {"is_everything": 0}):
            with pytest.raises(ValueError, match="is_everything"):
                ask({"verb": verb, "query": fields, **more})
        assert ask({"verb": verb, "query": fields, "is_everything": True})[0][:2] == ("change", Action(verb))
    with pytest.raises(ValueError, match="is_everything"):
        ask({"verb": verb})
    for fields in NARROW:
        ((name, action, query),) = ask({"verb": verb, "query": fields})
        assert name == "change" and action is Action(verb) and query == parse_query(fields)


def test_filter_is_narrow_when_it_names_messages() -> None:
    assert not any(parse_query(fields).is_narrow for fields in WIDE)
    assert all(parse_query(fields).is_narrow for fields in NARROW)


@pytest.mark.parametrize(
    "fields",
    [
        {"recipients": "x"}, {"UIDS": ["x"]}, {"": 1}, {"uids": "U1"}, {"uids": [1]}, {"uids": [None]}, {"uids": {"U1": 1}}, {"state": 1}, {"state": ["held"]},
        {"state": "gone"}, {"state": ""}, {"state": "HELD"}, {"sender": 1}, {"sender": ["a@b.test"]}, {"recipient": True}, {"next_hop": 0}, {"received_before": "0"},
        {"received_before": True}, {"received_before": 1e12}, {"received_before": -1e12}, {"received_before": float("nan")}, {"received_before": float("inf")},
        {"is_all": 1}, {"is_all": "yes"}, {"limit": -1}, {"limit": 1 << 31}, {"limit": True}, {"limit": 1.5}, {"limit": "1"}, {"most_recipients": -1},
        {"after": 1}, {"after": []}, {"after": [1]}, {"after": [1, 2, 3]}, {"after": ["1", 2]}, {"after": [1, 1.5]}, {"after": [1e12, 1]}, {"after": [1, 1 << 63]},
    ],
)  # fmt: skip
def test_filter_that_is_unknown_or_of_the_wrong_type_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse_query(fields)
    with pytest.raises(OptionError, match="mail_queue"):
        make_query(fields)
    for verb in ("list", "page", "count", *ACTIONS):
        with pytest.raises(ValueError):
            ask({"verb": verb, "query": fields, "is_everything": True})


@pytest.mark.parametrize(
    "request_",
    [
        None,
        [],
        "list",
        {},
        {"verb": 1},
        {"verb": ["list"]},
        {"verb": "LIST"},
        {"verb": ""},
        {"verb": "drop"},
        {"verb": "list", "query": []},
        {"verb": "list", "query": "x"},
        {"verb": "show"},
        {"verb": "show", "uid": 1},
    ],
)
def test_request_that_makes_no_sense_is_refused(request_: Any) -> None:
    with pytest.raises(ValueError):
        ask(request_)


@pytest.mark.parametrize(
    ("limit", "rows"),
    [(None, PAGE_ROWS), (1, 1), (0, 0), (PAGE_ROWS, PAGE_ROWS), (PAGE_ROWS + 1, PAGE_ROWS), (1 << 30, PAGE_ROWS)],
)
def test_page_is_bounded(limit: int | None, rows: int) -> None:
    ((_, query),) = ask({"verb": "page", "query": {"limit": limit}})
    assert isinstance(query, Query) and query.limit == rows and query.most_recipients == PAGE_RECIPIENTS


@pytest.mark.parametrize("next_hop", ["", "d.test", "mx:", 1, ["mx:d.test"], "relay:", "smtp:d.test", "*"])
def test_pause_of_what_is_no_next_hop_is_refused(next_hop: Any) -> None:
    with pytest.raises(ValueError, match="next hop"):
        ask({"verb": "pause", "next_hop": next_hop})
    for right in (None, "mx:d.test", "relay:127.0.0.1:25"):
        assert ask({"verb": "pause", "next_hop": right}) == [("pause", right)]
    if isinstance(next_hop, str) and next_hop:
        # An old flag can be removed.
        assert ask({"verb": "resume", "next_hop": next_hop}) == [("resume", next_hop)]


# ------------------------------------------------------------------------- SQL

WRITES = [
    "DELETE FROM shard0.message", "UPDATE shard0.message SET uid = 'x'", "INSERT INTO shard0.flag VALUES ('a', 'b')", "REPLACE INTO shard0.flag VALUES ('a', 'b')",
    "DROP TABLE shard0.message", "DROP VIEW queue_messages", "CREATE TABLE main.t (x)", "CREATE TEMP TABLE t AS SELECT 1", "CREATE TEMP VIEW v AS SELECT 1",
    "CREATE INDEX shard0.i ON message (uid)", "CREATE TEMP TRIGGER t AFTER INSERT ON shard0.message BEGIN SELECT 1; END", "ALTER TABLE shard0.message RENAME TO m",
    "ATTACH ':memory:' AS other", "ATTACH 'file:other.db?mode=rwc' AS other", "DETACH shard0", "PRAGMA shard0.user_version", "PRAGMA journal_mode = DELETE",
    "PRAGMA query_only = OFF", "PRAGMA writable_schema = ON", "SELECT * FROM pragma_database_list", "VACUUM", "VACUUM shard0 INTO 'copy.db'", "REINDEX", "ANALYZE",
    "BEGIN", "BEGIN IMMEDIATE", "COMMIT", "SAVEPOINT a", "CREATE VIRTUAL TABLE temp.f USING fts5(x)", "SELECT 1; DROP VIEW queue_messages",
    "WITH x AS (SELECT 1) DELETE FROM shard0.message", "EXPLAIN DELETE FROM shard0.message", "SELECT load_extension('x')", "SELECT writefile('copy.db', 'x')",
]  # fmt: skip


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sql")
    fill(folder / "data")
    return folder


@pytest.mark.parametrize("sql", WRITES)
def test_question_that_would_change_something_is_refused(
    queue: Path, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(queue)
    with pytest.raises(OptionError, match=r"only read|SQL: "):
        list(ask_sql("data", sql)[1])
    assert [path.name for path in queue.iterdir()] == ["data"]
    assert list(ask_sql("data", "SELECT count(*) FROM queue_recipients")[1]) == [(8,)]


def test_question_may_use_all_of_select(queue: Path) -> None:
    sql = """WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3)
             SELECT x, upper(m.uid), count(*) OVER () FROM n JOIN queue_messages m ON m.uid IN ('A', 'B') ORDER BY 1, 2"""
    assert [row[:2] for row in ask_sql(str(queue / "data"), sql)[1]] == [(n, uid) for n in (1, 2, 3) for uid in "AB"]


def test_shards_are_read_only_without_the_authorizer_too(queue: Path) -> None:
    connection = look.open_whole(str(queue / "data"))
    connection.authorizer = None
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("DELETE FROM shard0.message")


# ------------------------------------------------------------------------- the terminal

HIDDEN = [
    *map(chr, range(32)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]


def test_no_control_or_direction_character_reaches_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for character in HIDDEN:
        assert escape_controls(f"a{character}b").isprintable()
        quoted = format_value("reply", f"a{character}b")
        assert character not in quoted and quoted.isprintable()
        for is_indented in (False, True):
            text = json_text(f"a{character}b", is_indented=is_indented)
            assert character not in text and text.isprintable()
        for is_error in (False, True):
            say(f"a{character}b", is_error=is_error)
            found = capsys.readouterr()
            assert character not in (found.err if is_error else found.out).removesuffix("\n")
    assert escape_controls("m\u00fcnchen \u4e2d") == "m\u00fcnchen \u4e2d"


@pytest.mark.parametrize("value", ['x" queue_id="y', "x queue_id=y", 'a\\" peer=192.0.2.1', "a\\", "reason=ok", "a b"])
def test_value_of_a_log_line_passes_for_no_other_field(value: str) -> None:
    text = format_value("reply", value)
    assert text[0] == text[-1] == '"' or ("=" not in text and " " not in text)
    inner = text[1:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in inner and not inner.endswith("\\")
    for name in ("queue_id", "peer", "reason"):
        assert f"{name}=" not in text
