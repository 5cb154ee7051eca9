"""Pillarbox with one plugin that sees every event and every reply, plain or async: what a plugin costs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from pillarbox.daemon.serve import serve


class Plain:
    """A plain method, called for everything."""

    def on_default(self, server: Any, event: Any) -> None:
        """Nothing."""


class Async:
    """A coroutine that never suspends, called for everything."""

    async def on_default(self, server: Any, event: Any) -> None:
        """Nothing."""


def main(kind: str, port: int, folder: str) -> None:
    """Serves until SIGTERM, as `pillarbox serve --paused` does."""
    logging.captureWarnings(capture=True)
    name = "Plain" if kind == "sync" else "Async"
    config = Path(f"{folder}.toml")
    config.write_text(
        f'python_path = ["{Path(__file__).parent}"]\ngrace_s = 5.0\nmax_sessions = 20000\n'
        f'[[plugins]]\nuse = "plugin_server:{name}"\n'
    )
    serve(
        str(config),
        {"listen": [f"127.0.0.1:{port}"], "hostname": "bench.test", "data_dir": folder, "paused": True},
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
