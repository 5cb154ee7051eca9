"""Options that contradict each other are refused, such as have no effect are reported, and files say what is wrong with them."""

from __future__ import annotations

import asyncio
import logging
import smtplib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer
from pillarbox.daemon.config import ConfigError
from pillarbox.daemon.loading import check
from pillarbox.errors import OptionError
from pillarbox.options import parse_options
from pillarbox.server.tls import server_context
from pillarbox.testing import SmtpServer
from tests.daemon import pillarbox

FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"retry_first_s": "1h", "retry_longest_s": "1m"}, "retry_first_s (3600) is more than retry_longest_s (60)"),
    ({"retry_longest_s": 60, "expire_s": 10}, "retry_longest_s (60) is more than expire_s (10)"),
    ({"retry_first_s": 60, "expire_s": 10}, "retry_first_s (60) is more than expire_s (10)"),
    ({"delay_notice_s": "2d", "expire_s": "1d"}, "delay_notice_s (172800) is more than expire_s (86400)"),
    ({"maxrelay": 5, "maxrelay_per_next_hop": 50}, "maxrelay_per_next_hop (50) is more than maxrelay (5)"),
]
DOUBTS: list[tuple[dict[str, Any], str]] = [
    ({"relay_user": "u", "relay_pass": "x"}, "relay_user is given without relay"),
    ({"port": 2525, "listen": ["127.0.0.1:26"]}, "port has no effect beside listen"),
    ({"address": "::1", "listen": ["127.0.0.1:26"]}, "address has no effect beside listen"),
    ({"retry_first_s": "5h"}, "retry_first_s (18000) is more than retry_longest_s (14400)"),
    ({"delay_notice_s": "9d"}, "delay_notice_s (777600) is more than expire_s (345600)"),
    ({"auth_file": "accounts"}, "auth_file is given without tls_cert: AUTH is offered under TLS only"),
]
FINE: list[dict[str, Any]] = [
    {"expire_s": 10},
    {"maxrelay": 5},
    {"retry_first_s": 60, "retry_longest_s": 60},
    {"listen": ["127.0.0.1:26"]},
    {"port": 26},
    {"auth_file": "a", "auth_in_clear": True},
]


@pytest.mark.parametrize(("options", "text"), FAULTS)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(options)
    assert text in str(caught.value)
    assert "--" not in str(caught.value)
    file = tmp_path / "p.toml"
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in options.items()))
    file.chmod(0o600)
    done = pillarbox("config", "check", str(file), ok=False)
    assert done.returncode == 1
    assert text in done.stdout
    assert f"{file}:" in done.stdout


@pytest.mark.parametrize(("options", "text"), DOUBTS)
def test_options_without_effect_are_reported(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    assert [one for one in parse_options(options).doubts() if text in one]
    file = tmp_path / "p.toml"
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in options.items()))
    file.chmod(0o600)
    (tmp_path / "accounts").touch(0o600)
    assert [str(one) for one in check(str(file), {}) if text in str(one) and f"{file}:1" in str(one)]


def test_embedded_server_logs_options_without_effect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with MailServer(port=0, store="memory", data_dir=tmp_path / "d", retry_first_s="5h"):
            pass

    with caplog.at_level(logging.WARNING, "pillarbox"):
        asyncio.run(main())
    assert "retry_first_s (18000) is more than retry_longest_s" in caplog.text


@pytest.mark.parametrize("options", FINE)
def test_option_alone_has_no_doubt(options: dict[str, Any]) -> None:
    assert parse_options(options).doubts() == []


def test_certificate_without_its_key_says_what_is_missing(tmp_path: Path) -> None:
    import trustme

    leaf = trustme.CA().issue_cert("mx.test")
    cert, key, locked = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "locked.pem"
    leaf.cert_chain_pems[0].write_to_path(str(cert))
    leaf.private_key_pem.write_to_path(str(key))
    with pytest.raises(OptionError, match=f"option 'tls_cert': no private key in {cert}: give tls_key"):
        server_context(str(cert), None)
    subprocess.run(
        ["openssl", "pkey", "-aes128", "-passout", "pass:secret", "-in", str(key), "-out", str(locked)],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    with pytest.raises(OptionError, match=f"option 'tls_key': the private key in {locked} is encrypted"):
        server_context(str(cert), str(locked))
    server_context(str(cert), str(key))


def test_wrong_pattern_is_reported_beside_code_that_cannot_be_imported(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        'prot = 1\n[[handlers]]\nmatch = "(("\nuse = "no.such.module:f"\n[[handlers]]\nmatch = "^a@"\nuse = "none:f"\n'
    )
    with pytest.raises(ConfigError) as caught:
        check(str(file), {})
    lines = [one.split(": ", 1)[1] for one in str(caught.value).splitlines()]
    assert len(lines) == 4
    assert "'prot' is not known" in lines[0]
    assert "'((' is no regular expression" in "".join(lines)
    assert "cannot import 'no.such.module'" in "".join(lines)


def test_test_server_listens_on_the_port_that_it_is_given() -> None:
    with SmtpServer() as first:
        port = first.port
    with SmtpServer(port=port, address="127.0.0.1") as server:
        assert server.port == port
        smtplib.SMTP("127.0.0.1", port).quit()


def test_reload_of_an_embedded_server_takes_a_default_back(tmp_path: Path) -> None:
    async def main() -> None:
        base: dict[str, Any] = {"listen": ["127.0.0.1:0"], "store": "memory", "data_dir": tmp_path / "d"}
        async with MailServer(**base, max_recipients=200) as server:
            assert server.reload(**base) == []
            assert server.options.max_recipients == 1000
            assert server.reload(**base, alias="x") == ["alias"]

    asyncio.run(main())
