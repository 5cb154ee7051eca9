"""The device profile in a server: which sessions have it, what it takes, what is counted and logged."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any

import pytest

from pillarbox.server.context import DEVICE
from tests.conftest import cuts, queued, run_async, serving, stored_content, wired

pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
LF_MAIL = b"MAIL FROM:scanner\nRCPT TO: <.abc@d.test.>\nDATA\n"
LF_CONTENT = b"Subject: scan\n\nfirst\n..second\n.\n"


@pytest.mark.parametrize("sizes", cuts(1), ids=["whole", "bytes", "random"])
def test_device_network_session_takes_what_a_scanner_sends(sizes: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        options = {"device_networks": ["192.0.2.0/24"], "trust": ["192.0.2.0/24"], "hostname": "mx.test"}
        async with wired(sizes, peer="192.0.2.9", **options) as (server, wire):
            assert wire.connection.session.facts.profile == DEVICE
            replies = await wire.ask(LF_MAIL)
            assert [reply[:3] for reply in replies] == ["250", "250", "354"], replies
            replies = await wire.ask(LF_CONTENT)
            assert [reply[:3] for reply in replies] == ["250"], replies
            assert [r.address for r in queued(server)[0].recipients] == ['".abc"@d.test']
            assert queued(server)[0].reverse_path == "scanner@mx.test"
            assert stored_content(server).endswith(b"first\r\n.second\r\n")
            assert b"Received: from unknown ([192.0.2.9])" in stored_content(server)
            with caplog.at_level(logging.INFO, "pillarbox.session"):
                wire.lose()
            lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("repaired")]
            assert len(lines) == 1, lines
            for words in (
                "without angle brackets (1)",
                "no EHLO or HELO before mail (1)",
                "ended by LF alone (3)",
                "peer=192.0.2.9",
            ):
                assert words in lines[0], (words, lines[0])
            assert (await server.queue.live())["counters"]["device_repairs"] == 7

    run_async(main)


@pytest.mark.parametrize("sizes", cuts(1), ids=["whole", "bytes", "random"])
def test_other_session_is_not_of_the_device_profile(sizes: Any) -> None:
    async def main() -> None:
        async with wired(sizes, peer="198.51.100.9", device_networks=["192.0.2.0/24"]) as (server, wire):
            assert wire.connection.session.facts.profile == ""
            replies = await wire.ask(LF_MAIL)
            assert {reply[:3] for reply in replies} == {"500"}
            replies = await wire.ask(b"\r\nMAIL FROM:<a@b.test>\r\nEHLO x\r\nMAIL FROM:a@b.test\r\n")
            assert [reply[:3] for reply in replies] == ["503", "250", "501"]
            assert (await server.queue.live())["counters"]["device_repairs"] == 0

    run_async(main)


@pytest.mark.parametrize("sizes", cuts(1), ids=["whole", "bytes", "random"])
def test_device_session_without_mistakes_is_not_logged(sizes: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with wired(sizes, device_networks=["127.0.0.0/8"]) as (server, wire):
            for _ in range(2):
                await wire.ask(b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
                assert (await wire.ask(b"DATA\r\n"))[0].startswith("354")
                assert (await wire.ask(b"Subject: x\r\n\r\n..\r\n.\r\n"))[0].startswith("250")
            with caplog.at_level(logging.INFO, "pillarbox.session"):
                wire.lose()
            assert not [r for r in caplog.records if r.getMessage().startswith("repaired")]

    run_async(main)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, octets: bytes) -> bytes:
    writer.write(octets)
    while True:
        line = await reader.readline()
        if line[3:4] != b"-":
            return line


async def hello_over_old_tls(port: int, *, at_once: bool) -> str:
    """The version of TLS that a client with TLS 1.0 gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context if at_once else None)
    try:
        await reader.readline()
        if not at_once:
            # An old scanner says no EHLO before STARTTLS either.
            assert (await ask(reader, writer, b"EHLO x\r\n")).startswith(b"250")
            assert (await ask(reader, writer, b"STARTTLS\r\n")).startswith(b"220")
            await writer.start_tls(context)
        assert (await ask(reader, writer, b"EHLO x\r\n")).startswith(b"250")
        return str(writer.get_extra_info("ssl_object").version())
    finally:
        writer.close()


def test_device_listener_offers_old_tls_and_others_do_not(tmp_path: Path, certificate: dict[str, str]) -> None:
    async def main() -> None:
        listen = [f"{scheme}://127.0.0.1:0" for scheme in ("smtp", "device", "devices")]
        options = {"listen": listen, "tls_cert": certificate["cert"], "tls_key": certificate["key"]}
        async with serving(tmp_path, **options) as server:
            plain, device, devices = (port for _, port in server.getsocknames())
            assert await hello_over_old_tls(device, at_once=False) == "TLSv1"
            assert await hello_over_old_tls(devices, at_once=True) == "TLSv1"
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await hello_over_old_tls(plain, at_once=False)
            # After a reload with the same certificate the profile is still there.
            server.reload(port=0, data_dir=str(tmp_path), hostname="mx.test", direct=False, **options)
            assert await hello_over_old_tls(device, at_once=False) == "TLSv1"
            assert await hello_over_old_tls(devices, at_once=True) == "TLSv1"
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await hello_over_old_tls(plain, at_once=False)

    run_async(main)


def test_device_endpoint_has_its_ports() -> None:
    from pillarbox.places import parse_endpoint

    assert parse_endpoint("device://192.0.2.1", 25, is_listener=True) == ("device", "192.0.2.1", 25)
    assert parse_endpoint("devices://[::1]", 25, is_listener=True) == ("devices", "::1", 465)
    with pytest.raises(ValueError):
        parse_endpoint("device://192.0.2.1", 25)
