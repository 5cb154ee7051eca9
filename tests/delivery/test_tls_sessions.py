"""TLS sessions are resumed, both ways: a short handshake with whom we have spoken lately, and for who comes again."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from pillarbox.clock import SystemClock
from pillarbox.delivery.client import ClientConnection, ClientSettings
from pillarbox.delivery.route import Target
from pillarbox.delivery.tlspolicy import ResumingContext, TlsPolicy, client_context
from tests.conftest import run_async, serving


class Nobody:
    def transaction_done(self, connection: Any, transaction: Any) -> None: ...

    def may_send_more(self, connection: Any) -> None: ...

    def connection_closed(self, connection: Any) -> None: ...


async def reused(settings: ClientSettings, target: Target) -> bool:
    """Connects up to where a transaction would begin; was the handshake a short one?"""
    connection = ClientConnection(Nobody(), target, settings, SystemClock())
    await connection.open()
    assert connection._transport is not None
    tls: ssl.SSLObject = connection._transport.get_extra_info("ssl_object")
    found = bool(tls.session_reused)
    connection.quit()
    return found


@pytest.mark.parametrize("is_implicit", [False, True])
@pytest.mark.parametrize("policy", [TlsPolicy.MAY, TlsPolicy.VERIFY])
def test_the_second_handshake_is_short(
    tmp_path: Path, certificate: dict[str, str], policy: TlsPolicy, is_implicit: bool
) -> None:
    async def main() -> None:
        listen = "smtps://127.0.0.1:0" if is_implicit else "127.0.0.1:0"
        files = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with serving(tmp_path, listen=[listen], store="memory", **files) as server:
            port = server.getsockname()[1]
            target = Target("localhost", port, is_tls=is_implicit, address="127.0.0.1")
            settings = ClientSettings("mx.test", policy, client_context(policy, certificate["ca"]))
            assert [await reused(settings, target) for _ in range(3)] == [False, True, True]
            # What was verified by one context is not taken over by another.
            other = ClientSettings("mx.test", TlsPolicy.MAY, client_context(TlsPolicy.MAY, None))
            assert not await reused(other, target)
            # A server that has forgotten, and has another certificate: the long way, without a fault.
            server.reload(
                listen=[listen],
                store="memory",
                data_dir=str(tmp_path),
                hostname="mx.test",
                direct=False,
                port=0,
                **files,
            )
            await reused(settings, target)

    run_async(main)


def test_sessions_are_bounded(tmp_path: Path, certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResumingContext, "MOST_SERVERS", 2)

    async def main() -> None:
        files = {"tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with serving(tmp_path, store="memory", **files) as server:
            context = client_context(TlsPolicy.MAY, None)
            settings = ClientSettings("mx.test", TlsPolicy.MAY, context)
            for name in ("a.test", "b.test", "c.test"):
                assert not await reused(settings, Target(name, server.getsockname()[1], address="127.0.0.1"))
            assert isinstance(context, ResumingContext) and list(context._sessions()) == ["b.test", "c.test"]

    run_async(main)
