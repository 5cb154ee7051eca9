"""Asks a smart host whether it takes a recipient: MAIL FROM:<>, RCPT TO, QUIT on a connection of its own.

Verdicts are cached. Cache, connections and time are bounded. Must not know sessions: plugins/recipient_verify.py asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ..clock import Clock
from ..queue.model import Recipient as QueuedRecipient
from ..smtp.address import comparable_mailbox
from ..smtp.client import ClientFault, Outcome, Stage, Transaction
from ..smtp.reply import Reply
from ..smtp.transaction import Recipient
from .client import ClientConnection, ClientSettings, ConnectFault, open_optional_tls
from .route import Target
from .transaction import Session, result_of

_log = logging.getLogger("pillarbox.delivery")
# How long a verdict holds, in seconds: the next hop takes the recipient, refuses it, did not decide.
TAKEN_S, REFUSED_S, UNKNOWN_S = 6 * 3600.0, 3600.0, 30.0
# A next hop that could not be reached is not asked again for this long, about any recipient.
UNREACHABLE_S = 10.0
# Verdicts that are kept, of each kind: recipients that do not exist never displace those that do.
MAX_VERDICTS = 10_000
# Probes at the same time, a connection each. A recipient beyond them is undecided.
MAX_PROBES = 20
# For one probe, over all smart hosts.
PROBE_S = 30.0
_BUSY = Reply(451, "4.4.5", "Too many recipients are being verified")
_SLOW = Reply(451, "4.4.1", "The next hop did not answer in time")
_NO_HOST = Reply(451, "4.4.4", "No smart host is set")


class _Owner:
    """Waits for the one transaction of a connection."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def transaction_done(self, connection: ClientConnection, transaction: Transaction) -> None:
        """See client.Owner."""
        self._end()

    def may_send_more(self, connection: ClientConnection) -> None:
        """See client.Owner. A probe sends one transaction."""

    def connection_closed(self, connection: ClientConnection) -> None:
        """See client.Owner."""
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class _Verdicts:
    """Verdicts by address, the oldest displaced first. A verdict is None or the refusal."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Reply | None, float]] = {}

    def get(self, key: str, now: float) -> tuple[Reply | None, float] | None:
        known = self._kept.get(key)
        return known if known is not None and now < known[1] else None

    def put(self, key: str, verdict: Reply | None, until: float) -> None:
        self.drop(key)
        if len(self._kept) >= MAX_VERDICTS:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (verdict, until)

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)


class Prober:
    """`targets` and `settings` return the present smart hosts and how to connect to them."""

    def __init__(
        self, targets: Callable[[], Sequence[Target]], settings: Callable[[], ClientSettings], clock: Clock
    ) -> None:
        self._targets = targets
        self._settings = settings
        self._clock = clock
        self._taken, self._others = _Verdicts(), _Verdicts()
        self._running: dict[str, asyncio.Task[Reply | None]] = {}
        self._unreachable: tuple[Reply, float] | None = None

    async def verify(self, address: str) -> Reply | None:
        """Returns None when the next hop takes the address, its 5yz reply when it refuses, 4yz when that is not known."""
        key, now = comparable_mailbox(address), self._clock.monotonic()
        known = self._taken.get(key, now) or self._others.get(key, now)
        if known is not None:
            return known[0]
        task = self._running.get(key)
        if task is None:
            if self._unreachable is not None and now < self._unreachable[1]:
                return self._unreachable[0]
            if len(self._running) >= MAX_PROBES:
                return _BUSY
            task = self._running[key] = asyncio.get_running_loop().create_task(self._decide(key, address))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        # A session that ends does not cancel the probe: other sessions may wait for it.
        return await asyncio.shield(task)

    async def _decide(self, key: str, address: str) -> Reply | None:
        try:
            async with asyncio.timeout(PROBE_S):
                verdict = await self._ask(address)
        except TimeoutError:
            verdict = self._not_reached(_SLOW)
        now = self._clock.monotonic()
        if verdict is None:
            self._others.drop(key)
            self._taken.put(key, None, now + TAKEN_S)
        else:
            self._taken.drop(key)
            self._others.put(key, verdict, now + (REFUSED_S if verdict.is_permanent else UNKNOWN_S))
        return verdict

    async def _ask(self, address: str) -> Reply | None:
        fault, settings = _NO_HOST, self._settings()
        for target in self._targets():
            owner = _Owner()

            def new(owner: _Owner = owner, target: Target = target) -> ClientConnection:
                return ClientConnection(owner, target, settings, self._clock)

            try:
                connection = await open_optional_tls(new)
            except ConnectFault as error:
                fault = error.reply
                continue
            try:
                words = () if address.isascii() else ("SMTPUTF8",)
                probe = Transaction(None, [Recipient(address)], (), words, is_probe=True)
                connection.send(probe)
                await owner.done
            except ClientFault as error:
                return Reply(451, "4.3.0", str(error))
            finally:
                connection.quit()
            self._unreachable = None
            return _verdict(connection, address, probe.outcomes[0])
        return self._not_reached(fault)

    def _not_reached(self, fault: Reply) -> Reply:
        _log.warning("recipient verification: next hop unreachable; answering 450 for %.0f s: %s", UNREACHABLE_S, fault)
        self._unreachable = (fault, self._clock.monotonic() + UNREACHABLE_S)
        return fault


def _verdict(connection: ClientConnection, address: str, outcome: Outcome | None) -> Reply | None:
    """What the reply says of the recipient, by the rules of a delivery (transaction.result_of)."""
    if outcome is None or (outcome.stage is Stage.MAIL and outcome.reply.is_permanent):
        # A next hop that refuses the null reverse-path says nothing of the recipient.
        return None
    session = Session(connection.smtp, connection.remote, False, connection.is_fallback, True)
    result = result_of(session, QueuedRecipient(0, address), outcome)
    return result.reply if result.is_permanent or result.reply.is_transient else Reply(451, "4.4.0", str(result.reply))
