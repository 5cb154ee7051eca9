"""Every refusal, limit, log-in result, operator action, DSN and delivery outcome has exactly one line, in text and JSON."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer, Reject, Reply
from pillarbox.daemon.logs import LogHandler
from pillarbox.log.fields import FIELDS
from pillarbox.log.kinds import KINDS
from pillarbox.log.reasons import REASONS
from pillarbox.queue.control import ask
from pillarbox.testing import ScriptedServer
from tests.conftest import Client, run_async, serving, until
from tests.daemon import Daemon, wait_until
from tests.test_admin import Client as AdminClient

_BY_NAME = {kind.name: kind for kind in KINDS}
_TOKEN = re.compile(r'([\w-]+)=((?:,?<(?:"(?:[^"\\]|\\.)*"|[^>"]*)>)+|"(?:[^"\\]|\\.)*"|[^\s"]*)(?: |\Z)')


def parse_text(line: str) -> dict[str, Any]:
    """A text line as a consumer reads it."""
    timestamp, level, event, rest = ([*line.split(" ", 3), "", ""])[:4]
    found: dict[str, Any] = {"timestamp": timestamp, "level": level, "event": event}
    position = 0
    while position < len(rest):
        token = _TOKEN.match(rest, position)
        if token is None:
            return {"timestamp": timestamp, "level": level, "event": f"{event} {rest}"}
        value = token[2]
        if value.startswith("<"):
            value = value.strip("<>")
        found[token[1]] = value.strip('"')
        position = token.end()
    return found


class Log:
    """What the package's loggers write, in one format, parsed."""

    def __init__(self, *, as_json: bool) -> None:
        self._stream = io.StringIO()
        self._as_json = as_json
        self.handler = LogHandler(self._stream, as_json=as_json)

    @property
    def text(self) -> str:
        self.handler.flush()
        return self._stream.getvalue()

    def lines(self, event: str) -> list[dict[str, Any]]:
        parse = json.loads if self._as_json else parse_text
        return [line for line in map(parse, self.text.splitlines()) if line["event"] == event]

    def one(self, event: str, **fields: Any) -> dict[str, Any]:
        """The one line of a kind with these fields; every field of a line is one of its kind, in the order of the table."""
        names = {name.rstrip("_"): str(value) for name, value in fields.items()}
        found = [
            line for line in self.lines(event) if all(str(line.get(name)) == value for name, value in names.items())
        ]
        assert len(found) == 1, f"{event} {names}: {len(found)} lines in\n{self.text}"
        line = found[0]
        own = [name for name in line if name not in ("timestamp", "level", "event", "logger")]
        order = _BY_NAME[event].fields
        assert own == [name for name in order if name in own], f"{event}: {own} is not in the order of {order}"
        assert line["level"] == logging.getLevelName(_BY_NAME[event].level).lower()
        if "reason" in line:
            assert line["reason"] in REASONS
        return line


@pytest.fixture(params=[False, True], ids=["text", "json"])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    found = Log(as_json=request.param)
    logger = logging.getLogger("pillarbox")
    level = logger.level
    logger.addHandler(found.handler)
    logger.setLevel("DEBUG")
    yield found
    logger.removeHandler(found.handler)
    logger.setLevel(level)


async def greeted(server: MailServer, **connect: Any) -> Client:
    client = await Client.connect(server, **connect)
    await client.ask(b"EHLO client.test")
    return client


async def in_transaction(client: Client) -> None:
    await client.ask(b"MAIL FROM:<a@b.test>")
    await client.ask(b"RCPT TO:<c@us.test>")


CONTENT = b"Message-ID: <id17@b.test>\r\nSubject: x\r\n\r\nhello\r\n"
STRANGER: dict[str, Any] = {
    "domains": ["us.test"],
    "trust": ["192.0.2.0/24"],
    "store": "memory",
    "paused": True,
    "relay": "127.0.0.1:9",
    "domains_via": "relay",
}


class _Refusing:
    """Refuses one command, in its own words."""

    def on_cmd_mail(self, server: Any, event: Any) -> Any:
        if event.address == "grey@b.test":
            return Reply(450, "4.7.1", "Come back later", reason="over-limit")
        return Reply(550, "5.7.1", "No mail from you") if event.address == "bad@b.test" else None

    def on_cmd_noop(self, server: Any, event: Any) -> Any:
        raise RuntimeError("a fault of the plugin")

    def on_message(self, server: Any, event: Any) -> Any:
        return Reply(554, "5.7.1", "Spam") if b"spam" in event.content.read() else None


# The commands, the fields of the one `refused` line that they leave, and options of the server.
REFUSALS: dict[str, tuple[list[bytes], dict[str, Any], dict[str, Any]]] = {
    "relaying": (
        [b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@far.test>"],
        {
            "reason": "relay-denied",
            "stage": "rcpt",
            "code": 550,
            "dsn": "5.7.1",
            "from": "a@b.test",
            "to": "c@far.test",
        },
        {},
    ),
    "unknown recipient": (
        [b"MAIL FROM:<>", b"RCPT TO:<nobody@us.test>"],
        {"reason": "no-such-recipient", "stage": "rcpt", "from": "", "to": "nobody@us.test"},
        {"relay": []},
    ),
    "recipients": (
        [b"MAIL FROM:<a@b.test>", *[b"RCPT TO:<c@us.test>"] * 100, b"RCPT TO:<d@us.test>"],
        {"reason": "too-many-recipients", "stage": "rcpt", "to": "d@us.test"},
        {"max_recipients": 100},
    ),
    "utf-8": (
        [b"MAIL FROM:<a@b.test>", "RCPT TO:<ü@us.test>".encode()],
        {"reason": "needs-smtputf8", "stage": "rcpt"},
        {},
    ),
    "size": (
        [b"MAIL FROM:<a@b.test> SIZE=99999999"],
        {"reason": "too-large", "stage": "mail"},
        {"max_size_bytes": 2000},
    ),
    "syntax": ([b"MAIL FROM a@b.test>>"], {"reason": "syntax", "stage": "mail", "code": 501}, {}),
    "sequence": ([b"RCPT TO:<c@us.test>"], {"reason": "sequence", "stage": "rcpt", "code": 503}, {}),
    "unknown command": ([b"FOO"], {"reason": "syntax", "code": 500}, {}),
    "not offered": ([b"STARTTLS"], {"reason": "not-offered", "stage": "starttls", "code": 502}, {}),
    "auth not offered": ([b"AUTH PLAIN"], {"reason": "not-offered", "stage": "auth", "code": 502}, {}),
    "http": ([b"GET / HTTP/1.1"], {"reason": "protocol-abuse", "code": 554}, {}),
    "mail loop": (
        [b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@us.test>", b"DATA", b"Received: x\r\nReceived: y\r\n\r\n.\r\n"[:-2]],
        {"reason": "mail-loop", "stage": "content", "from": "a@b.test"},
        {"max_received": 1},
    ),
    "header": (
        [b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@us.test>", b"DATA", b"X: y\r\n" * 300 + b"\r\n."],
        {"reason": "header-too-large", "stage": "content"},
        {"max_header_bytes": 1024},
    ),
    "bare line feed": (
        [b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@us.test>", b"DATA", b"x\ny\r\n."],
        {"reason": "bad-line-ends", "stage": "content"},
        {},
    ),
    "junk": ([b"NOOP", b"NOOP"], {"reason": "too-many-commands", "stage": "noop", "code": 421}, {"max_junk": 1}),
    "plugin": (
        [b"MAIL FROM:<bad@b.test>"],
        {"reason": "plugin", "stage": "mail", "from": "bad@b.test"},
        {"plugins": {"refusing": _Refusing()}},
    ),
    "plugin with a word": (
        [b"MAIL FROM:<grey@b.test>"],
        {"reason": "over-limit", "stage": "mail", "code": 450},
        {"plugins": {"refusing": _Refusing()}},
    ),
    "plugin that fails": (
        [b"NOOP"],
        {"reason": "plugin-failed", "stage": "noop", "code": 451},
        {"plugins": {"refusing": _Refusing()}},
    ),
    "content": (
        [b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@us.test>", b"DATA", b"Subject: spam\r\n\r\n."],
        {"reason": "content-refused", "stage": "content", "from": "a@b.test", "size": 17},
        {"plugins": {"refusing": _Refusing()}},
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_command_leaves_one_line(name: str, log: Log, tmp_path: Path) -> None:
    commands, fields, options = REFUSALS[name]

    async def main() -> None:
        async with serving(tmp_path, **{**STRANGER, **options}) as server:
            client = await greeted(server)
            for command in commands:
                await client.ask(command)
            line = log.one("refused", **fields)
            assert line["peer"] == "127.0.0.1" and line["helo"] == "client.test" and line["session"].startswith("s")
            assert line["reply"]
            assert len(log.lines("refused")) == 1
            assert server._parts.context.counters.refusals == {fields["reason"]: 1}
            client.close()

    run_async(main)


def test_too_many_errors_leave_a_line_for_each_refusal_and_one_for_the_end(log: Log, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, **STRANGER, max_errors=3) as server:
            client = await greeted(server)
            for _ in range(3):
                await client.ask(b"RCPT TO:<c@d.test>")
            log.one("closed", reason="too-many-errors", peer="127.0.0.1", code=421)
            assert len(log.lines("refused")) == 3
            client.close()
            await until(lambda: log.lines("disconnected"))
            line = log.one("disconnected", errors=3)
            assert line["session"] == log.one("connected")["session"]

    run_async(main)


def test_session_over_the_bound_of_its_address_leaves_one_line(log: Log, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, **STRANGER, max_sessions_per_peer=1) as server:
            first = await greeted(server)
            second = await Client.connect(server, greeted=False)
            assert (await second.reply()).startswith("421")
            log.one("refused", reason="too-many-sessions-of-peer", stage="connect", peer="127.0.0.1", code=421)
            first.close()
            second.close()

    run_async(main)


def test_failed_handshake_leaves_one_line(log: Log, tmp_path: Path, certificate: dict[str, str]) -> None:
    async def main() -> None:
        tls = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with serving(tmp_path, **STRANGER, **tls) as server:
            client = await greeted(server)
            assert (await client.ask(b"STARTTLS")).startswith("220")
            client.send(b"this is no client hello\r\n")
            await until(lambda: log.lines("tls-failed"))
            line = log.one("tls-failed", peer="127.0.0.1")
            assert line["error"] and line["session"]
            client.close()

    run_async(main)


async def _secure(server: MailServer, certificate: dict[str, str]) -> Client:
    client = await greeted(server)
    assert (await client.ask(b"STARTTLS")).startswith("220")
    context = ssl.create_default_context(cafile=certificate["ca"])
    await client.writer.start_tls(context, server_hostname="mx.test")
    await client.ask(b"EHLO client.test")
    return client


def _plain(user: str, password: str) -> bytes:
    return b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode())


def _check(user: str, password: str) -> bool:
    if user == "fault":
        raise RuntimeError("the directory is gone")
    return password == "secret"


class _NoLogin:
    def on_auth(self, server: Any, event: Any) -> Any:
        return Reply(535, "5.7.8", "Not now") if event.username == "off@us.test" else None


def test_log_ins_leave_one_line_each(log: Log, tmp_path: Path, certificate: dict[str, str]) -> None:
    async def main() -> None:
        tls = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        options = {**STRANGER, **tls, "authenticator": _check, "plugins": {"off": _NoLogin()}, "max_errors": 100}
        async with serving(tmp_path, **options) as server:
            server._parts.context.guess_delay_s = 0.0
            client = await _secure(server, certificate)
            for command, reason, user in (
                (_plain("bob@us.test", "wrong"), "bad-credentials", "bob@us.test"),
                (_plain("fault", "x"), "auth-fault", "fault"),
                (_plain("off@us.test", "secret"), "plugin", "off@us.test"),
                (b"AUTH PLAIN !!", "auth-cancelled", None),
            ):
                await client.ask(command)
                line = log.one("login-failed", reason=reason)
                assert line.get("user") == user and line["mechanism"] == "PLAIN" and line["peer"] == "127.0.0.1"
                assert line["tls"].startswith("TLSv1.")
            assert (await client.ask(_plain("bob@us.test", "secret"))).startswith("235")
            line = log.one("logged-in", user="bob@us.test", mechanism="PLAIN", peer="127.0.0.1")
            assert not log.lines("refused")
            # A refused command after a log-in is a refusal again.
            await client.ask(b"MAIL FROM:<ceo@us.test>")
            line = log.one("refused", reason="sender-not-allowed", stage="mail", user="bob@us.test")
            assert line["from"] == "ceo@us.test"
            counters = server._parts.context.counters
            assert counters.logins["ok"] == 1 and counters.logins["bad-credentials"] == 1
            await client.ask(b"RSET")
            assert (await client.transaction(CONTENT, sender=b"bob@us.test", to=b"x@us.test")).startswith("250")
            assert log.one("queued")["user"] == "bob@us.test"
            client.close()

    run_async(main)


def test_blocked_log_in_leaves_one_line(log: Log, tmp_path: Path, certificate: dict[str, str]) -> None:
    async def main() -> None:
        tls = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with serving(tmp_path, **STRANGER, **tls, authenticator=_check, max_errors=1000) as server:
            server._parts.context.guess_delay_s = 0.0
            client = await _secure(server, certificate)
            while not (await client.ask(_plain("bob@us.test", "wrong"))).startswith("454"):
                assert len(log.lines("login-failed")) < 100
            log.one("login-failed", reason="auth-blocked", user="bob@us.test", peer="127.0.0.1")
            client.close()

    run_async(main, timeout_s=120)


@pytest.mark.parametrize("kind", ["auth-required", "tls-required"])
def test_submission_without_log_in_leaves_one_line(
    kind: str, log: Log, tmp_path: Path, certificate: dict[str, str]
) -> None:
    async def main() -> None:
        tls = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        options = {**STRANGER, **tls, "authenticator": _check, "listen": ["submission://127.0.0.1:0"]}
        async with serving(tmp_path, **options) as server:
            client = await (greeted(server) if kind == "tls-required" else _secure(server, certificate))
            assert (await client.ask(b"MAIL FROM:<a@us.test>")).startswith("530")
            log.one("refused", reason=kind, stage="mail", **{"from": "a@us.test"})
            client.close()

    run_async(main)


def test_outcomes_and_dsns_leave_one_line_for_each_recipient(log: Log, tmp_path: Path) -> None:
    """Delivered, deferred and bounced in one transaction; the DSN's lines name both messages."""

    def rcpt(line: str) -> str:
        if "back@" in line:
            return "250 ok"
        return "450 4.2.1 Later" if "later" in line else "550 5.1.1 No such user" if "gone" in line else "250 ok"

    async def main() -> None:
        async with ScriptedServer(RCPT=rcpt) as relay, serving(tmp_path, relay=f"127.0.0.1:{relay.port}") as server:
            client = await greeted(server)
            await client.ask(b"MAIL FROM:<back@b.test>")
            for name in (b"ok", b"later", b"gone"):
                await client.ask(b"RCPT TO:<" + name + b"@d.test> ORCPT=rfc822;first@d.test")
            await client.ask(b"DATA")
            uid = (await client.ask(CONTENT + b".")).split()[2]
            await until(lambda: len(log.lines("delivered")) == 2)
            queued = log.one("queued", source="smtp", queue_id=uid, recipients=3)
            assert (
                queued["message_id"] == "id17@b.test" and queued["from"] == "back@b.test" and int(queued["size"]) > 50
            )
            for event, to, status, dsn in (
                ("delivered", "ok@d.test", "sent", "2.0.0"),
                ("deferred", "later@d.test", "deferred", "4.2.1"),
                ("bounced", "gone@d.test", "bounced", "5.1.1"),
            ):
                line = log.one(event, queue_id=uid, to=to, status=status, attempt=1, orig_to="first@d.test")
                assert line["relay"] == f"127.0.0.1:{relay.port}" and line["dsn"] == dsn
                assert re.fullmatch(r"[\d.e-]+(/[\d.e-]+){3}", line["delays"]) and float(line["delay"]) >= 0
                assert line["reply"] and line["size"] == queued["size"] and line["from"] == "back@b.test"
            assert float(log.one("deferred")["due_in"]) > 1
            dsn_line = log.one("dsn-queued", queue_id=uid, action="failed", to="back@b.test")
            assert log.one("queued", source="dsn", original=uid)["queue_id"] == dsn_line["dsn_id"]
            log.one("delivered", queue_id=dsn_line["dsn_id"], to="back@b.test", **{"from": ""})
            client.close()

    run_async(main)


def test_unreachable_next_hop_and_handlers_leave_one_line_each(log: Log, tmp_path: Path) -> None:
    async def fail(item: Any) -> None:
        raise Reject("The handler says no")

    async def main() -> None:
        async with serving(tmp_path, relay="127.0.0.1:1", retry_first_s=600) as server:
            server.handler("^taken@")(lambda item: None)
            server.handler("^refused@")(fail)
            for name in ("taken", "refused", "far"):
                await server.enqueue(reverse_path="", recipients=[f"{name}@us.test"], content=b"Subject: x\r\n\r\n")
            await until(lambda: log.lines("deferred") and log.lines("bounced") and log.lines("delivered"))
            log.one("delivered", to="taken@us.test", next_hop="handler:^taken@")
            log.one("bounced", to="refused@us.test")
            log.one("deferred", to="far@us.test", stage="connect")
            assert len(log.lines("queued")) == 3 and all(line["source"] == "enqueue" for line in log.lines("queued"))

    run_async(main)


def test_operator_actions_over_the_control_socket_leave_one_line_each(log: Log, tmp_path: Path) -> None:
    import os

    async def main() -> None:
        async with serving(tmp_path, relay="127.0.0.1:1", paused=True) as server:
            uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content=b"Subject: x\r\n\r\n")
            for verb in ("resume", "pause", "hold", "release", "retry", "cancel"):
                request: dict[str, Any] = {"verb": verb}
                if verb in ("hold", "release", "retry", "cancel"):
                    request["query"] = {"uids": [uid]}
                await asyncio.to_thread(ask, str(tmp_path), request)
                line = log.one("operator", action=verb, via="socket", uid=os.getuid(), pid=os.getpid())
                if "query" in request:
                    assert line["queue_id"] == uid and line["count"] in (1, "1")
            await asyncio.to_thread(ask, str(tmp_path), {"verb": "status"})
            assert len(log.lines("operator")) == 6

    run_async(main)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_daemon_logs_start_admin_actions_reload_and_stop(as_json: bool, tmp_path: Path) -> None:
    def lines(event: str) -> list[dict[str, Any]]:
        texts = daemon.log.read_text().splitlines()
        return [one for one in map(json.loads if as_json else parse_text, texts) if one["event"] == event]

    file = tmp_path / "pillarbox.toml"
    file.write_text(f"log_format = '{'json' if as_json else 'text'}'\n")
    with Daemon(tmp_path, f"--config={file}", "--paused", "--relay=127.0.0.1:1", "--admin=127.0.0.1:0") as daemon:
        admin = AdminClient(daemon)
        (started,) = wait_until(lambda: lines("started"))
        assert daemon.address in started["listeners"] and started["data_dir"] == str(daemon.data)
        admin.post("/api/queue/pause?next_hop=relay:x")
        status, found = admin.post(
            "/api/messages", json.dumps({"reverse_path": "", "recipients": ["c@d.test"], "content": "x"}).encode()
        )
        assert status == 201
        uid = found["uid"]
        assert admin.post(f"/api/messages/{uid}/hold")[0] == 200
        assert admin.post("/api/queue/cancel?everything=1")[0] == 200
        link = admin.post("/api/logins")[1]["url"]
        assert admin.ask("GET", link[len(admin.url) :], token=False)[0] == 303
        assert admin.ask("GET", "/api/status", token=False, Authorization="Bearer wrong")[0] == 401
        daemon.process.send_signal(1)
        wait_until(lambda: [line for line in lines("operator") if line["action"] == "reload"])
        by_action = {line["action"]: line for line in lines("operator")}
        assert sorted(line["action"] for line in lines("operator")) == sorted(by_action)
        assert set(by_action) >= {"hold", "cancel", "new-login-link", "log-in", "reload"}
        assert by_action["hold"]["queue_id"] == uid and by_action["hold"]["admin"] == "127.0.0.1"
        assert by_action["cancel"]["count"] in (1, "1") and by_action["cancel"]["via"] == "api"
        assert by_action["log-in"]["via"] == "dashboard" and by_action["reload"]["via"] == "signal"
        (refused,) = lines("admin-refused")
        assert refused["reason"] == "bad-credentials" and refused["admin"] == "127.0.0.1"
        assert len(lines("queued")) == 1
        daemon.stop()
        assert len(lines("stopped")) == 1


# --------------------------------------------------------------------------- forging


FORGERIES = [
    "x peer=9.9.9.9",
    'x" peer=9.9.9.9 reason=relay-denied',
    'x\\" reason=relay-denied session=s1 peer=9.9.9.9',
    "x\r\n2026-01-01T00:00:00.000000Z info refused reason=relay-denied session=s1 peer=9.9.9.9",
    "x\x1b[31m\x9b\u2028\u202e\u2066peer=9.9.9.9",
    "<peer=9.9.9.9>",
    "\ud800peer=9.9.9.9",
]


@pytest.mark.parametrize("text", FORGERIES, ids=range(len(FORGERIES)))
@pytest.mark.parametrize("name", ["helo", "from", "to", "user", "message_id", "reply", "error"])
def test_peer_text_cannot_pass_for_a_field_or_a_line(name: str, text: str, log: Log) -> None:
    (kind,) = [kind for kind in KINDS if kind.name == "refused"]
    kind.write({"reason": "syntax", "stage": "rcpt", "session": "s1-1", "peer": "192.0.2.1", name: text})
    written = log.text
    assert written.count("\n") == 1 and written.endswith("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\u2066\ud800]", written)
    (line,) = log.lines("refused")
    assert line["peer"] == "192.0.2.1" and line["reason"] == "syntax"
    # An unanchored, greedy expression finds the peer, and no other.
    if not log._as_json:
        found = re.search(r"refused .*peer=(\S+)", written)
        assert found is not None and found[1] == "192.0.2.1"


def test_kinds_have_documented_fields_with_peer_text_last() -> None:
    chosen = {"user", "helo", "from", "to", "orig_to", "message_id", "filter", "error", "reply", "path", "repairs"}
    reserved = set(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}
    for kind in KINDS:
        assert all(name in FIELDS for name in kind.fields), kind.name
        assert not reserved & set(kind.fields), kind.name
        places = [name in chosen for name in kind.fields]
        assert places == sorted(places), f"{kind.name}: what a peer chooses comes last"


def test_embedding_program_sees_records_with_fields(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pillarbox")

    async def main() -> None:
        async with serving(tmp_path, **STRANGER) as server:
            client = await greeted(server)
            await client.ask(b"MAIL FROM:<a@b.test>")
            await client.ask(b"RCPT TO:<c@far.test>")
            client.close()

    run_async(main)
    (record,) = [one for one in caplog.records if one.funcName == "refused"]
    assert record.name == "pillarbox.session" and record.levelname == "INFO" and record.args is None
    assert record.__dict__["reason"] == "relay-denied" and record.__dict__["to"] == "c@far.test"
    assert record.getMessage().startswith("refused reason=relay-denied stage=rcpt session=")
    text = logging.Formatter("%(asctime)s %(process)d %(threadName)s %(module)s %(message)s").format(record)
    assert "reason=relay-denied" in text


# --------------------------------------------------------------------------- the handler


def _written(handler: LogHandler, path: Path, text: str) -> str:
    logger = logging.Logger("pillarbox.test")
    logger.addHandler(handler)
    logger.info(text)
    handler.flush()
    return path.read_text()


def test_log_file_is_opened_anew_when_it_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mail.log"
    handler = LogHandler(path=str(path), as_json=False)
    assert "first" in _written(handler, path, "first")
    path.rename(tmp_path / "mail.log.1")
    handler._checked_at = 0.0
    assert "second" in _written(handler, path, "second")
    assert "second" not in (tmp_path / "mail.log.1").read_text()
    handler.close()


def test_log_that_takes_nothing_counts_what_it_lost(tmp_path: Path) -> None:
    import os

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream:
        handler = LogHandler(stream, as_json=False)
        os.close(reader)
        logger = logging.Logger("pillarbox.test")
        logger.addHandler(handler)
        for _ in range(3):
            logger.info("x")
        assert handler.lost == 3
        path = tmp_path / "log"
        handler._fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        logger.info("back")
        text = path.read_text()
        assert "3 lines lost" in text and "back" in text and handler.lost == 0
        os.close(handler._fd)


@pytest.mark.parametrize(
    "action", [lambda h: h.flush(), lambda h: None], ids=["flushed", "at the end of the iteration"]
)
def test_lines_of_one_loop_iteration_are_one_write(
    action: Callable[[LogHandler], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    path = tmp_path / "log"
    writes: list[bytes] = []
    true_write = os.write

    def write(fd: int, octets: bytes) -> int:
        writes.append(bytes(octets))
        return true_write(fd, octets)

    async def main() -> None:
        handler = LogHandler(path=str(path), as_json=True)
        logger = logging.Logger("pillarbox.test")
        logger.addHandler(handler)
        monkeypatch.setattr("pillarbox.daemon.logs.os.write", write)
        for number in range(10):
            logger.info("line %d", number)
        assert not writes
        action(handler)
        await asyncio.sleep(0)
        assert len(writes) == 1 and writes[0].count(b"\n") == 10
        logger.error("now")
        assert len(writes) == 2, "an error is written immediately"
        handler.close()

    waits: Awaitable[None] = main()
    asyncio.run(waits)  # type: ignore[arg-type]
