"""Which of a next hop's servers gets a connection, in which order, and when no server is left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from pillarbox.delivery.client import ClientConnection, ClientSettings
from pillarbox.delivery.mx import MAX_ADDRESSES
from pillarbox.delivery.opener import BAD_S, NotOpenedError, Opener
from pillarbox.delivery.pool import Pool
from pillarbox.delivery.relayhosts import resolve_targets
from pillarbox.delivery.route import Target
from pillarbox.delivery.terms import LaneSettings
from pillarbox.delivery.tlspolicy import TlsPolicy
from pillarbox.smtp.client import Stage
from pillarbox.smtp.reply import Reply
from pillarbox.testing import ManualClock, ScriptedServer
from tests.conftest import free_port, run_async


class Lane:
    def __init__(self, key: str) -> None:
        self.key = key

    def wants_place(self) -> bool:
        return True

    def spare_place(self, place: Any) -> bool:
        return False

    def transaction_done(self, connection: Any, transaction: Any) -> None: ...

    def may_send_more(self, connection: Any) -> None: ...

    def connection_closed(self, connection: Any) -> None: ...


class Opening:
    """An opener for these servers; `targets` may be a Reply, or raise."""

    def __init__(self, targets: Any, key: str = "mx:d.test") -> None:
        self.clock, self.targets = ManualClock(), targets
        client = ClientSettings("me.test", TlsPolicy.NONE, None, time_out_s=5.0)
        settings = LaneSettings(10, 10, 1 << 20, client, self.find)
        self.pool = Pool(self.clock, 10, 0)
        self.opener = Opener(Lane(key), settings, self.pool, self.clock)

    async def find(self) -> Any:
        if isinstance(self.targets, Exception):
            raise self.targets
        return self.targets

    async def port(self, avoid: Any = ()) -> int:
        """Opens a connection, and closes it: the port of its server."""
        connection: ClientConnection = await self.opener.open(avoid)
        assert connection.place is not None
        self.pool.free(connection.place)
        connection.abort()
        return connection.target.port

    async def fault(self) -> NotOpenedError:
        with pytest.raises(NotOpenedError) as caught:
            await self.opener.open(())
        assert len(self.pool) == 0, "no place is kept"
        return caught.value


def at(*peers: Any) -> list[Target]:
    return [Target("127.0.0.1", peer if isinstance(peer, int) else peer.port) for peer in peers]


def with_peers(*scripts: dict[str, str]) -> Callable[[Any], Callable[[], None]]:
    def decorate(test: Any) -> Callable[[], None]:
        def run() -> None:
            async def main() -> None:
                peers = [ScriptedServer(**script) for script in scripts]
                for peer in peers:
                    await peer.start()
                try:
                    await test(*peers)
                finally:
                    for peer in peers:
                        await peer.stop()

            run_async(main)

        run.__name__ = test.__name__
        return run

    return decorate


@with_peers({}, {})
async def test_first_server_is_used_while_it_works(first: Any, second: Any) -> None:
    one = Opening(at(first, second))
    assert [await one.port() for _ in range(3)] == [first.port] * 3
    assert (
        second.connections == 0
        and one.opener.has_other({at(first)[0]})
        and not one.opener.has_other(set(at(first, second)))
    )


@with_peers({})
async def test_next_server_is_tried_when_the_first_is_dead(second: Any) -> None:
    assert await Opening(at(free_port(), second)).port() == second.port


@with_peers({"CONNECT": "554 no"}, {"EHLO": "421 4.3.2 busy"}, {"CONNECT": "close"}, {})
async def test_server_that_refuses_the_session_gives_way_to_the_next(*peers: Any) -> None:
    one = Opening(at(*peers))
    assert await one.port() == peers[-1].port and all(peer.connections == 1 for peer in peers)


@with_peers({"CONNECT": "421 4.3.2 busy"}, {})
async def test_server_that_failed_stands_behind_the_others_for_a_while(first: Any, second: Any) -> None:
    one = Opening(at(first, second))
    assert [await one.port(), await one.port()] == [second.port] * 2 and first.connections == 1
    one.clock.advance(BAD_S + 1)
    first.script("CONNECT", "220 hello")
    assert await one.port() == first.port


@with_peers({}, {})
async def test_server_that_is_avoided_is_used_where_no_other_works(first: Any, second: Any) -> None:
    one = Opening(at(first, second))
    assert await one.port(avoid=at(first)) == second.port
    assert await Opening(at(first, free_port())).port(avoid=at(first)) == first.port


@with_peers({"CONNECT": "421 4.3.2 busy"})
async def test_order_begins_anew_when_no_server_works(first: Any) -> None:
    one = Opening(at(first, free_port()))
    fault = await one.fault()
    assert fault.fault is not None and not fault.is_final and fault.fault.reply.is_transient
    assert not one.opener._bad


@pytest.mark.parametrize(
    ("key", "greetings", "is_final"),
    [
        ("mx:d.test", ["521 no mail here", "556 no mail here"], True),
        ("mx:d.test", ["521 no mail here", "421 busy"], False),
        ("mx:d.test", ["554 no"], False),
        # The operator's own choice: it is mended, and the mail waits for that.
        ("relay:x", ["521 no mail here"], False),
    ],
)
def test_521_is_final_for_all_servers_of_an_mx_only(key: str, greetings: list[str], is_final: bool) -> None:
    """RFC 7504 section 4."""

    @with_peers(*({"CONNECT": greeting} for greeting in greetings))
    async def check(*peers: Any) -> None:
        fault = await Opening(at(*peers), key).fault()
        assert fault.is_final is is_final and fault.fault is not None
        assert fault.fault.stage is Stage.GREETING and fault.fault.reply.is_transient is not is_final

    check()


@with_peers({"CONNECT": "554 5.7.1 not you"})
async def test_refused_greeting_defers_the_message(peer: Any) -> None:
    fault = await Opening(at(peer)).fault()
    assert fault.fault is not None and fault.fault.reply.code == 451 and "554 5.7.1 not you" in str(fault.fault.reply)


@pytest.mark.parametrize(
    ("targets", "is_final", "code"),
    [
        (Reply(550, "5.1.2", "no domain"), True, 550),
        (Reply(451, "4.4.3", "no answer"), False, 451),
        ([], False, 451),
        (RuntimeError("broken"), False, 451),
    ],
)
def test_look_up_without_servers_says_whether_that_is_final(targets: Any, is_final: bool, code: int) -> None:
    async def main() -> None:
        fault = await Opening(targets).fault()
        assert fault.is_final is is_final and fault.fault is not None
        assert (fault.fault.reply.code, fault.fault.stage) == (code, Stage.LOOKUP)

    run_async(main)


# ---------------------------------------------------------------------- smart hosts


def test_each_address_of_a_smart_host_is_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5321 section 5.1: the addresses of a name are tried in order. What the system's resolver says is made up here."""
    answers: dict[str, Any] = {
        "two.test": ["192.0.2.1", "192.0.2.2", "192.0.2.1"],
        "many.test": [f"192.0.2.{n}" for n in range(50)],
        "gone.test": socket.gaierror(-2, "Name or service not known"),
        "empty.test": [],
    }

    def getaddrinfo(host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        found = answers[host]
        if isinstance(found, Exception):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main() -> None:
        async def found(*targets: Target) -> list[str]:
            return [target.name for target in await resolve_targets(targets)]

        assert await found(Target("two.test", 25), Target("192.0.2.9", 26)) == [
            "two.test[192.0.2.1]:25",
            "two.test[192.0.2.2]:25",
            "192.0.2.9:26",
        ]
        assert len(await found(Target("many.test", 25))) == MAX_ADDRESSES
        assert await found(Target("gone.test", 25), Target("empty.test", 25)) == ["gone.test:25", "empty.test:25"]
        (secure, _) = await resolve_targets([Target("two.test", 465, is_tls=True)])
        assert secure == Target("two.test", 465, True, "192.0.2.1")

    # asyncio's own loop asks the function above.
    asyncio.run(main())
