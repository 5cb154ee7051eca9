"""Pillarbox: a programmable mail server.

`from pillarbox import MailServer, Plugin, Eat, Reply`; see the README for ten lines that serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .app import MailServer
    from .client import connect
    from .delivery.handlers import Defer, Handler, Item, Reject
    from .errors import PillarboxError
    from .events.catalogue import Event
    from .events.plugin import Eat, Plugin
    from .server.accounts import Account
    from .smtp.reply import Reply

__all__ = [
    "Account",
    "Defer",
    "Eat",
    "Event",
    "Handler",
    "Item",
    "MailServer",
    "PillarboxError",
    "Plugin",
    "Reject",
    "Reply",
    "__version__",
    "connect",
]

_PLACES = {
    "Account": "server.accounts",
    "Defer": "delivery.handlers",
    "Eat": "events.plugin",
    "Event": "events.catalogue",
    "Handler": "delivery.handlers",
    "Item": "delivery.handlers",
    "MailServer": "app",
    "PillarboxError": "errors",
    "Plugin": "events.plugin",
    "Reject": "delivery.handlers",
    "Reply": "smtp.reply",
    "connect": "client",
}


def __getattr__(name: str) -> Any:
    # Public names load on first use: the command line must not wait for what it does not need.
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
