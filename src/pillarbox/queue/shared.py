"""The store of many nodes, for those who must not load its driver: it comes with `pillarbox[postgres]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import OptionError

if TYPE_CHECKING:
    from .postgres import PostgresStore


def open_postgres(url: str, folder: str = "", worker: int = 0, lease_s: float = 30.0) -> PostgresStore:
    """The store, not opened yet; without a folder one that only looks and steers. OptionError without the driver."""
    try:
        from .postgres import PostgresStore
    except ImportError as error:
        raise OptionError(
            f"option 'queue': a queue on PostgreSQL needs its driver ({error}): pip install 'pillarbox[postgres]'"
        ) from None
    return PostgresStore(url, folder, worker, lease_s=lease_s, is_node=bool(folder))
