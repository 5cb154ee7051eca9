"""What must hold in every world, whatever befell it."""

from __future__ import annotations

import asyncio
import email
from collections import Counter
from typing import TYPE_CHECKING, Any

from pillarbox.delivery.turns import TOGETHER_S
from pillarbox.options import interval_s
from pillarbox.queue.model import FINAL
from pillarbox.queue.slots import STALE_S

if TYPE_CHECKING:
    from .world import Node, World

# Whoever is well, has room, and knows no trouble with the next hop takes what is due within this.
DUE_S = 150.0


async def watch(world: World) -> None:
    """Again and again, while it runs."""
    could: dict[tuple[str, str], float] = {}
    while True:
        await asyncio.sleep(2.0)
        concurrency(world)
        nothing_waits(world, could)


def concurrency(world: World) -> None:
    """Connections to a next hop stay within its bound, over all nodes; and a node's within its own."""
    counts = world.open_connections()
    if sum(counts.values()) > world.options["maxrelay"] * len(world.nodes):
        world.violate(f"{sum(counts.values())} connections in all, {world.options['maxrelay']} for each of the nodes")
    if world.loop.now < world.cut_off_until:
        return
    if world.is_direct:
        for host, count in counts.items():
            # A host serves two domains at most.
            if count > world.most_per_hop * 2:
                world.violate(f"{count} connections to {host}: its domains may have {world.most_per_hop} each")
    elif sum(counts.values()) > world.most_per_hop:
        world.violate(f"{sum(counts.values())} connections to the next hop: it may have {world.most_per_hop}")


def nothing_waits(world: World, could: dict[tuple[str, str], float]) -> None:
    """Nothing that is due waits while there is somebody who could send it. `could`: since when, by server and next hop."""
    now, disk = world.loop.now, world.disk
    well = [n for n in world.nodes if n.is_up and n.well_since is not None and now - n.well_since > DUE_S]
    if not well or disk.fails or disk.in_doubt or disk.db.flag("paused"):
        return could.clear()
    seen: set[tuple[str, str]] = set()
    for message in disk.db._messages.values():
        for r in message.recipients:
            if r.due_at is None or r.is_leased or (message.key, r.number) in disk.owners:
                continue
            late = disk.now() - r.due_at
            # A node's clock that is off moves due times of its own making.
            skew = max(abs(n.machine.skew_s) for n in world.nodes)
            if late <= 0.0:
                continue
            able = {(n.machine.name, r.next_hop or "") for n in well if _could_send(n, r.next_hop or "")}
            seen |= able
            if late > DUE_S + skew and any(now - could.get(one, now) > DUE_S for one in able):
                lanes = [n.server._parts.lanes.describe() for n in well]
                world.violate(f"{r.address} is due for {late:.0f} s, and nobody takes it: {lanes}")
                return could.clear()
    for gone in could.keys() - seen:
        del could[gone]
    for one in seen:
        could.setdefault(one, now)
    return None


def _could_send(node: Node, next_hop: str) -> bool:
    lanes = node.server._parts.lanes
    scheduler = node.server._parts.scheduler
    if scheduler.is_paused or not scheduler.is_running or lanes.room() <= 0:
        return False
    blocked = lanes.blocked(is_memory_full=False)
    return next_hop not in blocked and lanes.connections < node.world.options["maxrelay"]


async def settled(world: World) -> None:
    """Waits until nothing is left to do."""
    from .world import PATIENCE_S

    deadline = world.loop.now + PATIENCE_S
    while world.loop.now < deadline:
        await asyncio.sleep(20.0)
        states = {r.state for m in world.disk.db._messages.values() for r in m.recipients}
        if states <= FINAL and not world.disk.owners and all(_is_calm(node) for node in world.nodes):
            return
    left = [f"{r.address} is {r.state}" for m in world.disk.db._messages.values() for r in m.recipients]
    waiting = [text for text in left if not text.endswith(tuple(FINAL))]
    world.violate(f"not settled after {PATIENCE_S / 3600:.0f} hours: {waiting[:5] or 'somebody is not calm'}")


def _is_calm(node: Node) -> bool:
    return not _what_is_left(node)


def _what_is_left(node: Node) -> dict[str, Any]:
    """Whatever a server still holds that has nothing to do."""
    parts = node.server._parts
    left = {
        "messages in hand": parts.scheduler.in_hand,
        "octets in hand": parts.scheduler._in_hand_bytes,
        "background tasks": len(parts.scheduler._tasks),
        "sessions": len(parts.context.sessions),
        "connections": parts.lanes.connections,
        "outcomes to be written": len(parts.commit._pending) + len(parts.commit._again),
        "sessions that are expected to bring a message": parts.commit.company.expected,
        "leases in hand": 0 if node.store.was_cut_off else len(node.store._hands),
    }
    return {name: count for name, count in left.items() if count}


def at_the_end(world: World) -> None:
    """Each message that got its 250 is accounted for, and nobody holds anything any more."""
    disk = world.disk
    paces(world)
    for node in world.nodes:
        if left := _what_is_left(node):
            world.violate(f"{node.machine.name} has nothing to do, and still has {left}")
    if any(r.is_leased for m in disk.db._messages.values() for r in m.recipients) or disk.owners:
        world.violate("a lease lives for ever")
    by_sender: dict[str, list[Any]] = {}
    for message in disk.db._messages.values():
        by_sender.setdefault(message.envelope.reverse_path or "", []).append(message)
    reported = failures(by_sender.get("", []))
    arrived: Counter[str] = Counter()
    contents: dict[str, list[bytes]] = {}
    for sink in world.sinks:
        for recipient, sender, content in sink.arrived:
            if sender:
                arrived[recipient] += 1
                contents.setdefault(recipient, []).append(content)
    for mail in world.mails:
        found = by_sender.get(mail.sender or "", [])
        if mail.is_acknowledged and not found:
            world.violate(f"message {mail.number} got its 250, and is lost")
            continue
        if len(found) > 1:
            world.violate(f"message {mail.number} was sent once, and is {len(found)} times in the queue")
        for message in found:
            if mail.is_acknowledged and {r.address for r in message.recipients} != set(mail.taken):
                world.violate(f"message {mail.number}: recipients {mail.taken} were taken, others are in the queue")
            for r in message.recipients:
                _one_recipient(world, mail, message, r, arrived[r.address], reported)
        for recipient in mail.recipients:
            for content in contents.get(recipient, ()):
                head = content[: -len(mail.content)]
                if not content.endswith(mail.content) or not head.startswith(b"Received: ") or b"\r\n\r\n" in head:
                    world.violate(f"message {mail.number} arrived changed: {content[:60]!r}, {len(content)} octets")
                    break


def paces(world: World) -> None:
    """No next hop got more messages than its rate allows, over all nodes, and over their restarts."""
    rate = world.options["rate_per_next_hop"]
    if rate is None:
        return
    interval = interval_s(rate)
    # A turn may be used a little late; a server of its own queue remembers none of before its restart.
    forgotten = 0 if world.disk.is_shared else sum(node.incarnations for node in world.nodes)
    for key, times in world.turns.items():
        for first, begun in enumerate(times):
            for count in (2, 5, 20, 60):
                if first + count < len(times):
                    spent = times[first + count] - begun
                    if spent < (count - forgotten) * interval - TOGETHER_S - STALE_S - 0.01:
                        world.violate(f"{count} messages to {key} within {spent:.1f} s: the rate is {rate}")
                        return


def failures(reports: list[Any]) -> Counter[tuple[str, str]]:
    """How often the reports say to whom that which recipient has failed (RFC 3464)."""
    found: Counter[tuple[str, str]] = Counter()
    for report in reports:
        parts = email.message_from_bytes(report.content.read()).get_payload()
        for fields in parts[1].get_payload()[1:]:
            if fields["Action"] == "failed":
                found[(report.recipients[0].address, fields["Final-Recipient"].partition(";")[2].strip())] += 1
    return found


def _one_recipient(
    world: World, mail: Any, message: Any, r: Any, count: int, reported: Counter[tuple[str, str]]
) -> None:
    attempts = world.disk.db._attempts[message.key]
    unsure = sum(a.outcome == "ambiguous" and a.number == r.number for a in attempts)
    if count > 1 + unsure:
        world.violate(f"{r.address} got message {mail.number} {count} times, with {unsure} attempts in doubt")
    if r.state == "delivered" and not count:
        world.violate(f"{r.address} is said to be delivered, and never arrived")
    if r.state == "cancelled" and message.uid not in world.cancelled:
        world.violate(f"{r.address} was cancelled by nobody")
    told = reported[(mail.sender, r.address)]
    if told != (r.state in ("bounced", "expired")):
        world.violate(f"{r.address} is {r.state}, and {mail.sender} was told {told} times that it failed")
    if r.state not in FINAL:
        world.violate(f"{r.address} is {r.state} at the end")
    if unsure and not world.has_reason and not any(r.address in sink.unsure for sink in world.sinks):
        world.violate(f"{r.address}: an attempt's end is in doubt, and nothing had happened that could be the reason")
