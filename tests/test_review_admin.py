"""Faults that a review of configuration, reload and the admin side found, each with its reproduction."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox.admin.htmlview import MOST_INLINE_BYTES
from pillarbox.admin.parsed import html_page, parsed_view
from pillarbox.daemon.config import ConfigError, load
from pillarbox.daemon.loading import check, resolve
from pillarbox.daemon.tomllines import key_lines
from pillarbox.errors import OptionError
from pillarbox.options import parse_options
from tests.conftest import free_port
from tests.daemon import Daemon, pillarbox, wait_until
from tests.test_admin import Client
from tests.test_config import log_events
from tests.test_workers import workers_of

PNG = (
    b"Content-Type: image/png\r\nContent-ID: <a>\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + b"QUJD" * 15_000
    + b"\r\n"
)


def multipart(*parts: bytes) -> bytes:
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts)
    return (
        b"Subject: hostile\r\nMIME-Version: 1.0\r\nContent-Type: multipart/related; boundary=x\r\n\r\n"
        + body
        + b"--x--\r\n"
    )


def html(text: bytes) -> bytes:
    return b"Content-Type: text/html\r\n\r\n" + text + b"\r\n"


def nested(depth: int) -> bytes:
    head = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (number, number) for number in range(depth)
    )
    return b"Subject: hostile\r\nMIME-Version: 1.0\r\n" + head + b"Content-Type: text/plain\r\n\r\nx\r\n"


HOSTILE = {
    "a picture that is named a thousand times": multipart(html(b"cid:a\r\n" * 1500), PNG),
    "a url without its end": multipart(html(b"url(http:\r\n" * 20_000)),
    "spaces before a value": multipart(html((b"src=" + b" " * 900 + b"\r\n") * 200 + b"data:")),
    "a header of semicolons": multipart(
        b"Content-Type: text/plain\r\nContent-Disposition: attachment"
        + b";" * 900
        + (b"\r\n " + b";" * 900) * 30
        + b"\r\n\r\nx"
    ),
    "a thousand boxes in each other": nested(1000),
}


@pytest.mark.alone
def test_looking_at_hostile_mail_holds_up_nobody(tmp_path: Path) -> None:
    """All of it, by three who look at once."""
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)
        for octets in HOSTILE.values():
            with smtplib.SMTP("127.0.0.1", daemon.port) as smtp:
                smtp.sendmail("a@b.test", ["c@d.test"], octets)
        uids = [row["uid"] for row in daemon.queue()]
        answers: list[int] = []

        def look(path: str) -> None:
            for uid in uids:
                answers.append(client.ask("GET", path.format(uid))[0])

        paths = ("/message/{}", "/message/{}/html", "/api/messages/{}/parsed")
        looking = [threading.Thread(target=look, args=(path,)) for path in paths]
        for thread in looking:
            thread.start()
        slowest = 0.0
        while any(thread.is_alive() for thread in looking):
            before = time.monotonic()
            with smtplib.SMTP("127.0.0.1", daemon.port, timeout=20) as smtp:
                smtp.noop()
            slowest = max(slowest, time.monotonic() - before)
        assert slowest < 2.0 and len(answers) == 3 * len(HOSTILE) and set(answers) <= {200, 404}
        peak = daemon.peak_mb()
        assert peak < 200, peak


def test_pictures_within_html_are_bounded() -> None:
    page = html_page(multipart(html(b'<img src="cid:a">' * 1500), PNG))
    assert page is not None and len(page) < 2 * MOST_INLINE_BYTES and "data:image/png" in page
    json.dumps(parsed_view(nested(50)))


def test_silent_connections_do_not_use_up_the_server(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)
        host, port = client.host.split(":")
        silent = []
        for _ in range(600):
            silent.append(socket.create_connection((host, int(port))))
        assert client.ask("GET", "/healthz", token=False)[0] == 200
        assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < 350
        with smtplib.SMTP("127.0.0.1", daemon.port) as smtp:
            assert smtp.noop()[0] == 250
        for sock in silent:
            sock.close()


def test_requests_that_were_a_fault_of_ours(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused", "--max-size=100000", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)
        assert client.ask("GET", "/api/status", Origin="http://[::1")[0] == 403
        assert client.ask("GET", "/queue?state=bogus")[0] == 400
        for body in (b'{"self": 1}', b"[" * 200_000, b'{"reverse_path": "a@b.test"}'):
            assert client.post("/api/messages", body)[0] == 400
        item: dict[str, Any] = {"reverse_path": "a@b.test", "recipients": ["c@d.test"], "content": "Subject: x\n\nx\n"}
        many = [f"r{n}@d.test" for n in range(1001)]
        status, answer = client.post("/api/messages", json.dumps({**item, "recipients": many}).encode())
        assert status == 400 and "max_recipients" in answer["error"]
        status, answer = client.post("/api/messages", json.dumps({**item, "content": "x" * 150_000}).encode())
        assert status == 400 and "max_size_bytes" in answer["error"]
        key = "k" * 64
        first, second = (client.post("/api/messages", json.dumps(item).encode(), Idempotency_Key=key) for _ in range(2))
        assert first[0] == 201 and second == (200, {"uid": first[1]["uid"], "queued": "before"})
        for query in ("is_all=1", "limit=5", "everything=0&limit=99"):
            assert client.post(f"/api/queue/cancel?{query}")[0] == 400
        assert len(daemon.queue()) == 1
        link = client.post("/api/logins")[1]["url"]
        _, headers, _ = client.ask("GET", link.removeprefix(client.url), token=False)
        cookie = f'prefs={{"a":1}}; pillarbox=x; {headers["set-cookie"].partition(";")[0]}; pillarbox=y'
        assert client.ask("GET", headers["location"], token=False, Cookie=cookie)[0] == 200


def test_names_of_the_admin_side(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text("admin_hosts = ['mail.lan', 'other.lan:80']\n")
    with Daemon(tmp_path, f"--config={file}", f"--admin=0.0.0.0:{free_port()}") as daemon:
        client = Client(daemon)
        port = client.host.split(":")[1]
        assert client.url == f"http://127.0.0.1:{port}"
        for host, code in (("mail.lan", 401), (f"mail.lan:{port}", 401), ("other.lan:80", 401), ("other.lan:81", 421)):
            assert client.ask("GET", "/api/status", Host=host)[0] == 200, "the token is enough"
            assert client.ask("GET", "/api/status", token=False, Host=host)[0] == code
        for host in ("localhost:11080", "127.0.0.1:1", "mail.lan:8025"):
            assert client.ask("GET", "/api/status", token=False, Host=host)[0] == 401, (
                "the port of a container is mapped"
            )
        client.host = f"127.0.0.5:{port}"
        assert client.ask("GET", "/api/status")[0] == 200, "the very address that was called"
        assert client.ask("GET", "/api/status", token=False, Host=f"127.0.0.6:{port}")[0] == 421
        assert client.ask("GET", "/healthz", token=False, Host="10.1.2.3:99")[0] == 200


def test_a_worker_that_is_stuck_is_left_out_and_told_of(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--workers=2", f"--admin=127.0.0.1:{free_port()}") as daemon:
        client = Client(daemon)
        stuck = workers_of(daemon.process.pid)[1]
        os.kill(stuck, signal.SIGSTOP)
        try:
            before = time.monotonic()
            status, _, body = client.ask("GET", "/readyz")
            assert status == 503 and b"1 worker does not answer" in body
            assert client.ask("GET", "/metrics")[0] == 200
            assert time.monotonic() - before < 12
        finally:
            os.kill(stuck, signal.SIGCONT)
        wait_until(lambda: client.ask("GET", "/readyz")[0] == 200)


# ----------------------------------------------------------------------------- reload


def certificate_of(port: int, *, implicit: bool) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if implicit:
        with smtplib.SMTP_SSL("127.0.0.1", port, context=context) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            return ssl.DER_cert_to_PEM_cert(client.sock.getpeercert(binary_form=True) or b"")
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.starttls(context=context)
        assert isinstance(client.sock, ssl.SSLSocket)
        return ssl.DER_cert_to_PEM_cert(client.sock.getpeercert(binary_form=True) or b"")


def issue(path: Path, kind: str) -> str:
    """A certificate with its key; what a client sees of it."""
    import trustme

    made = trustme.CA().issue_cert("mx.test", key_type=trustme.KeyType[kind])
    made.private_key_and_cert_chain_pem.write_to_path(str(path))
    return made.cert_chain_pems[0].bytes().decode()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_certificate_with_another_kind_of_key_takes_the_place_of_the_old_one(tmp_path: Path, workers: int) -> None:
    cert, file = tmp_path / "cert.pem", tmp_path / "pillarbox.toml"
    first = issue(cert, "ECDSA")
    plain, secure = free_port(), free_port()
    listen = f"['127.0.0.1:{plain}', 'smtps://127.0.0.1:{secure}']"
    file.write_text(f"tls_cert = 'cert.pem'\nworkers = {workers}\nlog_level = 'info'\n")
    file.write_text(file.read_text() + f"listen = {listen}\n")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pillarbox",
            "serve",
            f"--config={file}",
            f"--data-dir={tmp_path / 'data'}",
            "--admin=off",
            "--no-direct",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None and "ready on" in process.stdout.readline()
        ports = ((plain, False), (secure, True))
        assert all(certificate_of(port, implicit=implicit) == first for port, implicit in ports)
        second = issue(cert, "RSA")
        process.send_signal(signal.SIGHUP)
        for port, implicit in ports:
            wait_until(lambda: all(certificate_of(port, implicit=implicit) == second for _ in range(8)))
        # A worker that is started later has it, too.
        if workers == 2:
            for pid in workers_of(process.pid):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(workers_of(process.pid)) == 2)

            def are_all_new() -> bool:
                try:
                    return all(certificate_of(plain, implicit=False) == second for _ in range(10))
                except OSError:
                    return False

            wait_until(are_all_new)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)
        process.stdout.close()  # type: ignore[union-attr]


def sizes(port: int) -> set[str]:
    found = set()
    for _ in range(16):
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.ehlo()
            found.add(client.esmtp_features["size"])
    return found


def test_a_worker_that_is_started_anew_has_what_was_reloaded(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text("max_size_bytes = 100000\nworkers = 2\nlog_level = 'info'\n")
    with Daemon(tmp_path, f"--config={file}") as daemon:
        file.write_text("max_size_bytes = 200000\nworkers = 2\nlog_level = 'info'\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: sizes(daemon.port) == {"200000"})
        before = workers_of(daemon.process.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(set(workers_of(daemon.process.pid)) - set(before)) == 1)

        def is_right() -> bool:
            try:
                return sizes(daemon.port) == {"200000"}
            except OSError:
                return False

        wait_until(is_right)
        assert sizes(daemon.port) == {"200000"}


@pytest.mark.alone
def test_a_file_that_is_gone_is_a_fault_and_plugins_are_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "made_mail.py").write_text(
        "import pathlib\nclass Counting:\n    def __init__(self, path):\n        p = pathlib.Path(path)\n"
        "        p.write_text((p.read_text() if p.exists() else '') + 'x')\n"
    )
    file = tmp_path / "pillarbox.toml"
    text = (
        f"domains = ['ours.test']\nlog_level = 'info'\npython_path = ['{tmp_path}']\n"
        f"[[plugins]]\nuse = 'made_mail:Counting'\noptions = {{ path = '{tmp_path / 'count'}' }}\n"
    )
    file.write_text(text)
    with Daemon(tmp_path, f"--config={file}") as daemon:
        for number in range(2):
            daemon.process.send_signal(signal.SIGHUP)
            wait_until(lambda: sum(e.startswith("reloaded") for e in log_events(daemon)) == number + 1)
        assert (tmp_path / "count").read_text() == "x"
        file.rename(tmp_path / "elsewhere")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any("not reloaded" in event and "cannot be read" in event for event in log_events(daemon)))
        (tmp_path / "elsewhere").rename(file)
        # A long file is read beside the mail, not in its way.
        file.write_text(
            "domains = [\n" + "".join(f"  'd{n}.test',\n" for n in range(4000)) + "]\n" + text.partition("\n")[2]
        )
        daemon.process.send_signal(signal.SIGHUP)
        slowest = 0.0
        while sum(event.startswith("reloaded") for event in log_events(daemon)) < 3:
            before = time.monotonic()
            with smtplib.SMTP("127.0.0.1", daemon.port, timeout=20) as client:
                client.noop()
            slowest = max(slowest, time.monotonic() - before)
        assert slowest < 1.5, slowest


def test_lines_of_a_long_file_are_found_quickly() -> None:
    text = "domains = [\n" + "".join(f"  'd{n}.test',\n" for n in range(20_000)) + "]\nport = 1\n"
    before = time.monotonic()
    assert key_lines(text)[("port",)] == 20_003
    assert time.monotonic() - before < 3


# ---------------------------------------------------------------------- config check


def faults(file: Path, environment: dict[str, str] | None = None) -> list[str]:
    try:
        check(str(file), environment or {})
    except ConfigError as error:
        return [str(fault).removeprefix(str(file)) for fault in error.faults]
    return []


def test_every_fault_at_once(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text(
        "prot = 1\ntls_cert = 'nowhere.pem'\nauth_file = 'nowhere'\nrelay_auth = 'PLAIN'\n"
        "trust = ['bad1', 'bad2']\nretry_first_s = inf\n"
    )
    found = faults(file)
    text = "\n".join(found)
    assert ":1: option 'prot'" in text and ":2: option 'tls_cert'" in text and ":3: option 'auth_file'" in text
    assert ":5:" in text and "'bad1', 'bad2' are no networks" in text and ":6: option 'retry_first_s'" in text
    file.write_text("tls_key = 'x'\nrelay_auth = 'PLAIN'\nrelay_user = 'u'\ndnsbl_enable = true\ndnsbl = []\n")
    text = "\n".join(faults(file))
    assert "tls_key is given without tls_cert" in text and "belong together" in text and "without a list" in text


def test_a_login_listener_with_an_authenticator_of_the_programs(tmp_path: Path, certificate: dict[str, str]) -> None:
    (tmp_path / "our_login.py").write_text("def check(name, password):\n    return True\n")
    file = tmp_path / "pillarbox.toml"
    file.write_text(
        f"listen = ['submission://127.0.0.1:0']\nauthenticator = 'our_login:check'\npython_path = ['{tmp_path}']\n"
        f"tls_cert = '{certificate['cert']}'\ntls_key = '{certificate['key']}'\n"
    )
    assert faults(file) == []
    assert callable(resolve(load(str(file), {}, {}))["authenticator"])


def test_no_secret_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text("relay = ['smtp://me:HUNTER2@smart.test']\n")
    (found,) = faults(file)
    assert "HUNTER2" not in found and "relay_user and relay_pass_file" in found
    with pytest.raises(OptionError) as caught:
        parse_options({"relay": ["smtp://me:HUNTER2@smart.test"]})
    assert "HUNTER2" not in str(caught.value)
    (tmp_path / "our_broken.py").write_text(
        "class P:\n    def __init__(self, api_key):\n        raise RuntimeError('no network')\n"
    )
    file.write_text(
        f"python_path = ['{tmp_path}']\n[[plugins]]\nuse = 'our_broken:P'\noptions = {{ api_key = 'TOPSECRET' }}\n"
    )
    (found,) = faults(file)
    assert "TOPSECRET" not in found and "api_key" in found and "no network" in found


def test_what_ranks_higher_wins_over_its_rival(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-file\n")
    file = tmp_path / "pillarbox.toml"
    file.write_text("listen = ['127.0.0.1:2600']\nrelay = ['a.test']\nrelay_user = 'u'\nrelay_pass = 'in-clear'\n")
    file.chmod(0o600)
    config = load(str(file), {"PILLARBOX_PORT": "26261", "PILLARBOX_RELAY_PASS_FILE": str(tmp_path / "secret")}, {})
    assert parse_options(config.options).listeners == [("smtp", "127.0.0.1", 26261)]
    assert config.options["relay_pass"] == "from-file"
    config = load(str(file), {}, {"listen": ["127.0.0.1:1"]})
    assert parse_options(config.options).listeners == [("smtp", "127.0.0.1", 1)]
    for text, wanted in (("true", "mail"), ("false", False), ("rcpt", "rcpt")):
        assert parse_options(load(None, {"PILLARBOX_SENDER_VERIFY": text}, {}).options).sender_verify == wanted


def test_config_show_tells_what_serve_does(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text("hostname = 'mx.test'\n")
    assert "127.0.0.1:2525" in pillarbox("config", "show", str(file)).stdout
    file.write_text("plugins = [1]\n")
    done = pillarbox("config", "show", str(file), ok=False)
    assert "Traceback" not in done.stderr
