"""Generates docs/reference from the code's own tables: commands, extensions, events, options, the queue's tables.

Run by `make docs`; CI checks that what is committed is what the code says.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

from pillarbox.config.faults import kind_of
from pillarbox.config.reloadable import RELOADABLE
from pillarbox.daemon.config import DaemonOptions
from pillarbox.events.catalogue import CATALOGUE
from pillarbox.log.fields import FIELDS
from pillarbox.log.kinds import KINDS, QUEUED
from pillarbox.log.reasons import REASONS
from pillarbox.log.record import format_fields, format_json
from pillarbox.options import Options
from pillarbox.smtp.command import COMMANDS
from pillarbox.smtp.extension import EXTENSIONS
from pillarbox.smtp.state import TRANSITIONS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TARGET = ROOT / "docs" / "reference"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def smtp_page() -> str:
    """Commands, where they are legal, and extensions."""
    commands = []
    for row in COMMANDS.values():
        states = [state.name for state, moves in TRANSITIONS.items() if row.verb in moves]
        commands.append(
            [f"`{row.syntax}`", f"RFC {row.rfc}" if row.rfc else "not offered", f"`{row.event}`", ", ".join(states)]
        )
    extensions = []
    for extension in EXTENSIONS:
        parameters = [f"MAIL {key}" for key in extension.mail] + [f"RCPT {key}" for key in extension.rcpt]
        extensions.append([extension.keyword, f"RFC {extension.rfc}", ", ".join(parameters) or "-"])
    states_rows = [[state.name, state.value] for state in TRANSITIONS]
    return (
        "# SMTP: commands, states, extensions\n\nGenerated from the tables in `smtp/` by `make docs`.\n\n## Commands\n\n"
        + table(["command", "source", "event", "legal in"], commands)
        + "\n## States\n\n"
        + table(["state", "meaning"], states_rows)
        + "\n## Extensions\n\n"
        + table(["keyword", "source", "parameters"], extensions)
    )


def events_page() -> str:
    """Every event with its fields."""
    rows = []
    for name, cls in CATALOGUE.items():
        fields = ", ".join(f"`{field.name}`: {field.type}" for field in dataclasses.fields(cls))
        rows.append([f"`{name}`", f"`{cls.__name__}`", cls.kind.value, " ".join((cls.__doc__ or "").split()), fields])
    return (
        "# Events\n\nGenerated from `events/catalogue.py` by `make docs`. A plugin's method is `on_<event>(server, event)`; a subscriber\n"
        "names the event. Fields may be changed in place by plugins. The classes are in `pillarbox.events`.\n\n"
        + table(["event", "class", "kind", "when", "fields"], rows)
    )


def option_rows(fields: dict[str, Any]) -> list[list[str]]:
    """A row for each option."""
    rows = []
    for name, field in fields.items():
        kind = kind_of(field)
        if field.default_factory is not None:
            default = {
                "hostname": "the machine's full name",
                "data_dir": "`/var/lib/pillarbox` as root, else `$XDG_STATE_HOME/pillarbox`",
            }.get(name, f"`{field.default_factory()!r}`")
        else:
            default = f"`{field.default!r}`"
        when = "reload" if name in RELOADABLE else "restart"
        rows.append([f"`{name}`", f"`{kind}`", default, field.description or "", when])
    return rows


def options_page() -> str:
    """Every option."""
    head = ["option", "type", "default", "meaning", "changed by"]
    return (
        "# Options\n\nGenerated from `options.py` and `daemon/config.py` by `make docs`. Sizes are octets, or a text such as `512kB`,\n`10MB` or `64MiB`; times are seconds, or a text such as `30s`, `5m`, `1h30m` or `4d`.\n\n"
        "These are keyword arguments of `MailServer(...)`, `MailServer.spawn(...)` and `MailServer.run(...)`, keys of `pillarbox.toml`\n"
        "(but `resolver`, which is an object), and environment variables (`PILLARBOX_MAX_SESSIONS=100`, lists with commas); `pillarbox\n"
        "serve --help` shows the flags. What a [reload](../guides/configuration.md) changes is in force for new sessions and connections.\n\n"
        + table(head, option_rows(Options.model_fields))
        + "\n## Of the daemon alone\n\n"
        + table(head, option_rows(DaemonOptions.model_fields))
    )


def tables_page() -> str:
    """The queue's schema, as it stands in the migrations."""
    sql = ROOT / "src" / "pillarbox" / "queue" / "sql"
    scripts, shared = (
        "\n\n".join(path.read_text().strip() for path in sorted((sql / kind).glob("0*.sql")))
        for kind in ("sqlite", "postgres")
    )
    return (
        "# The queue's tables\n\nGenerated from `queue/sql/sqlite` by `make docs`. The file is `queue-0.db` in the data directory (with several workers also `queue-1.db` and so on). Readers are\n"
        "welcome, also while the server runs (`sqlite3 'file:queue-0.db?mode=ro'`, SQLite 3.51.3 or later): names and meanings are stable.\n"
        "Behind a busy server they see what it took a quarter of a second ago ([why](../explanation/group-commit.md#ahead-of-the-database)).\n"
        "Only the server writes: use `pillarbox queue` to steer. Times are unix seconds.\n\n```sql\n"
        + scripts
        + "\n```\n\n"
        "The views stand in each file, and `pillarbox queue sql` has them over all of them, read-only. What waits, by next hop and last\n"
        "reply; the slowest attempts of the last hour; who sends most:\n\n"
        "<!-- test: hidden\npillarbox serve --no-direct\n-->\n```sh\n"
        "pillarbox queue sql \"SELECT next_hop, last_reply, count(*) FROM queue_recipients WHERE state IN ('queued', 'deferred') GROUP BY 1, 2 ORDER BY 3 DESC\"\n"
        "pillarbox queue sql 'SELECT seconds, address, remote, reply FROM queue_attempts WHERE at > unixepoch() - 3600 ORDER BY 1 DESC LIMIT 10'\n"
        "pillarbox queue sql --json 'SELECT reverse_path, count(*) AS messages, sum(size_bytes) AS octets FROM queue_messages GROUP BY 1 ORDER BY 2 DESC'\n```\n"
        "\n## On PostgreSQL\n\nOf a queue that [many servers share](../guides/run-a-cluster.md): generated from `queue/sql/postgres`. The same views.\n\n```sql\n"
        + shared
        + "\n```\n"
    )


def simplesmtp_page() -> str:
    """The table of the tests, as a page for those who know the original."""
    from tests.simplesmtp.table import SECTIONS

    parts = [
        "# Coming from POE::Component::Server::SimpleSMTP\n\n"
        "Generated from `tests/simplesmtp/table.py` by `make docs`. Every feature of the Perl module, its form here, and the test that\n"
        "proves it (in `tests/simplesmtp/`): names are kept, shapes are Python's, and where the original was wrong the row says so.\n\n"
        "```python\nimport asyncio\nfrom pillarbox import MailServer\n\n\nasync def main():\n"
        '    server = await MailServer.spawn(hostname="mymailserver.local", relay=None)  # a smart host, if you have one\n'
        "    await server.wait_closed()\n\n\nasyncio.run(main())\n```\n\n"
        "The plugin template of the original's document is `examples/plugin_template.py`, its synopsis `examples/synopsis.py`.\n"
    ]
    for title, rows in SECTIONS.items():
        cells = [[row.name, row.original, row.ours, f"`{row.test}`"] for row in rows]
        parts.append(f"\n## {title}\n\n" + table(["name", "the original", "here", "test"], cells))
    return "".join(parts)


# Example values of fields, for the lines that the page shows.
SAMPLE: dict[str, Any] = {
    "reason": "relay-denied", "stage": "rcpt", "session": "smx3xqp4l-1f", "queue_id": "1M7R9K3ZQ0VXWB2C", "original": None,
    "dsn_id": "1M7R9K5A10VXWB2D", "action": "hold", "via": "socket", "uid": 0, "pid": 4711, "admin": "127.0.0.1",
    "by": "token", "count": 3,
    "peer": "192.0.2.7", "port": 49152, "listener": "198.51.100.1:25", "code": 550, "dsn": "5.7.1", "mechanism": "PLAIN",
    "tls": "TLSv1.3/TLS_AES_256_GCM_SHA384", "size": 4321, "recipients": 1, "relay": "mx.example.net[203.0.113.9]:25",
    "next_hop": "mx:example.net", "delay": 0.412, "delays": "0.01/0/0.2/0.202", "attempt": 1, "due_in": None,
    "status": "deferred", "seconds": 1.5, "commands": 6, "errors": 0, "version": "0.1.0", "workers": 1,
    "listeners": ["198.51.100.1:25"], "data_dir": "/var/lib/pillarbox", "queue": None, "source": "smtp", "user": None,
    "helo": "client.example.org", "from": "me@example.org", "to": "you@example.net", "orig_to": None,
    "message_id": "17@example.org", "filter": "state=deferred", "path": "/api/status", "error": "no shared cipher",
    "reply": "Relaying denied", "state": "deferred", "repairs": "no HELO (1)",
}  # fmt: skip
OF_KIND: dict[str, dict[str, Any]] = {
    "delivered": {"status": "sent", "dsn": "2.0.0", "stage": None, "reply": "250 2.0.0 Ok: queued as 4XYZ"},
    "deferred": {"dsn": "4.2.1", "due_in": 300.0, "stage": "rcpt", "reply": "450 4.2.1 Mailbox busy"},
    "bounced": {"status": "bounced", "dsn": "5.1.1", "stage": "rcpt", "reply": "550 5.1.1 No such user"},
    "expired": {"status": "expired", "dsn": "4.4.1", "stage": "connect", "reply": "451 4.4.1 Connection timed out"},
    "held": {"status": "held", "dsn": "4.3.0", "stage": "lookup", "reply": "451 4.3.0 No handler for this address"},
    "closed": {"reason": "too-many-errors", "code": 421, "error": "too many errors"},
    "tls-failed": {"reason": "tls-failed"},
    "logged-in": {"user": "me@example.org"},
    "login-failed": {"reason": "bad-credentials", "user": "me@example.org"},
    "dsn-queued": {"action": "failed", "to": "me@example.org"},
    "operator": {"admin": None, "by": None, "next_hop": None, "queue_id": None},
    "admin-refused": {"reason": "bad-credentials", "code": 401},
    "queued": {"to": ["you@example.net"]},
    "disconnected": {"error": "QUIT"},
}


def log_page() -> str:
    """Every kind of log line with its fields and an example, every field, every reason word."""
    parts = [
        "# Log lines\n\nGenerated from the tables in `log/` by `make docs`.\n\n"
        "A line with fields has a fixed name (`event` in JSON). In text a line is `TIME LEVEL NAME field=value ...`: values with blanks,\n"
        "quotes or a field's name are in quotes, with `\\xNN` and `\\uNNNN` for control characters; addresses are in angle brackets. In\n"
        "JSON the same fields stand flat beside `timestamp`, `level`, `event` and `logger`. Fields without a value are left out. What a client\n"
        "chooses stands last in a line, and cannot pass for a field or a line of its own. Other lines (faults of the server, of plugins, of the\n"
        "disk) are one sentence, with fields such as `session` or `queue_id` where they apply.\n\n"
        "`log_level` (default `info`) decides which lines are written. Connections have lines at `debug` only: each accepted message and\n"
        "each refusal names its session, client and HELO anyway. An accepted and delivered message costs two lines, together 20 us at most.\n\n"
        "The `contrib/fail2ban` filter reads these lines; `contrib/logrotate` has a recipe for `log_file`. Under systemd the log goes to the\n"
        "journal: `journalctl -u pillarbox -o cat | grep 1M7R9K3ZQ0VXWB2C` shows the life of one message.\n\n"
        "A program that embeds the server gets the same lines as records of `logging`: the fields are attributes of the record, and the\n"
        'message is the text form. `logging.getLogger("pillarbox")` is the parent of all loggers.\n\n## Lines\n\n'
    ]
    rows = []
    examples = []
    for kind in KINDS:
        level = logging.getLevelName(kind.level).lower()
        rows.append(
            [f"`{kind.name}`", level, f"`{kind.logger}`", kind.when, " ".join(f"`{name}`" for name in kind.fields)]
        )
        values = {name: {**SAMPLE, **OF_KIND.get(kind.name, {})}[name] for name in kind.fields}
        examples.append(f"2026-03-01T12:00:00.000000Z {level} {kind.name} {format_fields(values)}")
    parts.append(table(["line", "level", "logger", "when", "fields"], rows))
    parts.append("\n## Examples\n\n```\n" + "\n".join(examples) + "\n```\n\n```json\n")
    queued = {name: {**SAMPLE, **OF_KIND["queued"]}[name] for name in QUEUED.fields}
    head = {"timestamp": "2026-03-01T12:00:00.000000Z", "level": "info", "event": "queued", "logger": QUEUED.logger}
    parts.append(format_json(head | queued).decode() + "\n```\n\n## Fields\n\n")
    parts.append(table(["field", "meaning"], [[f"`{name}`", field.text] for name, field in FIELDS.items()]))
    parts.append(
        "\n## Reason words\n\nThe label `reason` of `pillarbox_refused_total` and `result` of `pillarbox_logins_total` has the same words.\n"
    )
    parts.append(
        'A plugin gives its own word with `Reply(450, "4.7.1", "Later", reason="greylisted")`; metrics count it as `other`.\n\n'
    )
    parts.append(table(["word", "meaning"], [[f"`{word}`", text] for word, text in REASONS.items()]))
    return "".join(parts)


def main() -> None:
    """Writes the pages."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("smtp.md", smtp_page()),
        ("events.md", events_page()),
        ("options.md", options_page()),
        ("queue-tables.md", tables_page()),
        ("log.md", log_page()),
    ):
        (TARGET / name).write_text(text)
        print(f"docs/reference/{name}")
    (TARGET.parent / "coming-from-simplesmtp.md").write_text(simplesmtp_page())
    print("docs/coming-from-simplesmtp.md")


if __name__ == "__main__":
    main()
