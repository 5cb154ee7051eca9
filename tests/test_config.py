"""Configuration: every fault with line and key, where values come from, plugins by name, reload."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pillarbox.daemon.config import ConfigError, key_lines, known_keys, load, shown, template
from pillarbox.daemon.loading import check, resolve
from tests.daemon import Daemon, pillarbox, sink, smtp_source, wait_until
from tests.test_workers import log_events, send, workers_of

# (the file, [(line, key, a word of the mend)])
BROKEN: dict[str, tuple[str, list[tuple[int, str, str]]]] = {
    "unknown key": ("# first\nhostnam = 'a.test'\n", [(2, "hostnam", "did you mean 'hostname'")]),
    "far from any key": ("zzzz = 1\n", [(1, "zzzz", "config init")]),
    "two at once": ("prot = 25\n\nmax_session = 1\n", [(1, "prot", "'port'"), (3, "max_session", "'max_sessions'")]),
    "no number": ("max_sessions = 'many'\n", [(1, "max_sessions", "whole number")]),
    "below its bound": ("\n\nmax_recipients = 5\n", [(3, "max_recipients", "100")]),
    "no TOML": ("hostname = mail.test\n", [(1, "hostname", "TOML")]),
    "no TOML, further down": ("port = 25\nlisten = [\n  'x'\nport2 = 1\n", [(4, "port2", "TOML")]),
    "twice": ("port = 25\nport = 26\n", [(2, "port", "overwrite")]),
    "a host that is none": ("hostname = 'no host'\n", [(1, "hostname", "mail.example.org")]),
    "port too high": ("listen = [\n '127.0.0.1:25',\n '127.0.0.1:70000',\n]\n", [(1, "listen", "65535")]),
    "no network": ("trust = ['10.0.0.0/8', 'all']\n", [(1, "trust", "CIDR")]),
    "no such policy": ("relay_tls = 'always'\n", [(1, "relay_tls", "'verify'")]),
    "user without password": ("relay = ['a.test']\nrelay_user = 'u'\n", [(2, "relay_user", "relay_pass")]),
    "no such secret": (
        "relay = ['a.test']\nrelay_user = 'u'\nrelay_pass_file = 'nowhere'\n",
        [(3, "relay_pass_file", "cannot read")],
    ),
    "a certificate that is not there": ("\ntls_cert = 'nowhere.pem'\n", [(2, "tls_cert", "PEM")]),
    "accounts that are not there": ("auth_file = 'nowhere'\n", [(1, "auth_file", "cannot read")]),
    "no such module": ("[[plugins]]\nuse = 'no.such:Thing'\n", [(2, "use", "python_path")]),
    "no such object": ("[[plugins]]\nuse = 'os:Thing'\n", [(2, "use", "Thing")]),
    "no such entry point": ("port = 26\n[[plugins]]\nuse = 'greylist'\n", [(3, "use", "module:object")]),
    "unknown key of a plugin": ("[[plugins]]\nuse = 'os:sep'\nopts = {}\n", [(3, "opts", "options")]),
    "the second of two plugins": (
        "[[plugins]]\nuse = 'os:sep'\n\n[[plugins]]\nname = 'x'\n",
        [(4, "use", "missing")],
    ),
    "a pattern that is none": ("[[handlers]]\nmatch = '('\nuse = 'os:getcwd'\n", [(1, "match", "regular expression")]),
    "a user that is not there": ("user = 'no-such-user'\n", [(1, "user", "no-such-user")]),
    "no processes": ("workers = 0\n", [(1, "workers", "1")]),
    "a level that is none": ("port = 0\nlog_level = 'loud'\n", [(2, "log_level", "'warning'")]),
    "everything at once": (
        "prot = 1\nhostname = '-'\n[[handlers]]\nmatch = 'x'\n",
        [(1, "prot", "'port'"), (2, "hostname", "domain"), (3, "use", "missing")],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_has_its_line_and_its_key(tmp_path: Path, name: str) -> None:
    text, expected = BROKEN[name]
    file = tmp_path / "pillarbox.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check(str(file), {})
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected), lines
    for line, (number, key, word) in zip(lines, expected, strict=True):
        assert line.startswith(f"{file}:{number}: ")
        assert key in line
        assert word in line


def test_the_command_says_them_all_and_exits_with_1(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text(BROKEN["everything at once"][0])
    done = pillarbox("config", "check", str(file), ok=False)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == f"3 faults in {file}\n"
    refused = pillarbox("serve", f"--config={file}", ok=False)
    assert refused.returncode == 2
    assert f"pillarbox: {file}:1: option 'prot' is not known" in refused.stderr
    file.write_text("port = 0\n")
    assert "no faults" in pillarbox("config", "check", str(file)).stdout
    missing = pillarbox("config", "check", str(tmp_path / "none.toml"), ok=False)
    assert missing.returncode == 1
    assert "cannot be read: No such file" in missing.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\n", {("a",): 1}),
        ("# x\n\na = 1 # y\nb = 2\n", {("a",): 3, ("b",): 4}),
        ('a = """\nb = 2\n"""\nb = 3\n', {("a",): 1, ("b",): 4}),
        ("a = [\n  1,\n  # no\n  2,\n]\nb = { c = 1 }\n", {("a",): 1, ("a", 0): 1, ("a", 1): 1, ("b",): 6}),
        (
            "[[p]]\nx = 1\n\n# y\n[[p]]\nx = 2\n[t]\nz = 1",
            {("p",): 1, ("p", 0): 1, ("p", 1): 5, ("t",): 7, ("p", 0, "x"): 2, ("p", 1, "x"): 6, ("t", "z"): 8},
        ),
        (
            "a = 'x' # [\nb = \"\\\"[\"\nc = [[1], '''\n]''']\nd = 1\n",
            {("a",): 1, ("b",): 2, ("c",): 3, ("c", 0): 3, ("c", 1): 3, ("d",): 5},
        ),
        ('"quoted" = 1\r\na.b = 2\r\n', {("quoted",): 1, ("a",): 2}),
    ],
)
def test_lines_of_keys(text: str, expected: dict[tuple[str | int, ...], int]) -> None:
    assert key_lines(text) == expected


def test_a_flag_wins_over_the_environment_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("opensesame\n")
    file = tmp_path / "pillarbox.toml"
    file.write_text(
        "hostname = 'file.test'\nmax_sessions = 1\nmax_errors = 3\nrelay = ['a.test']\n"
        "relay_user = 'u'\nrelay_pass_file = 'secret'\n"
    )
    environment = {
        "PILLARBOX_HOSTNAME": "env.test",
        "PILLARBOX_MAX_SESSIONS": "2",
        "PILLARBOX_DOMAINS": "a.test, b.test",
    }
    config = load(str(file), environment, {"hostname": "flag.test"})
    rows = {name: (value, source) for name, value, source in shown(config)}
    assert rows["hostname"] == ("flag.test", "--hostname")
    assert rows["max_sessions"] == (2, "environment PILLARBOX_MAX_SESSIONS")
    assert rows["domains"] == (["a.test", "b.test"], "environment PILLARBOX_DOMAINS")
    assert rows["max_errors"] == (3, f"{file}:3")
    assert rows["max_junk"] == (100, "default")
    assert rows["relay_pass"] == ("***", f"{file}:6")
    assert config.options["relay_pass"] == "opensesame"
    assert set(rows) == set(known_keys())
    done = subprocess.run(
        [sys.executable, "-m", "pillarbox", "config", "show", str(file), "--json"],
        capture_output=True, text=True, env={**os.environ, **environment}, check=True,
    )  # fmt: skip
    assert "opensesame" not in done.stdout
    assert {"option": "hostname", "value": "env.test", "from": "environment PILLARBOX_HOSTNAME"} in json.loads(
        done.stdout
    )
    with pytest.raises(ConfigError, match="environment PILLARBOX_MAX_ERRORS: option 'max_errors'"):
        load(str(file), {"PILLARBOX_MAX_ERRORS": "x"}, {})


def test_the_template_is_right_line_by_line(tmp_path: Path) -> None:
    target = tmp_path / "pillarbox.toml"
    pillarbox("config", "init", str(target))
    assert target.read_text() == template()
    assert target.stat().st_mode & 0o777 == 0o600
    assert load(str(target), {}, {}).options == {}
    again = pillarbox("config", "init", str(target), ok=False)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    lines = [
        line[1:] for line in template().split("# Your own code")[0].splitlines() if line[:1] == "#" and line[1:2] != " "
    ]
    assert {line.partition(" = ")[0] for line in lines} == set(known_keys()) - {
        "plugins", "handlers", "options", "control", "relay_pass"
    }  # fmt: skip
    needs = {
        "relay_user": "relay = ['a.test']\nrelay_pass = 'x'\n", "relay_auth": "relay_user = 'u'\nrelay_pass = 'x'\n",
        "relay_pass_file": None, "tls_key": "tls_cert = 'x.pem'\n",
    }  # fmt: skip
    for line in lines:
        before = needs.get(line.partition(" = ")[0], "")
        if before is not None:
            target.write_text(before + line + "\n")
            load(str(target), {}, {})


PLUGIN = """
from pillarbox import Reply

class Keyword:
    def __init__(self, word="no", seen=None):
        self.word = word

    def on_cmd_rcpt(self, server, event):
        if self.word in event.address:
            return Reply(550, "5.7.1", f"{self.word} is not wanted")

async def keep(item):
    with open(item.recipients[0].rpartition("@")[0] + ".eml", "wb") as file:
        file.write(item.read())

made = Keyword("object")
"""


def test_plugins_and_handlers_are_named_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "our_mail_code.py").write_text(PLUGIN)
    file = tmp_path / "pillarbox.toml"
    file.write_text(
        "python_path = ['code']\n[[plugins]]\nuse = 'our_mail_code:Keyword'\nname = 'first'\noptions = { word = 'lottery' }\n"
        "[[plugins]]\nuse = 'our_mail_code:made'\n[[handlers]]\nmatch = '^orders@'\nuse = 'our_mail_code:keep'\n"
    )
    options = resolve(load(str(file), {}, {}))
    assert list(options["plugins"]) == ["first", "made"]
    assert options["plugins"]["first"].word == "lottery"
    assert options["handlers"][0].match == "^orders@"
    wrong = file.read_text().replace("word = 'lottery'", "wrod = 1")
    file.write_text(wrong)
    with pytest.raises(ConfigError, match=r":3: plugins: key 'use': our_mail_code:Keyword could not be made with"):
        check(str(file), {})
    file.write_text(wrong.replace("wrod = 1", "word = 'lottery'"))
    with Daemon(tmp_path, f"--config={file}") as daemon, smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.ehlo()
        client.mail("a@b.test")
        assert client.rcpt("lottery@c.test") == (550, b"5.7.1 lottery is not wanted")
        assert client.rcpt("object@c.test")[0] == 550
        assert client.rcpt("c@d.test")[0] == 250


def _hostnames(port: int) -> str:
    """The name in the certificate that is offered."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.starttls(context=context)
        assert isinstance(client.sock, ssl.SSLSocket)
        return ssl.DER_cert_to_PEM_cert(client.sock.getpeercert(binary_form=True) or b"")


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_under_load(tmp_path: Path, workers: int, certificate: dict[str, str]) -> None:
    """No session dropped, no message lost; what is new is for new sessions; a broken file changes nothing."""
    count = 1500 if os.environ.get("CI") else 4000
    cert, key, file = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "pillarbox.toml"
    cert.write_text(Path(certificate["cert"]).read_text())
    key.write_text(Path(certificate["key"]).read_text())
    base = f"tls_cert = 'cert.pem'\ntls_key = 'key.pem'\nlog_level = 'info'\nworkers = {workers}\n"
    file.write_text(base + "max_size_bytes = 100000\n")
    with Daemon(tmp_path, "--paused", f"--config={file}") as daemon:
        pid = daemon.process.pid
        pids = [pid] if workers == 1 else workers_of(pid)
        old = smtplib.SMTP("127.0.0.1", daemon.port)
        old.ehlo()
        assert old.esmtp_features["size"] == "100000"
        assert old.mail("a@b.test")[0] == 250
        before = _hostnames(daemon.port)
        done: list[Any] = []
        source = threading.Thread(
            target=lambda: done.append(smtp_source(daemon.port, count, "-s", "20", "-l", "4096", "-N"))
        )
        source.start()
        wait_until(lambda: len(daemon.queue("--limit=100")) == 100)

        # A broken file: everything stays.
        file.write_text(base + "max_size_bytes = 'much'\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any("not reloaded" in event for event in log_events(daemon)))
        assert any(f"{file}:5: option 'max_size_bytes'" in event for event in log_events(daemon))

        # A right one, with another certificate.
        import trustme

        trustme.CA().issue_cert("other.test").private_key_and_cert_chain_pem.write_to_path(str(key))
        cert.write_text(key.read_text())
        file.write_text(
            base.replace("info", "warning") + "max_size_bytes = 200000\nmax_recipients = 100\nhostname = 'new.test'\n"
        )
        asked = pillarbox("reload", f"--data-dir={daemon.data}")
        assert f"(pid {pid})" in asked.stdout
        wait_until(lambda: sum(event.startswith("reloaded") for event in log_events(daemon)) == workers)
        assert any("only a restart changes log_level" in event for event in log_events(daemon))
        for _ in range(6):
            with smtplib.SMTP("127.0.0.1", daemon.port) as client:
                client.ehlo()
                assert client.esmtp_features["size"] == "200000"
        assert _hostnames(daemon.port) != before

        # The session of before goes on, by what it was told.
        assert old.rcpt("c@d.test")[0] == 250
        assert old.data(b"Subject: old\r\n\r\nbody\r\n")[0] == 250
        old.quit()
        source.join()
        assert done[0].returncode == 0, done[0].stderr
        addresses = [row["recipients"][0]["address"] for row in daemon.queue()]
        assert len(addresses) == len(set(addresses)) == count + 1
        assert pids == ([pid] if workers == 1 else workers_of(pid))


def test_another_smart_host_after_a_reload(tmp_path: Path) -> None:
    with sink(tmp_path / "one", "-d", "%M.") as (first, one), sink(tmp_path / "two", "-d", "%M.") as (second, two):
        file = tmp_path / "pillarbox.toml"
        file.write_text(f"relay = ['127.0.0.1:{first}']\nlog_level = 'info'\n")
        with Daemon(tmp_path, f"--config={file}") as daemon:
            send(daemon.port, "a@c.test")
            wait_until(lambda: not daemon.queue())
            file.write_text(f"relay = ['127.0.0.1:{second}']\nlog_level = 'info'\ndomains = ['c.test']\n")
            pillarbox("reload", f"--data-dir={daemon.data}")
            wait_until(lambda: any(event.startswith("reloaded") for event in log_events(daemon)))
            for _ in range(3):
                send(daemon.port, "b@c.test")
            wait_until(lambda: not daemon.queue())
        assert (len(list(one.iterdir())), len(list(two.iterdir()))) == (1, 3)


def test_reload_without_a_server_says_so(tmp_path: Path) -> None:
    done = pillarbox("reload", f"--data-dir={tmp_path}", ok=False)
    assert done.returncode == 1
    assert f"no server runs on {tmp_path}" in done.stderr
    with Daemon(tmp_path) as daemon:
        data = daemon.data
        assert int((data / "server.pid").read_text()) == daemon.process.pid
    assert pillarbox("reload", f"--data-dir={data}", ok=False).returncode == 1


def test_a_queues_password_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text('queue = "postgresql://me:hushhush@db.test/mail"\n')
    file.chmod(0o640)
    done = pillarbox("config", "show", str(file), "--json")
    assert "hushhush" not in done.stdout and "db.test/mail" in done.stdout
    file.write_text('queue = "mysql://me:hushhush@db.test/mail"\n')
    done = pillarbox("config", "check", str(file), ok=False)
    assert done.returncode == 1 and "postgresql://" in done.stdout + done.stderr
    assert "hushhush" not in done.stdout + done.stderr
