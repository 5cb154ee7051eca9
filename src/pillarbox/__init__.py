"""Pillarbox: a programmable mail server.

`from pillarbox import MailServer, Plugin, Eat, Reply`; see the README for ten lines that serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import events
    from .app import MailServer
    from .client import connect
    from .delivery.answers import Defer, Reject
    from .delivery.handlers import Handler, Item
    from .errors import (
        AddressError,
        CommitInDoubtError,
        DuplicateUidError,
        ExitError,
        ListenError,
        NotRunningError,
        OptionError,
        PillarboxError,
        PluginError,
        StateError,
        StoreError,
        StoreFullError,
        StoreLockedError,
    )
    from .events import Eat, Event, Plugin
    from .option_types import MailServerOptions
    from .server.accounts import Account
    from .smtp.reply import Reply

_ERRORS = (
    "AddressError", "CommitInDoubtError", "DuplicateUidError", "ExitError", "ListenError", "NotRunningError", "OptionError",
    "PillarboxError", "PluginError", "StateError", "StoreError", "StoreFullError", "StoreLockedError",
)  # fmt: skip
_PLACES = {
    "Account": "server.accounts",
    "Defer": "delivery.answers",
    "Eat": "events.plugin",
    "Event": "events.catalogue",
    "Handler": "delivery.handlers",
    "Item": "delivery.handlers",
    "MailServer": "app",
    "MailServerOptions": "option_types",
    "Plugin": "events.plugin",
    "Reject": "delivery.answers",
    "Reply": "smtp.reply",
    "connect": "client",
    **dict.fromkeys(_ERRORS, "errors"),
}

__all__ = [
    "Account",
    "AddressError",
    "CommitInDoubtError",
    "Defer",
    "DuplicateUidError",
    "Eat",
    "Event",
    "ExitError",
    "Handler",
    "Item",
    "ListenError",
    "MailServer",
    "MailServerOptions",
    "NotRunningError",
    "OptionError",
    "PillarboxError",
    "Plugin",
    "PluginError",
    "Reject",
    "Reply",
    "StateError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "__version__",
    "connect",
    "events",
]


if not TYPE_CHECKING:
    # A type checker reports a name that does not exist only where there is no such function.

    def __getattr__(name: str) -> Any:
        # Public names load on first use: the command line must not wait for what it does not need.
        from importlib import import_module

        if name in _PLACES:
            return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        if name == "events":
            return import_module(f"{__name__}.events")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
