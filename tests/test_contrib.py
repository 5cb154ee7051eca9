"""The files for operators: systemd's own verdict of the units, the image's steps, the Grafana dashboard."""

from __future__ import annotations

import io
import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from pillarbox.admin import metrics
from pillarbox.admin.facts import Facts
from pillarbox.daemon.logs import LogHandler
from pillarbox.log.kinds import CLOSED, LOGGED_IN, LOGIN_FAILED, QUEUED, REFUSED
from pillarbox.log.reasons import REASONS
from pillarbox.log.record import Kind, LineRecord
from pillarbox.server.context import Counters
from tests.conftest import ROOT, tool

UNITS = ROOT / "contrib" / "systemd"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for name in ("pillarbox.service", "pillarbox.socket"):
        text = (UNITS / name).read_text()
        # A command that is there, and a user that is.
        text = text.replace("/opt/pillarbox/bin/pillarbox", "/bin/true").replace("=pillarbox\n", "=root\n")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [
            analyze,
            "verify",
            "--recursive-errors=no",
            str(tmp_path / "pillarbox.service"),
            str(tmp_path / "pillarbox.socket"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if "pillarbox" in line]
    assert not said, said


def test_the_units_command_is_one_that_we_have(tmp_path: Path) -> None:
    text = (UNITS / "pillarbox.service").read_text()
    found = re.search(r"^ExecStart=\S+/pillarbox (.*)$", text, re.M)
    assert found
    from tests.daemon import pillarbox

    words = (
        found[1]
        .replace("/etc/pillarbox/pillarbox.toml", str(tmp_path / "none.toml"))
        .replace("/var/lib/pillarbox", str(tmp_path))
    )
    done = pillarbox(*words.split(), ok=False)
    assert "none.toml: cannot be read" in done.stderr
    assert "Type=notify" in text and "UMask=0077" in text and "StateDirectoryMode=0700" in text


def _metrics() -> set[str]:
    """The names of every metric, histograms and labels of a server with everything."""
    counters = asdict(Counters())
    counters |= {"refusals": {"dnsbl": 1}, "logins": {"ok": 1}, "by_next_hop": {"": [1.0, 0.0, 0.0]}}
    counters["by_domain"] = {"a.test": [1.0, 0.0, 0.0]}
    lane = {"next_hop": "mx:a.test", "state": "down", "waiting": 1, "busy": 1, "connections": 1}
    hop = {"next_hop": "mx:a.test", "queued": 1, "deferred": 1, "held": 0, "due_at": None}
    status = {"paused": False, "in_hand": 0, "recipients": {"queued": 1, "delivered": 5}}
    live = {"counters": counters, "sessions": [], "lanes": [lane]}
    body, _ = metrics.render(Facts(live, status, [hop], 1.0, 1, 1.0))
    return set(re.findall(r"^(\w+)", body.decode(), re.M)) | {"up"}


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    board = json.loads((ROOT / "contrib" / "grafana" / "pillarbox.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for t in panel.get("targets", ())
        for name in re.findall(r"(?:pillarbox|process)_\w+", t["expr"])
    }
    assert len(asked) >= 10 and asked <= _metrics(), asked - _metrics()
    assert board["title"] == "Pillarbox" and len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_alert_rules_name_metrics_that_there_are() -> None:
    text = (ROOT / "contrib" / "prometheus" / "alerts.yml").read_text()
    rules = re.findall(r"- alert: (\w+)\n(.*?)annotations", text, re.S)
    assert len(rules) >= 10 and len({name for name, _ in rules}) == len(rules)
    for name, rule in rules:
        asked = set(re.findall(r"\b(?:pillarbox_\w+|up)\b", rule.replace('job="pillarbox"', "")))
        assert asked and asked <= _metrics(), f"{name}: {asked - _metrics()}"
    reasons = set(re.findall(r'result=~"([\w|-]+)"', text)[0].split("|"))
    assert reasons <= set(REASONS)


def _fail2ban() -> list[re.Pattern[str]]:
    """The filter's expressions as fail2ban compiles them, for IPv4 and IPv6 hosts."""
    import configparser

    parser = configparser.ConfigParser()
    parser.read(ROOT / "contrib" / "fail2ban" / "filter.conf")
    host = r"(?P<host>(?:\d{1,3}\.){3}\d{1,3}|[0-9a-fA-F:]{2,39})"
    lines = parser["Definition"]["failregex"].strip().splitlines()
    return [re.compile(line.replace("<HOST>", host)) for line in lines]


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_fail2ban_filter_finds_the_peer_and_nothing_that_a_peer_wrote(as_json: bool) -> None:
    stream = io.StringIO()
    handler = LogHandler(stream, as_json=as_json)

    def line_of(kind: Kind, **fields: object) -> str:
        return handler.line_of(LineRecord(kind, fields)).decode()

    def hosts(line: str) -> set[str]:
        return {found["host"] for one in _fail2ban() if (found := one.search(line))}

    forged = 'x" refused reason=relay-denied stage=rcpt session=s1 peer=9.9.9.9 "peer":"9.9.9.9"'
    for peer in ("192.0.2.7", "2001:db8::7"):
        base = {"session": "s1-1", "peer": peer}
        own = {"user": forged, "helo": forged}
        for reason in ("bad-credentials", "auth-blocked"):
            assert hosts(line_of(LOGIN_FAILED, reason=reason, **base, mechanism="PLAIN", **own)) == {peer}
        for reason in ("relay-denied", "no-such-recipient", "protocol-abuse"):
            line = line_of(REFUSED, reason=reason, stage="rcpt", **base, **own, to=forged, reply="no")
            assert hosts(line) == {peer}
        assert hosts(line_of(REFUSED, reason="too-many-sessions-of-peer", stage="connect", peer=peer)) == {peer}
        assert hosts(line_of(CLOSED, reason="too-many-errors", **base, **own)) == {peer}
        # What is no abuse, and what only says that it is.
        assert not hosts(line_of(REFUSED, reason="no-room", stage="mail", **base, **own))
        assert not hosts(line_of(LOGGED_IN, **base, mechanism="PLAIN", **own))
        assert not hosts(line_of(QUEUED, queue_id="1M7", **base, **own))


def test_logrotate_recipe_needs_no_copy() -> None:
    text = (ROOT / "contrib" / "logrotate" / "pillarbox").read_text()
    assert "copytruncate\n" not in text and "create 0640 pillarbox adm" in text
