"""Plugins, handlers and the authenticator that a configuration names: `module:object`, or an installed entry point.

Every fault has the line of the table that it is in. Must not start anything.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from ..config.secrets import hide_options
from ..delivery.handlers import Handler
from ..errors import OptionError
from ..options import parse_options
from ..queue.whole import is_paused
from ..server.accounts import AuthFile
from ..server.tls import server_context
from .config import DEFAULTS, Config, ConfigError, Fault, load
from .privileges import belongs_to_another, find_identity

GROUP = "pillarbox.plugins"
_PLUGIN_KEYS = ("use", "name", "options")
_HANDLER_KEYS = ("match", "use", "options", "concurrency", "time_out_s", "in_thread")


def resolve(config: Config, *, with_plugins: bool = True) -> dict[str, Any]:
    """What MailServer is given: the options, with plugins, handlers and authenticator built. ConfigError with all faults.

    Without plugins where those that run stay: making one may open what it has open already.
    """
    for folder in reversed(config.daemon.python_path):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    faults: list[Fault] = []
    options = {**DEFAULTS, **config.options}
    plugins: dict[str, Any] = {}
    for entry in _entries(config, "plugins") if with_plugins else ():
        try:
            alias, plugin = _plugin(entry.table)
            if alias in plugins:
                raise OptionError(f"the name {alias!r} is taken by another plugin: give it another 'name'")
            plugins[alias] = plugin
        except OptionError as error:
            faults.append(Fault(_place(config, entry.line_of(str(error))), f"plugins: {error}"))
    handlers = []
    for entry in _entries(config, "handlers"):
        wrong = len(faults)
        for part in (_check_handler, _handler):
            try:
                handlers += [made] if (made := part(entry.table)) is not None else []
            except OptionError as error:
                fault = Fault(_place(config, entry.line_of(str(error))), f"handlers: {error}")
                faults += [] if fault in faults[wrong:] else [fault]
    if plugins:
        options["plugins"] = plugins
    if handlers:
        options["handlers"] = handlers
    if "authenticator" in config.settings:
        try:
            options["authenticator"] = _find(config.settings["authenticator"].value)
        except OptionError as error:
            faults.append(Fault(config.place("authenticator"), f"option 'authenticator': {error}"))
    if faults:
        raise ConfigError(faults, config)
    return options


def without_code(config: Config) -> dict[str, Any]:
    """The options without plugins and handlers, and with any authenticator: all that binding needs. Imports nothing."""
    return {**config.options, "authenticator": bool} if "authenticator" in config.settings else dict(config.options)


def check(path: str, environment: Mapping[str, str]) -> list[Fault]:
    """Looks at all that can be found out without starting: options, names, certificates, account files.

    Returns the warnings. ConfigError with all faults.
    """
    faults: list[Fault] = []
    try:
        config = load(path, environment, {})
    except ConfigError as error:
        faults += error.faults
        config = error.config
    wrong = {key for key in config.settings if any(f"'{key}'" in fault.text for fault in faults)}
    options: dict[str, Any] = dict(config.options)
    try:
        options = resolve(config)
    except ConfigError as error:
        faults += error.faults
    if not faults:
        try:
            parse_options(options)
        except OptionError as error:
            faults.append(Fault(config.place("authenticator"), str(error)))
    faults += _look_at_files(config, {name: value for name, value in options.items() if name not in wrong})
    if faults:
        raise ConfigError(faults, config)
    return config.warnings


def _look_at_files(config: Config, options: dict[str, Any]) -> list[Fault]:
    faults: list[Fault] = []

    def given(key: str) -> str | None:
        value = options.get(key)
        return value if isinstance(value, str) and value else None

    looks: tuple[tuple[str, Callable[[str], Any]], ...] = (
        ("tls_cert", lambda path: server_context(path, given("tls_key"))),
        ("auth_file", AuthFile),
        ("relay_ca", lambda path: _readable("relay_ca", path)),
        ("data_dir", _readable_queue),
    )
    if config.daemon.user is not None:
        try:
            find_identity(config.daemon.user)
        except OptionError as error:
            faults.append(Fault(config.place("user"), str(error)))
    for key, look in looks:
        path = given(key)
        try:
            if path is not None:
                look(path)
        except Exception as error:
            faults.append(Fault(config.place(key), str(error)))
    return faults


def _readable_queue(folder: str) -> bool:
    # Root opens nothing in another user's folder: SQLite would even make files there.
    return belongs_to_another(folder) or is_paused(folder)


def _readable(key: str, path: str) -> bool:
    if not os.access(path, os.R_OK):
        raise OptionError(f"option {key!r}: cannot read {path}")
    return True


def _entries(config: Config, key: str) -> Any:
    setting = config.settings.get(key)
    return setting.value if setting is not None else ()


def _place(config: Config, line: int) -> str:
    return f"{config.path}:{line}"


def _plugin(table: Any) -> tuple[str, Any]:
    _check_keys(table, _PLUGIN_KEYS)
    use, options = table["use"], table.get("options", {})
    found = _find(use)
    if not isinstance(options, dict):
        raise OptionError(f"key 'options': invalid value of type {type(options).__name__}: expected a table")
    alias = table.get("name", use.rpartition(":")[2])
    if not isinstance(alias, str) or not alias:
        raise OptionError(f"key 'name': {alias!r} is no name")
    if inspect.isclass(found) or inspect.isroutine(found):
        return alias, _made(use, found, options)
    if options:
        raise OptionError(
            f"key 'options': {use} is an object and takes none: name a class, or a function that makes one"
        )
    return alias, found


def _named(options: dict[str, Any]) -> str:
    return f"the options {', '.join(options)}" if options else "no options"


def _check_handler(table: Any) -> None:
    """OptionError for what is wrong with a handler beside its code, which may be missing here."""
    _check_keys(table, _HANDLER_KEYS)
    if "match" in table:
        Handler(table["match"], print, **{key: table[key] for key in ("concurrency",) if key in table})


def _handler(table: Any) -> Handler:
    _check_keys(table, _HANDLER_KEYS)
    if "match" not in table:
        raise OptionError("key 'match' is missing: give a regular expression")
    more = {key: table[key] for key in ("concurrency", "time_out_s", "in_thread") if key in table}
    callback, options = _find(table["use"]), table.get("options", {})
    if not isinstance(options, dict):
        raise OptionError(f"key 'options': invalid value of type {type(options).__name__}: expected a table")
    if inspect.isclass(callback):
        callback = _made(table["use"], callback, options)
    elif options:
        raise OptionError(f"key 'options': {table['use']} takes none: name a class, which is called with them")
    return Handler(table["match"], callback, **more)


def _made(use: str, kind: Any, options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except Exception as error:
        raise OptionError(
            # Values may be secrets.
            f"key 'use': {use} could not be made with {_named(options)}: {type(error).__name__}: "
            + hide_options(str(error), options)
        ) from None


def _check_keys(table: Any, known: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise OptionError(
            f"invalid entry of type {type(table).__name__}: expected [[plugins]] or [[handlers]], and the keys below"
        )
    for key in table:
        if key not in known:
            raise OptionError(f"key {key!r} is not known: there are {', '.join(known)}")
    if not isinstance(table.get("use"), str):
        raise OptionError("key 'use' is missing: give module:object, or the name of an installed plugin")


def _find(name: Any) -> Any:
    """The object behind `module:object` or an entry point. OptionError says what could not be found, and where."""
    if not isinstance(name, str) or not name:
        raise OptionError(f"{name!r} is no name: give module:object")
    module_name, colon, path = name.partition(":")
    if not colon:
        for point in entry_points(group=GROUP):
            if point.name == name:
                try:
                    return point.load()
                except Exception as error:
                    raise OptionError(
                        f"key 'use': {name!r} is installed, but cannot be imported: {type(error).__name__}: {error}"
                    ) from None
        raise OptionError(f"key 'use': {name!r} is no installed plugin (entry point {GROUP}): give module:object")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise OptionError(
            f"key 'use': cannot import {module_name!r}: {type(error).__name__}: {error}; see python_path"
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise OptionError(f"key 'use': {module_name!r} has no {path!r}")
        found = getattr(found, part)
    return found
