"""Every documented value of every option is taken from a program, a file, the environment and a flag."""

from __future__ import annotations

import contextlib
import datetime
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le
from typer.testing import CliRunner

from pillarbox.config.faults import _bound_marks, kind_of
from pillarbox.config.units import parse_duration, parse_size
from pillarbox.daemon import serve as serving
from pillarbox.daemon.config import _EXAMPLES, _as_toml, known_keys, load
from pillarbox.errors import OptionError
from pillarbox.options import DAEMON_ALONE, Options, parse_options

ROOT = Path(__file__).resolve().parent.parent.parent
# What only together with others makes sense, by option.
WITH: dict[str, dict[str, Any]] = {
    "tls_key": {"tls_cert": "cert.pem"},
    "relay_auth": {"relay": ["smart.example.net"], "relay_user": "us", "relay_pass": "x"},
    "relay_user": {"relay": ["smart.example.net"], "relay_pass": "x"},
    "relay_pass": {"relay": ["smart.example.net"], "relay_user": "us"},
    "relay_pass_file": {"relay": ["smart.example.net"], "relay_user": "us"},
}
# Values that the documentation or `config init` names, for options whose type does not list them.
TEXTS: dict[str, list[Any]] = {
    "alias": ["pillarbox"],
    "address": ["127.0.0.1", "::1", "localhost", "unix:/run/pillarbox/smtp.sock", ["127.0.0.1", "::1"]],
    "listen": [["0.0.0.0:25"], ["[::1]:25"], ["unix:/run/smtp.sock"], ["127.0.0.1:2525", "127.0.0.1:2526"]],
    "device_networks": [["192.0.2.0/24"], ["192.0.2.7"]],
    "proxy_from": [["192.0.2.0/24"], ["192.0.2.1", "2001:db8::/32"]],
    "hostname": ["mail.example.org", "[192.0.2.1]"],
    "version": ["", "Pillarbox"],
    "tls_cert": ["/etc/ssl/mail.pem"],
    "tls_key": ["/etc/ssl/mail.key"],
    "domains": [["example.org"], [".example.org", "example.net"]],
    "recipients": [["user@example.org"], ["@example.org", "sales-*@example.net"], []],
    "postmaster": ["admin@example.org"],
    "trust": [["127.0.0.0/8", "::1/128"], []],
    "authenticator": ["accounts:check"],
    "auth_file": ["/etc/pillarbox/accounts"],
    "dnsbl": [{"zen.spamhaus.org": 1.0}, {"a.example": 0.5, "b.example": 0.5}],
    "dnsbl_allow": [["192.0.2.0/24"]],
    "sender_verify": [True, False, "mail", "rcpt"],
    "data_dir": ["/var/lib/pillarbox"],
    "queue": ["postgresql://pillarbox@db.example.org/mail"],
    "relay": [["smart.example.net"], ["smart.example.net:587", "smtps://[2001:db8::1]:465"]],
    "relay_user": ["us@example.net"],
    "relay_pass": ["secret"],
    "relay_ca": ["/etc/pillarbox/ca.pem"],
    "rate_per_next_hop": ["10/s", "600/m", "5000/h", "20000/d", "none"],
    "mx_networks": [["127.0.0.0/8"]],
    "nameservers": [["192.0.2.53"], ["[2001:db8::53]:53", "127.0.0.1:5353"]],
    "options": [{"trace": True}, {"trace": False}],
    "admin": ["off", "127.0.0.1:8025"],
    "user": ["pillarbox", "pillarbox:mail"],
    "admin_hosts": [["mail.example.org"]],
    "python_path": [["/etc/pillarbox/code"]],
}
OBJECTS = ("plugins", "handlers", "resolver", "relay_pass_file")
NAMES = [name for name in known_keys() if name not in OBJECTS]
FLAGS = {"max_size_bytes": "max-size", "domains": "domain", "nameservers": "nameserver"}


def literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for one in get_args(annotation) for value in literals(one)]


def values(name: str) -> list[Any]:
    field = known_keys()[name]
    found: list[Any] = [*literals(field.annotation), *TEXTS.get(name, ())]
    if field.annotation is bool:
        found += [True, False]
    bounds = list(_bound_marks(field.annotation, tuple(field.metadata)))
    found += [one.ge for one in bounds if isinstance(one, Ge)] + [one.le for one in bounds if isinstance(one, Le)]
    kind = kind_of(field)
    if "seconds" in kind:
        found += [one for one in (90, 0.5, "30s", "5m", "2h", "1h30m", "4 days", "1500ms") if one]
        found += ["none"] if "none" in kind else []
    if "octets" in kind:
        found += [128 * 1024, "128KiB", "131072"]
    # What `config init` shows, and for all others the default.
    return found or [one for one in (_EXAMPLES.get(name), field.get_default(call_default_factory=True)) if one]


CASES = [(name, value) for name in NAMES for value in values(name)]
IDS = [f"{name}={value}"[:60] for name, value in CASES]


def together(name: str, value: Any) -> dict[str, Any]:
    return {**WITH.get(name, {}), name: value}


@pytest.mark.parametrize(("name", "value"), CASES, ids=IDS)
def test_documented_value_in_a_file_is_taken(tmp_path: Path, name: str, value: Any) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text("".join(f"{key} = {_as_toml(one)}\n" for key, one in together(name, value).items()))
    file.chmod(0o600)
    assert name in load(str(file), {}, {}).settings


@pytest.mark.parametrize(("name", "value"), CASES, ids=IDS)
def test_documented_value_in_the_environment_is_taken(name: str, value: Any) -> None:
    environment = {f"PILLARBOX_{key.upper()}": as_text(one) for key, one in together(name, value).items()}
    config = load(None, environment, {})
    assert name in config.settings
    if name in Options.model_fields and name != "authenticator":
        taken, meant = (getattr(Options(**given), name) for given in (config.options, together(name, value)))
        assert taken == meant or taken == [meant]


def as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={str(one).lower()}" for key, one in value.items())
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(("name", "value"), CASES, ids=IDS)
def test_documented_value_of_a_program_is_taken(name: str, value: Any) -> None:
    if name in DAEMON_ALONE or name == "authenticator":
        return
    parse_options(together(name, value))


@pytest.mark.parametrize(("name", "value"), CASES, ids=IDS)
def test_documented_value_of_a_flag_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    from pillarbox.cli.main import app

    flag = "--" + FLAGS.get(name, name.removesuffix("_s")).replace("_", "-")
    known = {option for command in flags() for option in command}
    if flag not in known or isinstance(value, dict) or (name == "sender_verify" and isinstance(value, str)):
        return
    seen: list[dict[str, Any]] = []

    def run(file: str | None, given: dict[str, Any], make_side: Any) -> None:
        seen.append(given)

    monkeypatch.setattr(serving, "serve", run)
    words: list[str] = []
    for key, one in together(name, value).items():
        one_flag = "--" + FLAGS.get(key, key.removesuffix("_s")).replace("_", "-")
        if one_flag not in known:
            continue
        if isinstance(one, bool):
            words += [one_flag] if one else [f"--no-{one_flag[2:]}"] * (f"--no-{one_flag[2:]}" in known)
        else:
            words += [word for text in (one if isinstance(one, list) else [one]) for word in (one_flag, str(text))]
    result = CliRunner().invoke(app, ["serve", *words])
    assert not result.exit_code, result.output
    given = {**{key: one for key, one in WITH.get(name, {}).items() if key not in seen[0]}, **seen[0]}
    given = {key: one for key, one in given.items() if key != "relay_pass"} if "relay_pass_file" in given else given
    load(None, {}, given)


def flags() -> list[list[str]]:
    import typer.main

    from pillarbox.cli.main import app

    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return [[*one.opts, *one.secondary_opts] for one in command.params]


def test_workers_as_a_word_of_environment_flag_and_file_is_one_for_each_processor(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text('workers = "auto"\n')
    assert load(str(file), {}, {}).daemon.workers == "auto"
    assert load(None, {"PILLARBOX_WORKERS": "auto"}, {}).daemon.workers == "auto"
    assert load(None, {}, {"workers": "auto"}).daemon.workers == "auto"
    assert load(None, {"PILLARBOX_WORKERS": "3"}, {}).daemon.workers == 3
    assert serving.count_workers("auto") >= 1
    for wrong in ("0", "65", "many", "-1"):
        with pytest.raises(OptionError, match=r"invalid number .*expected a whole number from 1 to 64 or 'auto'"):
            load(None, {"PILLARBOX_WORKERS": wrong}, {})


def test_sample_of_the_configuration_guide_has_no_fault_but_files_that_are_missing(tmp_path: Path) -> None:
    guide = (ROOT / "docs/guides/configuration.md").read_text()
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)):
        tomllib.loads(block)
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        (tmp_path / "relay-password").write_text("secret\n")
        (tmp_path / "relay-password").chmod(0o600)
        load(str(file), {}, {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1 day", 86400),
        ("2w", 1209600),
        ("7", 7),
    ],
)
def test_duration_with_a_unit_is_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_options({"retry_first_s": text}).retry_first_s == seconds
    assert parse_options({"expire_s": datetime.timedelta(seconds=seconds)}).expire_s == seconds


@pytest.mark.parametrize(
    ("text", "octets"), [("10MB", 10_000_000), ("64MiB", 64 << 20), ("1.5 GiB", 3 << 29), ("512k", 512 << 10)]
)
def test_size_with_a_unit_is_octets(text: str, octets: int) -> None:
    assert parse_size(text) == octets
    assert parse_options({"max_size_bytes": text}).max_size_bytes == octets


WRONG = [
    ("retry_first_s", "x", "option 'retry_first_s': invalid duration 'x': expected seconds or a value such as 30s, 5m, 2h above 0"),
    ("retry_first_s", True, "invalid duration True"),
    ("retry_first_s", "5 parsecs", "invalid duration '5 parsecs'"),
    ("retry_first_s", "-5m", "invalid duration '-5m'"),
    ("retry_first_s", "0s", "invalid duration '0s'"),
    ("retry_first_s", float("inf"), "invalid duration inf"),
    ("delay_notice_s", "soon", "expected seconds or a value such as 30s, 5m, 2h above 0, or none"),
    ("max_size_bytes", "10 elephants", "invalid size '10 elephants': expected octets or a value such as 512kB, 10MB, 64MiB from 1024 on"),
    ("max_size_bytes", 1.5, "invalid size 1.5"),
    ("port", "abc", "option 'port': invalid number 'abc': expected a whole number from 0 to 65535"),
    ("port", -1, "invalid number -1: expected a whole number from 0 to 65535"),
    ("direct", "perhaps", "option 'direct': invalid value 'perhaps': expected true or false"),
    ("store", "redis", "option 'store': invalid value 'redis': expected 'sqlite', 'memory' or 'null'"),
    ("tls_cert", 3, "option 'tls_cert': invalid path 3: expected the path of a file or folder"),
    ("alias", 3, "option 'alias': invalid value 3: expected text"),
    ("plugins", [object()], "expected a table of plugins by name, such as {\"name\": plugin}"),
    ("relay_pass", 3, "option 'relay_pass': invalid value ***"),
    ("prot", 1, "option 'prot' is not known; did you mean 'port'?"),
    ("workers", 2, "option 'workers' is one of the daemon"),
]  # fmt: skip


IDS = [re.sub(r" at 0x\w+", "", f"{row[0]}={row[1]}")[:40] for row in WRONG]


@pytest.mark.parametrize(("name", "value", "text"), WRONG, ids=IDS)
def test_wrong_value_is_reported_in_our_words(name: str, value: Any, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options({name: value})
    assert text in str(caught.value)
    assert "Input should" not in str(caught.value)


def test_no_option_of_any_wrong_type_is_reported_in_the_words_of_pydantic() -> None:
    for name, field in Options.model_fields.items():
        for wrong in (object(), "\x00", -1, [None], {"a": object()}, b"\xff"):
            with contextlib.suppress(OptionError):
                parse_options({name: wrong})
                continue
            with pytest.raises(OptionError) as caught:
                parse_options({name: wrong})
            assert not re.search(r"Input should|pydantic|unable to parse|Value error", str(caught.value)), name
        assert field.description


def test_every_duration_and_size_takes_units() -> None:
    for name, field in known_keys().items():
        kind = kind_of(field)
        if name.endswith(("_s", "time_out")) and "bytes" not in name:
            assert "seconds" in kind, name
        if "bytes" in name:
            assert "octets" in kind, name
        assert not any(isinstance(one, Gt) and "octets" in kind for one in field.metadata)


def test_path_object_is_taken_wherever_an_option_is_a_path(tmp_path: Path) -> None:
    paths = [name for name, field in Options.model_fields.items() if "path" in kind_of(field)]
    assert {"data_dir", "tls_cert", "tls_key", "auth_file", "relay_ca"} <= set(paths)
    for name in paths:
        options = parse_options(together(name, tmp_path / "x"))
        assert getattr(options, name) == str(tmp_path / "x")


def test_daemon_options_are_those_that_a_program_is_told_about() -> None:
    from pillarbox.daemon.config import DaemonOptions

    assert set(DaemonOptions.model_fields) == DAEMON_ALONE
