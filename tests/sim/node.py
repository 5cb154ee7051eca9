"""A server in a simulated world, over all its incarnations: started, killed, shut down, by whoever runs the world."""

from __future__ import annotations

import asyncio
import random
import tempfile
from typing import TYPE_CHECKING, Any
from unittest import mock

from pillarbox import MailServer
from pillarbox.errors import OptionError
from pillarbox.parts import Parts

from .loop import Machine, SimLoop
from .store import SimStore

if TYPE_CHECKING:
    from .world import World


class SimClock:
    """See pillarbox.clock.Clock."""

    def __init__(self, loop: SimLoop) -> None:
        self.time = loop.wall
        self.monotonic = loop.time
        self.call_later = loop.call_later


class Node:
    """A server, over all its incarnations."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.address = f"192.0.2.{number + 1}"
        self.name = f"node{number}"
        self.machine: Machine
        self.server: MailServer
        self.store: SimStore
        self.incarnations = 0
        # Since when nothing has been wrong with it; None: it is down, stopped or cut off.
        self.well_since: float | None = None
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """A new incarnation."""
        world = self.world
        self.incarnations += 1
        self.machine = Machine(world.loop, f"{self.name}#{self.incarnations}")
        self.store = store = SimStore(world.disk, self.machine)

        class SimParts(Parts):
            def _make_store(self) -> Any:
                if world.disk.is_shared:
                    self._pulse = store.heart
                self._spool_folder = tempfile.mkdtemp(dir=world.folder)
                return store

        class SimServer(MailServer):
            def _make_parts(self) -> Parts:
                with mock.patch("pillarbox.app.Parts", SimParts):
                    return super()._make_parts()

        async def run() -> None:
            self.server = SimServer(
                clock=SimClock(world.loop), rng=random.Random(f"{world.seed} {self.machine.name}"),
                listen=[f"{self.address}:25"], resolver=world.resolver, data_dir=world.folder, **world.options,
            )  # fmt: skip
            self._count_turns()
            await self.server.start()
            self.well_since = world.loop.now
            world.tell(f"{self.machine.name} is ready")

        self._starting = world.loop.create_task(run(), context=self.machine.context)
        self._starting.add_done_callback(self._started)

    def _count_turns(self) -> None:
        """Each message that may go to a next hop with a rate is told of when it begins."""
        lanes, world, real = self.server._parts.lanes, self.world, self.server._parts.lanes.turn

        def turn(key: str, waiting: int) -> float:
            pause_s = real(key, waiting)
            if pause_s <= 0.0:
                world.turns.setdefault(key, []).append(world.loop.now)
            return pause_s

        lanes.turn = turn  # type: ignore[method-assign]

    def _started(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None or self.machine.is_dead:
            return
        if isinstance(task.exception(), OptionError):
            # No restart mends it: the world itself is wrong.
            self.world.violate(f"{self.machine.name} could not start: {task.exception()}")
            return
        # What a service manager does.
        self.world.tell(f"{self.machine.name} could not start: {task.exception()}")
        self.crash()
        self.world.loop.call_later(5.0, self.start, context=self.world.net.context)

    def crash(self) -> None:
        """As by kill -9."""
        self.well_since = None
        self.world.net.kill(self.machine)
        self.machine.kill()
        self.world.tell(f"{self.machine.name} is killed")

    @property
    def is_up(self) -> bool:
        """It has started, and lives."""
        return not self.machine.is_dead and self.incarnations > 0

    async def shut_down(self, grace_s: float) -> None:
        """As by SIGTERM; whoever does not end in time is killed."""
        self.well_since = None
        machine = self.machine
        self.world.tell(f"{machine.name} is told to stop")
        if self._starting is not None and not self._starting.done():
            return self.crash()
        task = self.world.loop.create_task(self.server.shutdown(grace_s=grace_s), context=machine.context)
        await asyncio.wait([task], timeout=grace_s + 120.0)
        if not task.done() and not machine.is_dead:
            self.world.violate(f"{machine.name} did not shut down")
        return self.crash() if not machine.is_dead else None
