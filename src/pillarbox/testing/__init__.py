"""What tests of users need: a server with an inbox, a clock that is moved by hand, a peer that says what a script tells it.

`SmtpServer` and the pytest fixtures `smtp_server` and `inbox` are for tests of what sends mail; `ManualClock`,
`ScriptedServer` and `DictResolver` for tests of what is built on MailServer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import ManualClock
    from .resolver import DictResolver
    from .scripted import ScriptedServer
    from .server import SmtpServer, TestInbox

__all__ = ["DictResolver", "ManualClock", "ScriptedServer", "SmtpServer", "TestInbox"]
_PLACES = {
    "DictResolver": "resolver",
    "ManualClock": "clock",
    "ScriptedServer": "scripted",
    "SmtpServer": "server",
    "TestInbox": "server",
}


def __getattr__(name: str) -> Any:
    # On first use: pytest loads this package in every run where Pillarbox is installed.
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
