"""Configuration of the daemon: pillarbox.toml, environment, command line; where each value came from; every fault at once.

Precedence: a flag of the command line, then the environment (PILLARBOX_<OPTION>), then the file, then the default. Must
not build a server: `loading.py` finds the objects that the file names.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..config.faults import fault_text, unknown_text
from ..config.files import exposed_text, open_folder_text
from ..config.secrets import shown_value
from ..config.units import PathText, Seconds
from ..errors import OptionError
from ..options import Options
from ..places import parse_endpoint
from .environment import given_by, unknown_variables
from .tomllines import key_lines

# Options whose default differs from that of an embedded server: the daemon knows all its handlers from its configuration.
DEFAULTS: dict[str, Any] = {"domains_via": "relay"}
# Given by name in the file, found and built by loading.py.
NAMED = ("plugins", "handlers", "authenticator")
# Objects of a program; a file has none.
_NOT_IN_FILES = ("resolver",)
# Options that are files of the operator's: relative to the configuration file.
PATHS = frozenset(("tls_cert", "tls_key", "auth_file", "relay_ca", "relay_pass_file", "data_dir", "log_file"))


def admin_address(text: str | None) -> tuple[str, int] | Literal["off"] | None:
    """None: the usual one. ValueError for what is no address."""
    if text is None or text == "off":
        return text  # type: ignore[return-value]
    scheme, host, port = parse_endpoint(text, default_port=8025)
    if scheme != "smtp" or "://" in text:
        raise ValueError(f"{text!r}: give HOST:PORT, or off")
    return host, port


class DaemonOptions(BaseModel):
    """What only the daemon has, an embedded server has not."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # The bounds belong to the number: pydantic cannot apply them to the word.
    workers: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        1, description="worker processes; auto: one for each processor"
    )
    admin: str | None = Field(
        None,
        description="HOST:PORT of the admin API and dashboard, or off; default: 127.0.0.1:8025, or a free port, with a warning, "
        "if another process has that",
    )
    user: str | None = Field(
        None, description="USER or USER:GROUP to become once the ports are bound, for a start as root"
    )
    grace_s: Seconds = Field(30.0, ge=0, description="how long SIGTERM lets running work go on")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")
    log_file: PathText | None = Field(
        None, description="file for the log in place of stderr; opened anew within a second after it was moved"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="JSON lines or text; auto: text on a terminal, else JSON"
    )

    admin_hosts: list[str] = Field(
        default_factory=list,
        description="additional Host header values that the admin API accepts; https://NAME for a TLS proxy in front of it",
    )

    @field_validator("admin_hosts", "python_path", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, os.PathLike)) else value

    @field_validator("admin_hosts")
    @classmethod
    def _check_admin_hosts(cls, value: list[str]) -> list[str]:
        for text in value:
            name = text.lower().removeprefix("https://")
            if not name or any(c.isspace() or c in "/@?#" for c in name):
                raise ValueError(f"{text!r}: expected NAME, NAME:PORT or https://NAME")
        return value

    @field_validator("admin")
    @classmethod
    def _check_admin(cls, value: str | None) -> str | None:
        admin_address(value)
        return value

    relay_pass_file: PathText | None = Field(None, description="file whose first line is the password for relay_user")
    python_path: list[PathText] = Field(
        default_factory=list, description="folders where plugins and handlers are looked for"
    )


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it came from: "default", "FILE:LINE", "environment NAME" or "--flag"."""

    value: Any
    source: str = "default"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong: where (file and line, or the variable, or the flag), and what, with its mend."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class ConfigError(OptionError):
    """All that is wrong with a configuration; `faults` in the order of the file, `config` what could be read of it."""

    def __init__(self, faults: list[Fault], config: Config) -> None:
        self.faults = sorted(faults, key=_order)
        super().__init__("\n".join(str(fault) for fault in self.faults))
        self.config = config


@dataclass(slots=True)
class Config:
    """What was read and judged. `settings` holds every option by name; `options` what MailServer is given."""

    path: str | None
    settings: dict[str, Setting]
    options: dict[str, Any] = field(default_factory=dict)
    daemon: DaemonOptions = field(default_factory=lambda: DaemonOptions.model_validate({}))
    # What may be meant so, and most likely is not: said at the start and by `config check`, which pass all the same.
    warnings: list[Fault] = field(default_factory=list)

    def entries(self, key: str) -> list[Any]:
        """The `[[plugins]]` or `[[handlers]]` tables as they stand in the file."""
        setting = self.settings.get(key)
        return [entry.table for entry in setting.value] if setting is not None else []

    def place(self, key: str) -> str:
        """Where an option stands, for people; empty where it is a default."""
        setting = self.settings.get(key)
        return "" if setting is None or setting.source == "default" else setting.source


def known_keys() -> dict[str, Any]:
    """Every key that a file may have, with its field (type, default, one line of help)."""
    fields = {name: one for name, one in Options.model_fields.items() if name not in _NOT_IN_FILES}
    return {**fields, **DaemonOptions.model_fields}


def load(path: str | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Reads and judges everything. `flags` by option name, only those that were given. ConfigError with all faults."""
    faults: list[Fault] = []
    settings: dict[str, Setting] = {}
    if path is not None:
        settings.update(_of_file(path, faults))
    known, warnings = known_keys(), list[Fault]()
    for name, value, variable in given_by(environment, known):
        settings[name] = Setting(value, f"environment {variable}")
    for variable, text, is_mistake in unknown_variables(environment, known):
        (faults if is_mistake else warnings).append(Fault(f"environment {variable}", text))
    settings.update({name: Setting(value, _flag(name)) for name, value in flags.items()})
    config = Config(path, settings, warnings=warnings)
    _judge(config, faults)
    _warn_of_files(config)
    if faults:
        raise ConfigError(faults, config)
    return config


def _order(fault: Fault) -> tuple[str, int]:
    name, _, line = fault.place.rpartition(":")
    return (name, int(line)) if line.isdigit() else (fault.place, 0)


# ------------------------------------------------------------------------ sources


def _flag(name: str) -> str:
    known = {"max_size_bytes": "max-size", "domains": "domain", "nameservers": "nameserver", "grace_s": "grace"}
    return "--" + known.get(name, name.removesuffix("_s")).replace("_", "-")


def _of_file(path: str, faults: list[Fault]) -> Iterator[tuple[str, Setting]]:
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
        found = tomllib.loads(text)
    except OSError as error:
        faults.append(Fault(path, f"cannot be read: {error.strerror}; name another with --config"))
        return
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.append(Fault(f"{path}:{line}", "is not UTF-8: save the file as UTF-8"))
        return
    except tomllib.TOMLDecodeError as error:
        faults.append(_toml_fault(path, text, str(error)))
        return
    lines = key_lines(text)
    folder = os.path.dirname(os.path.abspath(path))
    known = known_keys()
    for key, value in found.items():
        place = f"{path}:{lines.get((key,), 1)}"
        if key not in known:
            faults.append(
                Fault(place, unknown_text("option", key, known, "`pillarbox config init -` shows all that there are"))
            )
        elif key in ("plugins", "handlers"):
            yield key, Setting([_Entry(one, *_lines_of(lines, key, n)) for n, one in enumerate(_list(value))], place)
        else:
            secret = exposed_text(path, f"{key!r}") if _has_secret(key, value) else None
            if secret is not None:
                faults.append(Fault(place, secret + ", or keep it in a file of its own" * (key == "relay_pass")))
            yield key, Setting(_relative(key, value, folder), place)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A `[[plugins]]` or `[[handlers]]` table, and its line."""

    table: Any
    line: int
    lines: Mapping[str, int]

    def line_of(self, text: str) -> int:
        """The line of the key that a fault begins with, or of the table."""
        found = re.match(r"key '([^']*)'", text)
        return self.lines.get(found[1], self.line) if found else self.line


def _lines_of(lines: Mapping[tuple[str | int, ...], int], key: str, number: int) -> tuple[int, dict[str, int]]:
    begin = lines.get((key, number), 1)
    return begin, {str(path[2]): line for path, line in lines.items() if path[:2] == (key, number) and len(path) == 3}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _relative(key: str, value: Any, folder: str) -> Any:
    if key in PATHS and isinstance(value, str) and value:
        return os.path.join(folder, value)
    if key == "python_path" and isinstance(value, list):
        return [os.path.join(folder, one) if isinstance(one, str) else one for one in value]
    return value


def _has_secret(key: str, value: Any) -> bool:
    """True for a password, also within the URL of a database."""
    return key == "relay_pass" or (key == "queue" and isinstance(value, str) and _has_password(value))


def _has_password(url: str) -> bool:
    return ":" in url.partition("://")[2].rpartition("@")[0]


# Options that are files with a secret in them.
_SECRET_FILES = {
    "tls_key": "the private key",
    "auth_file": "password hashes",
    "relay_pass_file": "the password",
}


def _warn_of_files(config: Config) -> None:
    """What every user may read and should not, and code that every user may write."""
    paths = {name: config.settings[name].value for name in _SECRET_FILES if name in config.settings}
    if "tls_key" not in paths and "tls_cert" in config.settings:
        paths["tls_cert"] = config.settings["tls_cert"].value
    found = [
        (name, exposed_text(str(path), _SECRET_FILES.get(name, "the private key")))
        for name, path in paths.items()
        if path
    ]
    found += [("python_path", open_folder_text(folder)) for folder in config.daemon.python_path]
    for name, text in found:
        if text is not None:
            config.warnings.append(Fault(config.place(name), text))


def _toml_fault(path: str, text: str, message: str) -> Fault:
    found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)\Z", message)
    line = int(found[1]) if found and found[1] else len(text.splitlines()) or 1
    rows = text.splitlines()
    what = rows[line - 1].strip() if 0 < line <= len(rows) else ""
    key = re.match(r"[\w.\"-]+", what)
    shown = f"key {key[0]}: " if key else ""
    return Fault(
        f"{path}:{line}",
        f'{shown}{message[: found.start()] if found else message}; TOML is wanted, such as hostname = "mail.example.org"',
    )


# ----------------------------------------------------------------------- judging


def _judge(config: Config, faults: list[Fault]) -> None:
    """Types and bounds of every option, by the models that have them."""
    given: dict[str, Any] = {name: setting.value for name, setting in config.settings.items()}
    ours = {name: given.pop(name) for name in list(given) if name in DaemonOptions.model_fields}
    for name in ("plugins", "handlers"):
        given.pop(name, None)
    if given.pop("authenticator", None) is not None:
        # Whatever it is: there is one. loading.py finds it.
        given["authenticator"] = bool
    _outrank(config, given, faults)
    try:
        config.daemon = DaemonOptions(**ours)
    except ValidationError as error:
        faults += _faults_of(config, error)
    _take_secret(config.daemon.relay_pass_file, config, given, faults)
    try:
        config.warnings += [Fault(_place_of(config, text), text) for text in Options(**given).doubts()]
    except ValidationError as error:
        faults += _faults_of(config, error)
    given.pop("authenticator", None)
    config.options = given


def _rank(source: str) -> int:
    """What wins: a flag over the environment over the file over the default."""
    if source.startswith("--"):
        return 3
    return 2 if source.startswith("environment ") else 0 if source == "default" else 1


# Two ways to say the same: of different sources the one that ranks higher counts.
_RIVALS = (("listen", ("address", "port")), ("relay_pass", ("relay_pass_file",)), ("auth_file", ("authenticator",)))


def _outrank(config: Config, given: dict[str, Any], faults: list[Fault]) -> None:
    settings = config.settings
    for one, others in _RIVALS:
        own = _rank(settings[one].source) if one in settings else 0
        theirs = max((_rank(settings[other].source) for other in others if other in settings), default=0)
        if own and theirs and own != theirs:
            for loser in others if own > theirs else (one,):
                given.pop(loser, None)
                settings.pop(loser, None)


def _place_of(config: Config, text: str) -> str:
    """Where a text about several options together belongs: to the first of them that is given."""
    named = [name for name in re.findall(r"\w+", text) if name in config.settings]
    return config.place(named[0]) if named else ""


def _faults_of(config: Config, error: ValidationError) -> list[Fault]:
    found: dict[str, Fault] = {}
    for one in error.errors():
        path = one["loc"]
        key = str(path[0]) if path else ""
        if not key:
            for words in str(one["msg"]).removeprefix("Value error, ").splitlines():
                found[words] = Fault(_place_of(config, words), words)
            continue
        # Of the alternatives of a union one line is enough.
        setting = config.settings.get(key)
        shown = one["input"] if setting is None else setting.value
        text = fault_text(one, known_keys()[key], shown)
        found.setdefault(key, Fault(config.place(key), text))
    return list(found.values())


def _take_secret(path: str | None, config: Config, given: dict[str, Any], faults: list[Fault]) -> None:
    if path is None:
        return
    place = config.place("relay_pass_file")
    if "relay_pass" in given:
        faults.append(Fault(place, "'relay_pass' and 'relay_pass_file' are both given: one of them decides"))
        return
    # Whatever is wrong with the file: what belongs to a password is judged as if there were one.
    given["relay_pass"] = "unreadable"
    try:
        with open(path, encoding="utf-8") as file:
            given["relay_pass"] = secret = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(place, f"option 'relay_pass_file': cannot read {path}: {error}"))
        return
    if not secret:
        faults.append(Fault(place, f"option 'relay_pass_file': the first line of {path} is empty"))


# ------------------------------------------------------------------------- showing


def template() -> str:
    """A commented file with every option, its help and its default."""
    lines = [
        "# pillarbox.toml: every option with its default. Take the # away from what you change; `pillarbox config check`",
        "# says what is wrong, `pillarbox config show` what is in force and where it came from.",
        "",
    ]
    for name, info in known_keys().items():
        if name in ("plugins", "handlers", "options", "control", "relay_pass"):
            continue
        value = DEFAULTS.get(name, info.get_default(call_default_factory=True))
        is_example = name in _EXAMPLES and (value is None or name in _OF_THE_MACHINE)
        lines.append(
            f"# {info.description}{'; an example, there is no default:' if is_example and value is None else ''}"
        )
        lines += [f"#{name} = {_as_toml(_EXAMPLES[name] if is_example else value)}", ""]
    lines += [
        "# Your own code: module:object, or the name of an installed entry point `pillarbox.plugins`; in this order.",
        "#[[plugins]]",
        '#use = "greylist:Greylist"',
        '#name = "greylist"',
        "#options = { delay_s = 300 }",
        "",
        "# Recipients that go to your own function, from the queue.",
        "#[[handlers]]",
        "#match = '^orders@'",
        '#use = "shop.mail:take_order"',
        "#in_thread = true",
        "",
        "# Or by HTTP, signed, and tried again from the queue.",
        "#[[handlers]]",
        "#match = '@app\\.example$'",
        '#use = "pillarbox.webhook:Webhook"',
        '#options = { url = "https://app.example/inbound", secret_file = "/etc/pillarbox/webhook-secret" }',
        "",
    ]
    return "\n".join(lines)


# What depends on the machine, and what has no default, is shown by an example.
_OF_THE_MACHINE = ("hostname", "data_dir")
_EXAMPLES: dict[str, Any] = {
    "hostname": "mail.example.org",
    "postmaster": "postmaster@example.org",
    "rate_per_next_hop": "600/m",
    "messages_per_client": "1000/h",
    "recipients_per_client": "5000/h",
    "messages_per_account": "1000/h",
    "data_dir": "/var/lib/pillarbox",
    "tls_cert": "/etc/ssl/mail.pem",
    "tls_key": "/etc/ssl/mail.key",
    "authenticator": "accounts:check",
    "auth_file": "/etc/pillarbox/accounts",
    "queue": "postgresql://pillarbox@db.example.org/mail",
    "delay_notice_s": 14400.0,
    "relay_auth": "PLAIN",
    "relay_user": "us@example.net",
    "relay_tls": "verify",
    "relay_ca": "/etc/pillarbox/ca.pem",
    "time_out": 300.0,
    "admin": "127.0.0.1:8025",
    "user": "pillarbox",
    "relay_pass_file": "/etc/pillarbox/relay-password",
    "log_file": "/var/log/pillarbox/mail.log",
}


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_as_toml(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {_as_toml(one)}' for key, one in value.items()) + " }" if value else "{}"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def shown(config: Config) -> list[tuple[str, Any, str]]:
    """(option, value, where it came from) of every option; None for one that is not set. Secrets are not shown."""
    rows: list[tuple[str, Any, str]] = []
    judged = {**Options(**{**DEFAULTS, **config.options}).model_dump(exclude=set(NAMED)), **config.daemon.model_dump()}
    for name, field_ in known_keys().items():
        setting = config.settings.get(name)
        source = setting.source if setting is not None else "default"
        value = judged.get(name)
        if name in ("plugins", "handlers"):
            value = [one.get("use", "?") if isinstance(one, dict) else "?" for one in config.entries(name)]
        elif name == "authenticator":
            value = setting.value if setting is not None else None
        else:
            value = shown_value(field_, value)
            if name == "relay_pass" and value is not None:
                source = config.place("relay_pass_file") or source
        rows.append((name, value, source))
    return rows


def as_text(value: Any) -> str:
    """A value as the file has it; nothing for one that is not set."""
    return "" if value is None else _as_toml(value)
