"""Which configuration file, data directory and queue a command means that names none; one answer for all commands.

A flag wins over the environment, the environment over the configuration file, the file over the default: as for the server.
Must not load the options: the command line must not wait for what it does not need.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..places import default_data_dir, parse_endpoint

DEFAULT_FILE = "/etc/pillarbox/pillarbox.toml"
ENVIRONMENT = "PILLARBOX_"


@dataclass(frozen=True, slots=True)
class Usual:
    """`queue` is the URL of a queue on PostgreSQL, None for one in `data_dir`; `listen` are the endpoints of the server."""

    data_dir: str
    queue: str | None
    listen: tuple[str, ...]


def find_file(given: str | None, environment: Mapping[str, str]) -> str | None:
    """The file to read: the one that was named, else the usual one where there is one, else none."""
    named = given or environment.get(f"{ENVIRONMENT}CONFIG")
    return named or (DEFAULT_FILE if os.path.exists(DEFAULT_FILE) else None)


def usual(environment: Mapping[str, str] | None = None, *, is_strict: bool = True) -> Usual:
    """What the environment and the configuration file name. OptionError for a file that cannot be read.

    Not strict: such a file counts as none, for programs of users that may not read it.
    """
    environment = os.environ if environment is None else environment
    path = find_file(None, environment)
    found: dict[str, Any] = {}
    try:
        if path is not None:
            with open(path, "rb") as file:
                found = tomllib.load(file)
    except (OSError, ValueError) as error:
        if is_strict:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise OptionError(f"{path}: cannot be read: {why}; `pillarbox config check` says more") from None

    def value(name: str) -> Any:
        return environment.get(ENVIRONMENT + name.upper()) or found.get(name) or None

    folder = environment.get(f"{ENVIRONMENT}DATA_DIR")
    if not folder and isinstance(found.get("data_dir"), str) and path is not None:
        # A relative path in a file is relative to that file.
        folder = os.path.join(os.path.dirname(os.path.abspath(path)), found["data_dir"])
    queue, listen = value("queue"), value("listen") or ()
    listed = listen.split(",") if isinstance(listen, str) else listen
    endpoints = tuple(one.strip() for one in listed if isinstance(one, str) and one.strip())
    if not endpoints and (value("port") or value("address")):
        endpoints = _endpoints(value("address") or "127.0.0.1", value("port") or 25)
    return Usual(folder or default_data_dir(), queue if isinstance(queue, str) else None, endpoints)


def _endpoints(addresses: Any, port: Any) -> tuple[str, ...]:
    listed = addresses.split(",") if isinstance(addresses, str) else addresses
    return tuple(
        str(one) if str(one).startswith("unix:") else (f"[{one}]:{port}" if ":" in str(one) else f"{one}:{port}")
        for one in listed
    )


def usual_folder() -> str:
    """The data directory of a command that names none."""
    return usual().data_dir


def usual_server(otherwise: str) -> str:
    """HOST:PORT where this machine's server takes mail without TLS and log-in, as its configuration says; else `otherwise`."""
    for text in usual(is_strict=False).listen:
        try:
            scheme, host, port = parse_endpoint(text, default_port=25, is_listener=True)
        except ValueError:
            continue
        if scheme == "smtp" and port:
            host = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}.get(host, host)
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return otherwise
