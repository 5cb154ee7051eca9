"""A queue of a million: how long until the first claim, how much memory, and what claims and acceptance lose by it."""

from __future__ import annotations

import time
from pathlib import Path

from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope
from pillarbox.queue.model import Message
from pillarbox.queue.sqlite import SqliteStore

from .load import Meter, Sample, Sink, accept_run
from .peers import SINK_PORT, Pillarbox

MANY = 1_000_000
FEW = 40_000
_BODY = b"Subject: queued\r\n\r\n" + b"x" * 1000 + b"\r\n"
MEASURE_S = 5.0


def fill(folder: Path, count: int) -> None:
    """Messages of 1 KB for the sink, all due."""
    store = SqliteStore(str(folder))
    store.open()
    now = time.time() - 3600
    for start in range(0, count, 2000):
        batch = []
        for number in range(start, min(count, start + 2000)):
            envelope = Envelope("a@b.test")
            envelope.add(f"u{number}@d{number % 1000}.test")
            message = Message(f"F{number:09}", envelope, Content(_BODY), now + number / 1000, now + 400_000)
            message.recipients[0].next_hop = f"relay:127.0.0.1:{SINK_PORT}"
            batch.append(message)
        store.commit(batch, ())
        store.maintain()
    store.close()


def million_run(folder: Path, sessions: int, count: int) -> Sample:
    """Rates with a million, and in the notes those with few."""
    few = _one(folder / "few", FEW, sessions, count)
    many = _one(folder / "many", MANY, sessions, count)
    sample = Sample(many["relay"], 0.0, many["memory"])
    sample.notes = {
        "relay rate, few queued": few["relay"],
        "accept rate": many["accept"],
        "accept rate, few queued": few["accept"],
        "seconds from start to first delivery": many["start"],
    }
    return sample


def _one(folder: Path, queued: int, sessions: int, count: int) -> dict[str, float]:
    folder.mkdir()
    fill(folder / "data", queued)
    sink = Sink(SINK_PORT, folder)
    sink.start()
    relaying = Pillarbox("pillarbox")
    began = time.monotonic()
    try:
        relaying.start(folder, relay_to=SINK_PORT)
        while sink.count() == 0 and time.monotonic() - began < 60:
            time.sleep(0.02)
        started = time.monotonic() - began
        before, at = sink.count(), time.monotonic()
        time.sleep(MEASURE_S)
        rate = (sink.count() - before) / (time.monotonic() - at)
        memory = Meter(relaying).peak_mb()
    finally:
        relaying.stop()
        sink.stop()
    # Accepted beside the rest of the queue, which waits meanwhile.
    holding = Pillarbox("pillarbox")
    holding.start(folder, relay_to=None)
    try:
        accepted = accept_run(holding, sessions=sessions, count=count, is_reused=False)
    finally:
        holding.stop()
    return {"accept": accepted.rate, "relay": rate, "start": started, "memory": memory}
