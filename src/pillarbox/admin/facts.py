"""What metrics tell beside the counters: the queue's depth and age, room on the disk, the certificate's end. Never raises."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cryptography import x509

from ..app import MailServer
from ..errors import PillarboxError
from ..queue.model import Query


@dataclass(slots=True)
class Facts:
    """One reading. What could not be read is None: the counters are told all the same."""

    live: dict[str, Any]
    status: dict[str, Any] | None = None
    next_hops: list[dict[str, Any]] = field(default_factory=list)
    oldest_s: float | None = None
    disk_free_bytes: int | None = None
    certificate_ends_at: float | None = None


async def read_facts(server: MailServer) -> Facts:
    """Reads them; a database that is unreachable costs no more than its time-out."""
    queue, options = server.queue, server.options
    facts = Facts(await queue.live())
    try:
        facts.status = await queue.status()
        facts.next_hops = await queue.next_hops()
        ages = []
        for state in ("queued", "deferred"):
            ages += [time.time() - view.received_at for view in await queue.search(Query(state=state, limit=1))]
        facts.oldest_s = max([0.0, *ages])
    except (PillarboxError, OSError):
        # Of a queue that was read in part nothing is told: old numbers beside new ones mislead.
        facts.status, facts.next_hops, facts.oldest_s = None, [], None
    await asyncio.to_thread(_read_files, facts, options.data_dir, options.tls_cert)
    return facts


def _read_files(facts: Facts, folder: str, certificate: str | None) -> None:
    with contextlib.suppress(OSError):
        facts.disk_free_bytes = shutil.disk_usage(folder).free
    if certificate:
        with contextlib.suppress(OSError, ValueError):
            facts.certificate_ends_at = _end_of(certificate, os.stat(certificate).st_mtime_ns)


@lru_cache(maxsize=4)
def _end_of(path: str, changed_at: int) -> float:
    """Unix time at which the first certificate of a PEM file ends."""
    with open(path, "rb") as file:
        return x509.load_pem_x509_certificate(file.read()).not_valid_after_utc.timestamp()
