"""The system's nameservers: resolv.conf that changes, is bad or missing; and the texts of failed look-ups."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import dns.exception
import pytest

from pillarbox.clock import SystemClock
from pillarbox.delivery.mx import MxLookup, MxPolicy
from pillarbox.dns import CachingResolver, DnsResolver, Status
from pillarbox.nameservers import SystemNameservers, bounded, failure_reason, usable_lines

from .conftest import run_async
from .dnsserver import SERVFAIL, nameserver


def servers(system: SystemNameservers) -> list[str]:
    return [str(one) for one in system.current().nameservers]


@pytest.mark.parametrize("before", [None, "", "# nothing yet\n", "nameserver 127.0.0.99\n", "nameserver nonsense\n"])
def test_resolv_conf_written_after_the_start_is_used(tmp_path: Path, before: str | None) -> None:
    conf = tmp_path / "resolv.conf"
    if before is not None:
        conf.write_text(before)
    system = SystemNameservers(10.0, str(conf))
    assert servers(system) == (["127.0.0.99"] if before and "99" in before else ["127.0.0.1"])
    conf.write_text("nameserver 192.0.2.53\nnameserver 2001:db8::53\n")
    assert servers(system) == ["192.0.2.53", "2001:db8::53"]


def test_resolv_conf_replaced_by_another_file_is_read(tmp_path: Path) -> None:
    conf, new = tmp_path / "resolv.conf", tmp_path / "new"
    conf.write_text("nameserver 192.0.2.1\n")
    system = SystemNameservers(10.0, str(conf))
    new.write_text("nameserver 192.0.2.2\n")
    # The same time and size: the inode alone tells.
    os.utime(new, ns=(conf.stat().st_atime_ns, conf.stat().st_mtime_ns))
    os.replace(new, conf)
    assert servers(system) == ["192.0.2.2"]


def test_resolv_conf_emptied_or_removed_keeps_the_last_nameservers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 192.0.2.1\n")
    system = SystemNameservers(10.0, str(conf))
    conf.write_text("")
    assert servers(system) == ["192.0.2.1"]
    conf.unlink()
    for _ in range(5):
        assert servers(system) == ["192.0.2.1"]
        system.failed()
    # One line for each state, not one for each look-up.
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_resolv_conf_changed_within_one_tick_is_read_after_a_failure(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 192.0.2.1\n")
    at = conf.stat().st_mtime_ns
    system = SystemNameservers(10.0, str(conf))
    conf.write_text("nameserver 192.0.2.2\n")
    os.utime(conf, ns=(at, at))
    assert servers(system) == ["192.0.2.1"]
    system.failed()
    assert servers(system) == ["192.0.2.2"]


@pytest.mark.parametrize(
    ("octets", "lines"),
    [
        (b"nameserver 192.0.2.1 # mine\nnameserver\nnameserver x.test\nfoo bar\nsearch a..b\n", "nameserver 192.0.2.1"),
        (b"\xff\xfe\x00\nnameserver 192.0.2.1\r\nnameserver 192.0.2.1\r\n", "nameserver 192.0.2.1"),
        (b"  nameserver\t192.0.2.1\noptions timeout:x rotate\n", "nameserver 192.0.2.1\noptions timeout:x rotate"),
        (b"nameserver fe80::1%eth0\n", "nameserver fe80::1%eth0"),
        (b"domain " + b"x" * 300 + b"\n", ""),
    ],
)
def test_resolv_conf_with_bad_lines_keeps_the_good_ones(tmp_path: Path, octets: bytes, lines: str) -> None:
    assert usable_lines(octets) == lines
    conf = tmp_path / "resolv.conf"
    conf.write_bytes(octets)
    SystemNameservers(10.0, str(conf)).current()


def test_nameservers_by_option_are_not_read_from_resolv_conf(tmp_path: Path) -> None:
    async def main() -> None:
        conf = tmp_path / "resolv.conf"
        conf.write_text("nameserver 127.0.0.99\n")
        with nameserver({"a.test": {"A": ["192.0.2.1"]}}) as (place, _):
            resolver = DnsResolver([place], 2.0, str(conf))
            conf.write_text("nameserver 127.0.0.98\n")
            assert (await resolver.resolve("a.test", "A")).records == ("192.0.2.1",)

    run_async(main)


def test_failed_look_up_says_which_nameserver_was_silent() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{silent.getsockname()[1]}"
            resolver = CachingResolver(DnsResolver([place], 0.6), SystemClock())
            answer = await resolver.resolve("a.test", "MX")
            assert answer.status is Status.FAILED
            assert answer.reason == f"no answer from nameserver {place} within 1 s"
            reply = await MxLookup(resolver, MxPolicy(), random.Random(1)).targets("a.test")
            assert str(reply) == f"451 4.4.3 DNS look-up of a.test failed: no answer from nameserver {place} within 1 s"
            await resolver.close()

    run_async(main)


def test_failed_look_up_says_what_the_nameserver_answered() -> None:
    async def main() -> None:
        with nameserver({"a.test": SERVFAIL}) as (place, _):
            answer = await DnsResolver([place], 2.0).resolve("a.test", "A")
            assert answer.reason == f"nameserver {place} answered SERVFAIL"

    run_async(main)


@pytest.mark.parametrize(
    ("name", "text"),
    [("x" * 64 + ".test", "a label is longer than 63 octets"), ("a..test", "empty label"), ("y." * 200, "255 octets")],
)
def test_name_that_cannot_be_asked_for_is_explained(name: str, text: str) -> None:
    async def main() -> None:
        answer = await DnsResolver(["127.0.0.1:9"]).resolve(name, "A")
        assert answer.status is Status.NO_NAME and text in answer.reason

    run_async(main)


def test_reasons_are_one_bounded_line_without_class_names() -> None:
    long = ValueError("no\n\tanswer " * 60)
    text = failure_reason(long)
    assert len(text) <= 165 and text.endswith(" ...") and text.isprintable()
    assert failure_reason(dns.exception.FormError()) == "the nameserver's answer cannot be read"
    assert failure_reason(TimeoutError()) == "no answer in time"
    assert failure_reason(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
    assert bounded("short") == "short"
