"""Faults of the queue and of delivery that the simulation finds: many servers, crashes, clocks and full disks."""

from __future__ import annotations

from tests.mutants.model import SIMULATION, fault

FAULTS = (
    fault(
        "a rate for each node",
        "delivery/lanes.py",
        "        if self.slots is not None:\n            return self.slots.take_turn(key, waiting)\n",
        "",
        SIMULATION,
    ),
    fault(
        "an end in doubt is taken for a refusal",
        "delivery/transaction.py",
        "        is_ambiguous=is_ambiguous,\n",
        "        is_ambiguous=False,\n",
        SIMULATION,
    ),
    fault(
        "answer before the commit",
        "queue/commit.py",
        "        self.company.begin(len(batch.accepts))\n",
        "        self.company.begin(len(batch.accepts))\n"
        "        for done in batch.accepts_done:\n            done(None)\n        batch.accepts_done = []\n",
        SIMULATION,
    ),
    fault(
        "dot-stuffing off by one",
        "smtp/framing.py",
        r'piece = piece.replace(b"\n.", b"\n..")',
        r'piece = piece.replace(b"\n.", b"\n..", piece.count(b"\n.") - 1)',
        SIMULATION,
    ),
    fault(
        "lease not renewed",
        "queue/scheduler.py",
        "        if keys:\n            until = self._clock.time() + LEASE_S\n",
        "        if not keys:\n            until = self._clock.time() + LEASE_S\n",
        SIMULATION,
    ),
    fault(
        "one connection too many",
        "delivery/lane.py",
        "limit = 1 if self._back_off.is_on else self._width.now(self._limit)\n",
        "limit = 1 if self._back_off.is_on else self._width.now(self._limit) + 1\n",
        SIMULATION,
    ),
    fault(
        "outcome forgotten when the disk fails",
        "queue/commit.py",
        "                self._again.append(settlement)\n",
        "                del settlement\n",
        SIMULATION,
    ),
    fault(
        "report without its outcome",
        "queue/settling.py",
        "            store.accept(reports)\n",
        "            del reports[:]\n",
        SIMULATION,
    ),
    fault(
        "timer not armed again",
        "queue/scheduler.py",
        "            self._claiming = None\n            self._arm(now + FAULT_PAUSE_S)\n",
        "            self._claiming = None\n",
        SIMULATION,
    ),
)
