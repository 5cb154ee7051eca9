"""What enters the pipeline is a plugin, and its methods are those of events: a misspelt one would never be called."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import PluginError
from .catalogue import CATALOGUE
from .plugin import Plugin

_log = logging.getLogger("pillarbox.plugins")
# How near a name must be to that of an event to be taken for a misspelt one ("cmd_rctp": 0.88).
_NEAR = 0.75
_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")
# The names of classes, as a method could be called after them: message_received for MessageReceived.
_CLASSES = {_CAPITAL.sub("_", cls.__name__).lower(): name for name, cls in CATALOGUE.items()}
_METHODS = ("plugin_register", "plugin_unregister")


def check_shape(alias: str, plugin: Any) -> None:
    """PluginError for a class, and for a value that has no method of a plugin: a number, a text, a function.

    An object of a class of the program's own needs no method.
    """
    if inspect.isclass(plugin):
        raise PluginError(
            f"plugin {alias!r}: invalid plugin {plugin!r}: expected an object, such as {plugin.__name__}()"
        )
    names = _names(plugin)
    for name in names:
        if not callable(getattr(plugin, name)):
            raise PluginError(f"plugin {alias!r}: {name} is not a method")
    if not names and _is_value(plugin) and not any(hasattr(plugin, name) for name in _METHODS):
        raise PluginError(
            f"plugin {alias!r}: invalid plugin {plugin!r}: expected an object with methods on_<event>(server, event)"
        )


def _is_value(plugin: Any) -> bool:
    room = type(plugin).__module__.partition(".")[0]
    return not isinstance(plugin, Plugin) and (room in sys.stdlib_module_names or room == __package__.partition(".")[0])


def check_given(plugins: Mapping[str, Any]) -> None:
    """PluginError for what cannot enter when the server starts; a plugin that registers itself is checked only then."""
    for alias, plugin in plugins.items():
        check_shape(alias, plugin)
        if not hasattr(plugin, "plugin_register"):
            check_methods(alias, plugin, lambda name: False)


def check_methods(alias: str, plugin: Any, is_own: Callable[[str], bool]) -> None:
    """PluginError for a method whose name is nearly that of an event, or that cannot be called with (server, event).

    `is_own`: True for an event that the program has declared. A name that is near to none may be declared later.
    """
    for method in _names(plugin):
        name = method.removeprefix("on_")
        if name not in CATALOGUE and name != "default" and not is_own(name):
            near = nearest(name)
            if near is not None:
                raise PluginError(
                    f"plugin {alias!r}: {method} is not a method for any event; did you mean 'on_{near}'? An event of your "
                    f"own is declared first: server.define_event({name!r}), in plugin_register at the latest"
                )
            _log.info("plugin %r: %s waits for an event %r that is not declared yet", alias, method, name)
        _check_arguments(alias, method, getattr(plugin, method))


def nearest(name: str) -> str | None:
    """The event that a misspelt name was meant to be, or None."""
    if f"cmd_{name}" in CATALOGUE:
        return f"cmd_{name}"
    known = {**_CLASSES, **{one: one for one in CATALOGUE}, "default": "default"}
    found = difflib.get_close_matches(name.lower(), known, 1, _NEAR)
    return known[found[0]] if found else None


def _names(plugin: Any) -> list[str]:
    return [name for name in dir(plugin) if name.startswith("on_")]


def _check_arguments(alias: str, name: str, method: Any) -> None:
    try:
        inspect.signature(method).bind(None, None)
    except TypeError as error:
        raise PluginError(f"plugin {alias!r}: invalid method {name}: expected {name}(server, event): {error}") from None
    except ValueError:
        # A builtin has no signature to look at.
        return
