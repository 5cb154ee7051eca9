"""A world from one seed: servers, what they share, clients, next hops, DNS; and a plan of what befalls them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pillarbox.dns import Answer, Status
from pillarbox.errors import StoreError
from pillarbox.queue import commit as commit_module
from pillarbox.queue import scheduler as scheduler_module
from pillarbox.queue.model import Action, Query
from pillarbox.server import listener as listener_module
from pillarbox.watchdog import LoopWatchdog

from .loop import Machine, SimLoop
from .net import Listener, Net, Transport, Weather
from .node import Node
from .parties import Mail, Mood, Sink, Source, make_mail
from .store import Disk, SimStore

NODE_LEASE_S = 30.0
# In the real world an hour: so that hours need not be simulated for it.
LEASE_S = 240.0
# A server that was stopped, or cut off, may be so for 5 minutes, and has ended what it was at so long after that.
CUT_OFF_S = 900.0
# From the end of all trouble, everything has to be settled within this.
PATIENCE_S = 4 * 3600.0
RELAY = "203.0.113"
DOMAINS = ["a.test", "b.test", "c.test", "src.test"]


class Jobs:
    """A thread's queue of jobs, without the thread: one job after the other, each takes its time."""

    loop: SimLoop
    rng: random.Random

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._is_armed = False

    def put(self, job: Callable[[], None] | None) -> None:
        """None would end the thread."""
        if job is not None:
            self._jobs.append(job)
            self._arm()

    def _arm(self) -> None:
        if not self._is_armed:
            self._is_armed = True
            is_long = self.rng.random() < 0.01
            self.loop.call_later(self.rng.expovariate(1 / (4.0 if is_long else 0.004)), self._run)

    def _run(self) -> None:
        self._is_armed = False
        self._jobs.popleft()()
        if self._jobs:
            self._arm()


class _NoThread:
    def __init__(self, **options: Any) -> None:
        """Its jobs run without it."""

    def start(self) -> None:
        pass

    def join(self) -> None:
        pass


class Resolver:
    """DNS, with a mood of its own."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self._rng = rng
        self.fails = self.slow = 0.0

    async def resolve(self, name: str, kind: str) -> Answer:
        """See pillarbox.dns.Resolver."""
        chance = self._rng.random()
        await asyncio.sleep(self._rng.uniform(5, 40) if chance < self.slow else 0.01)
        if chance < self.slow + self.fails:
            return Answer(Status.FAILED, reason="SERVFAIL")
        if kind == "MX" and name in DOMAINS:
            number = DOMAINS.index(name)
            hosts = [(10, f"mx{number}.test"), (20, f"mx{(number + 1) % 4}.test")]
            return Answer(Status.FOUND, tuple(hosts[: 1 + number % 2]), 300.0)
        if kind == "A" and name.startswith("mx"):
            return Answer(Status.FOUND, (f"{RELAY}.{int(name[2]) + 1}",), 300.0)
        return Answer(Status.NO_DATA)


class Slow:
    """A plugin that has to wait before it answers."""

    async def on_cmd_rcpt(self, server: Any, event: Any) -> None:
        """Somebody else is asked."""
        await asyncio.sleep(0.2)


class World:
    """See the module's text. `run` gives what was violated; `told` is the trace."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.loop = SimLoop()
        self.told: list[str] = []
        self.violations: list[str] = []
        rng = self.rng = random.Random(f"{seed} plan")
        self.weather = Weather()
        self.net = Net(self.loop, random.Random(f"{seed} net"), lambda machine, host: self.weather)
        self.loop.net = self.net
        self.folder = ""
        is_shared = rng.random() < 0.5
        self.disk = Disk(self.loop, random.Random(f"{seed} disk"), is_shared=is_shared, lease_s=NODE_LEASE_S)
        self.is_direct = rng.random() < 0.5
        self.resolver = Resolver(self.loop, random.Random(f"{seed} dns"))
        self.sinks = [
            Sink(self.loop, random.Random(f"{seed} sink{n}"), f"mx{n}.test", self.tell)
            for n in range(4 if self.is_direct else rng.choice((1, 2)))
        ]
        self.disk.is_at_it = self._is_at_it
        self.most_per_hop = rng.choice((1, 2, 4, 10))
        self.options: dict[str, Any] = self._options()
        self.nodes = [Node(self, n) for n in range(rng.choice((1, 2, 3)) if is_shared else 1)]
        self.mails = [make_mail(rng, n, DOMAINS) for n in range(rng.randrange(2, 14))]
        # What has happened that may leave an attempt's end unknown, or a next hop with connections of two owners.
        self.is_gentle = rng.random() < 0.2
        self.has_reason = False
        # Whoever is held for dead keeps what it has open, and others have its slots, until then.
        self.cut_off_until = 0.0
        self.cancelled: set[str] = set()
        # When messages began, by next hop, where there is a rate.
        self.turns: dict[str, list[float]] = {}
        self.is_paused = False
        self.trouble_s = rng.choice((30.0, 300.0, 1800.0))

    def _is_at_it(self, store: SimStore, lease: tuple[int, int]) -> bool:
        """That node has begun an attempt, and has not heard the end of it."""
        server = next((node.server for node in self.nodes if node.store is store and hasattr(node, "server")), None)
        in_hand = server._parts.scheduler._in_hand.values() if server is not None else ()
        return any(
            work.started_at and work.message.key == lease[0] and any(r.number == lease[1] for r in work.recipients)
            for work in in_hand
        )

    def _options(self) -> dict[str, Any]:
        rng = self.rng
        options: dict[str, Any] = {
            "hostname": "mx.sim.test", "trust": ["198.51.100.0/24"], "control": False,
            "spool_above_bytes": 1 << 30, "max_size_bytes": 1 << 24, "retry_first_s": 30.0, "retry_longest_s": 300.0,
            "expire_s": rng.choice((300.0, 7200.0)), "delay_notice_s": rng.choice((None, 200.0)), "maxrelay": rng.choice((1, 3, 20)),
            "maxrelay_per_next_hop": self.most_per_hop, "mx_tls": "none", "relay_tls": "none",
        }  # fmt: skip
        # One next hop may not have more connections than all.
        options["maxrelay"] = max(options["maxrelay"], self.most_per_hop)
        if self.disk.is_shared:
            options |= {"queue": "postgresql://sim/queue", "node_lease_s": NODE_LEASE_S}
        else:
            options["store"] = "memory"
        if self.is_direct:
            options |= {"direct": True, "mx_networks": [f"{RELAY}.0/24"]}
        else:
            options |= {"relay": [f"{RELAY}.{n + 1}:25" for n in range(len(self.sinks))], "direct": False}
        # By chance of its own: the worlds of before stay what they were, but for this.
        options["rate_per_next_hop"] = random.Random(f"{self.seed} rate").choice((None, None, None, "4/s", "30/m"))
        if rng.random() < 0.3:
            options["plugins"] = {"slow": Slow()}
        return options

    def tell(self, text: str) -> None:
        """Into the trace."""
        self.told.append(f"{self.loop.now - 1000:10.3f}  {text}")

    def violate(self, text: str) -> None:
        """An invariant does not hold."""
        self.tell(f"VIOLATED: {text}")
        if len(self.violations) < 20:
            self.violations.append(text)

    # ------------------------------------------------------------------- running

    def run(self) -> list[str]:
        """From the beginning to where nothing is left to do."""
        self.folder = tempfile.mkdtemp(prefix="pillarbox-sim-")
        try:
            with self._shims():
                self.loop.run_until_complete(self._main())
        except Exception as error:
            self.violate(f"the world ended: {error!r}")
        finally:
            for node in self.nodes:
                if node.incarnations:
                    node.machine.kill()
            shutil.rmtree(self.folder, ignore_errors=True)
        for fault in self.loop.faults:
            self.violate(f"nobody caught {fault}")
        for text in self.disk.violations:
            self.violate(text)
        return self.violations

    @contextlib.contextmanager
    def _shims(self) -> Iterator[None]:
        """What would bring the real world in: clocks, threads, and chance."""
        jobs = type("SimJobs", (Jobs,), {"loop": self.loop, "rng": random.Random(f"{self.seed} jobs")})
        chance = random.Random(f"{self.seed} ids")
        with contextlib.ExitStack() as stack:
            for target, name, value in (
                (time, "time", self.loop.wall),
                (time, "monotonic", self.loop.time),
                (commit_module, "queue", SimpleNamespace(SimpleQueue=jobs)),
                (commit_module, "threading", SimpleNamespace(Thread=_NoThread, Lock=threading.Lock)),
                (random, "SystemRandom", lambda: chance),
                (LoopWatchdog, "start", lambda self: None),
                (scheduler_module, "LEASE_S", LEASE_S),
                (listener_module, "_bound", self._bound),
            ):
                stack.enter_context(mock.patch.object(target, name, value))
            yield

    async def _bound(self, host: str, port: int) -> list[Listener]:
        """The listening sockets of a simulated server."""
        return [Listener(self.net, (host, port))]

    async def _main(self) -> None:
        from . import check

        for number, sink in enumerate(self.sinks):
            self.net.listen(sink, f"{RELAY}.{number + 1}", 25)
        for node in self.nodes:
            node.start()
        watch = self.loop.create_task(check.watch(self))
        events = sorted(self._plan(), key=lambda event: event[0])
        for at, action in events:
            await asyncio.sleep(max(0.0, at + 1000.0 - self.loop.now))
            await action()
        await self._heal()
        await check.settled(self)
        if watch.done():
            watch.result()
        watch.cancel()
        check.at_the_end(self)

    # ---------------------------------------------------------------------- plan

    def _plan(self) -> list[tuple[float, Callable[[], Any]]]:
        rng, end = self.rng, self.trouble_s
        plan: list[tuple[float, Callable[[], Any]]] = []
        waiting = list(self.mails)
        while waiting:
            count = rng.choice((1, 1, 2, 5))
            batch, waiting = waiting[:count], waiting[count:]
            plan.append((rng.uniform(0.5, end), lambda batch=batch: self._send(batch)))
        # A sink that is slow at the start keeps work in hand for long.
        for sink in self.sinks:
            for _ in range(rng.choice((0, 1, 2))):
                mood = self._mood()
                plan.append((rng.uniform(0, end * 0.7), lambda sink=sink, mood=mood: self._set_mood(sink, mood)))
        kinds = [self._dns, self._steer, self._steer, self._restart]
        if not self.is_gentle:
            kinds += [self._bad_weather, self._bad_disk, self._bad_disk, self._crash, self._crash, self._step_clock]
            if self.disk.is_shared:
                kinds += [self._stop, self._cut_off, self._doubt]
        for _ in range(rng.choice((0, 1, 3, 6))):
            plan.append((rng.uniform(0, end), rng.choice(kinds)))
        return plan

    def _mood(self) -> Mood:
        rng = self.rng
        if self.is_gentle:
            return Mood(defers=rng.choice((0, 0.3)), refuses=rng.choice((0, 0.2)), slow=rng.choice((0.0, 0.5)))
        return Mood(
            *(rng.choice((0.0, 0.0, 0.05, 0.3)) for _ in range(3)), slow=rng.choice((0.0, 0.0, 0.1, 0.7)),
            never_answers=rng.choice((0.0, 0.0, 0.05)), forgets_to_say=rng.choice((0.0, 0.0, 0.2)),
        )  # fmt: skip

    async def _set_mood(self, sink: Sink, mood: Mood) -> None:
        self.tell(f"{sink.name}: {mood}")
        sink.mood = mood

    async def _send(self, batch: list[Mail]) -> None:
        up = [node for node in self.nodes if node.is_up]
        if not up:
            return
        node = self.rng.choice(up)
        source = Source(self.loop, random.Random(f"{self.seed} source {batch[0].number}"), batch, self.tell)

        async def connect() -> None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(30):
                    await self.loop.create_connection(lambda: source, node.address, 25)

        self.loop.create_task(connect())

    async def _dns(self) -> None:
        self.tell("DNS has trouble")
        self.resolver.fails, self.resolver.slow = self.rng.choice(((0.5, 0.1), (1.0, 0.0), (0.0, 0.8)))

    async def _bad_weather(self) -> None:
        rng = self.rng
        self.weather = Weather(
            *(rng.choice((0.0, 0.1, 0.4)) for _ in range(4)), latency_s=rng.choice((0.001, 0.05, 1.0))
        )
        self.has_reason = self.has_reason or self.weather.cut > 0 or self.weather.silent > 0
        self.tell(f"{self.weather}")

    async def _bad_disk(self) -> None:
        self.disk.fails = self.rng.choice((0.02, 0.3, 1.0))
        self.tell(f"the disk fails: {self.disk.fails}")
        self.loop.call_later(self.rng.uniform(1, 120), self._good_disk)

    def _good_disk(self) -> None:
        self.disk.fails = self.disk.in_doubt = 0.0

    async def _doubt(self) -> None:
        self.has_reason = True
        self.disk.in_doubt = self.rng.choice((0.05, 0.5))
        self.tell(f"commits in doubt: {self.disk.in_doubt}")
        self.loop.call_later(self.rng.uniform(1, 120), self._good_disk)

    async def _crash(self) -> None:
        node = self.rng.choice(self.nodes)
        self.has_reason = True
        if node.is_up:
            node.crash()
            self.loop.call_later(self.rng.choice((0.1, 5.0, 100.0)), self._start_again, node)

    def _start_again(self, node: Node) -> None:
        if not node.is_up:
            node.start()

    async def _restart(self) -> None:
        node, grace_s = self.rng.choice(self.nodes), self.rng.choice((0.0, 5.0, 30.0))

        # What is in the middle of a transaction when the grace ends is cut off.
        self.has_reason = True

        async def restart() -> None:
            await node.shut_down(grace_s)
            self._start_again(node)

        if node.well_since is not None:
            self.loop.create_task(restart())

    async def _step_clock(self) -> None:
        node = self.rng.choice(self.nodes)
        # Leases are by that clock, where the disk is one's own.
        self.has_reason = True
        node.machine.skew_s += self.rng.choice((-3600.0, -5.0, 5.0, 300.0))
        self.tell(f"{node.machine.name}'s clock is off by {node.machine.skew_s:.0f} s")

    async def _stop(self) -> None:
        node = self.rng.choice(self.nodes)
        if not node.is_up or node.well_since is None:
            return
        self.has_reason = node.store.was_cut_off = True
        self.cut_off_until = self.loop.now + CUT_OFF_S
        self.tell(f"{node.machine.name} is stopped")
        machine = node.machine
        node.well_since = None
        machine.stop()
        self.loop.call_later(self.rng.choice((1.0, 20.0, 45.0, 300.0)), self._go_on, node, machine)

    def _go_on(self, node: Node, machine: Machine) -> None:
        if not machine.is_dead:
            self.tell(f"{machine.name} goes on")
            machine.go_on()
            node.well_since = self.loop.now

    async def _cut_off(self) -> None:
        node = self.rng.choice(self.nodes)
        store = node.store
        if not node.is_up or node.well_since is None:
            return
        self.has_reason = store.is_cut_off = store.was_cut_off = True
        self.cut_off_until = self.loop.now + CUT_OFF_S
        node.well_since = None
        self.tell(f"{node.machine.name} cannot reach the database")
        self.loop.call_later(self.rng.choice((2.0, 25.0, 90.0)), self._reaches, node, store)

    def _reaches(self, node: Node, store: SimStore) -> None:
        store.is_cut_off = False
        if node.store is store and node.is_up:
            self.tell(f"{node.machine.name} reaches the database again")
            node.well_since = self.loop.now

    async def _steer(self) -> None:
        """What an operator does."""
        rng = self.rng
        nodes = [node for node in self.nodes if node.well_since is not None]
        if not nodes:
            return
        node, kind = rng.choice(nodes), rng.choice(("hold", "retry", "cancel", "pause"))
        uids = [m.uid for m in self.disk.db._messages.values() if m.envelope.reverse_path]
        self.tell(f"operator at {node.machine.name}: {kind}")
        chosen = [uid for uid in uids if rng.random() < 0.3]
        if kind == "cancel":
            self.cancelled |= set(chosen)

        async def steer() -> None:
            with contextlib.suppress(StoreError):
                scheduler = node.server._parts.scheduler
                if kind == "pause":
                    await scheduler.pause()
                elif chosen:
                    await scheduler.change(Action(kind), Query(uids=chosen))

        self.loop.create_task(steer(), context=node.machine.context)

    async def _heal(self) -> None:
        """Nothing is wrong any more."""
        self.tell("all is well again")
        self.weather = Weather()
        self.resolver.fails = self.resolver.slow = 0.0
        self._good_disk()
        for sink in self.sinks:
            sink.mood = Mood()
        # What was begun (a stop, a cut, a restart) ends by itself within that time.
        await asyncio.sleep(400.0)
        self._good_disk()
        for node in self.nodes:
            self._start_again(node)
        await asyncio.sleep(30.0)

        async def steer(node: Node) -> None:
            scheduler = node.server._parts.scheduler
            # Nothing that need not be: whoever is asked for something looks about, and what went to sleep would be woken.
            if scheduler.is_paused:
                await scheduler.resume()
            if held := [v.uid for v in self.disk.db.search(Query(state="held"))]:
                await scheduler.change(Action.RELEASE, Query(uids=held))

        node = self.nodes[0]
        await self.loop.create_task(steer(node), context=node.machine.context)
        if node.server._parts.scheduler.is_paused:
            self.violate("the queue cannot be resumed")

    def open_connections(self) -> dict[str, int]:
        """Of the servers, by the address of the next hop."""
        found: dict[str, int] = {}
        for end in self.net.open:
            if isinstance(end, Transport) and end.machine is not None and end._names["peername"][0].startswith(RELAY):
                host = end._names["peername"][0]
                found[host] = found.get(host, 0) + 1
        return found
