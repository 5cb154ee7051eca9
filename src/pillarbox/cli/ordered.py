"""Commands in the order in which people need them, not in that of the modules that they come from."""

from __future__ import annotations

from typing import Any

import typer.core

_ORDER = (
    "serve", "dev", "send", "queue", "explain", "top", "events", "admin", "config", "reload", "passwd", "sendmail",
    "list", "show", "hold", "release", "retry", "cancel", "pause", "resume", "export", "import", "sql",
)  # fmt: skip


class Ordered(typer.core.TyperGroup):
    """A group whose help lists its commands in that order; any other comes last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
