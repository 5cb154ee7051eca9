"""The resolver, its cache, and MX by RFC 5321 section 5.1, against a real nameserver and against dicts."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from typing import Any

import pytest

from pillarbox.delivery.mx import MAX_TARGETS, MxLookup, MxPolicy
from pillarbox.delivery.route import Target
from pillarbox.dns import Answer, CachingResolver, DnsResolver, Status, addresses, reversed_name
from pillarbox.errors import OptionError
from pillarbox.options import parse_options
from pillarbox.smtp.reply import Reply
from pillarbox.testing import DictResolver, ManualClock
from tests.conftest import run_async
from tests.dnsserver import SERVFAIL, SILENT, nameserver

TEST_NET = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def look_up(zones: dict[str, Any], domain: str = "d.test", rng: int = 1, **policy: Any) -> list[Target] | Reply:
    policy = {"networks": TEST_NET, **policy}
    lookup = MxLookup(DictResolver(zones), MxPolicy(**policy), random.Random(rng))
    return run_async(lambda: lookup.targets(domain))


def names(found: list[Target] | Reply) -> list[str]:
    assert isinstance(found, list), found
    return [target.address for target in found]


def refused(found: list[Target] | Reply) -> str:
    assert isinstance(found, Reply), found
    return f"{found.code} {found.enhanced}"


# --------------------------------------------------------------------- the resolver


def test_a_real_nameserver() -> None:
    records = {
        "d.test": {"MX": [(20, "mx2.d.test"), (10, "mx1.d.test")], "TXT": ["v=spf1 -all"]},
        "mx1.d.test": {"A": ["192.0.2.1", "192.0.2.2"], "AAAA": ["2001:db8::1"]},
        "alias.test": {"CNAME": "mx1.d.test"},
        "null.test": {"MX": [(0, ".")]},
        "broken.test": SERVFAIL,
        "silent.test": SILENT,
    }

    async def main() -> None:
        with nameserver(records) as (address, _):
            resolver = DnsResolver([address], time_out_s=1.0)
            mx = await resolver.resolve("d.test", "MX")
            assert mx.status is Status.FOUND and set(mx.records) == {(10, "mx1.d.test"), (20, "mx2.d.test")}
            assert mx.ttl_s == 300
            assert (await resolver.resolve("d.test", "TXT")).records == ("v=spf1 -all",)
            assert (await resolver.resolve("null.test", "MX")).records == ((0, "."),)
            nothing = await resolver.resolve("d.test", "A")
            assert nothing.status is Status.NO_DATA and nothing.ttl_s == 60
            absent = await resolver.resolve("nobody.test", "MX")
            assert absent.status is Status.NO_NAME and absent.ttl_s == 60
            assert (await resolver.resolve("broken.test", "MX")).status is Status.FAILED
            assert (await resolver.resolve("silent.test", "MX")).status is Status.FAILED
            alias = await resolver.resolve("alias.test", "A")
            assert alias.canonical == "mx1.d.test" and set(alias.records) == {"192.0.2.1", "192.0.2.2"}
            assert (await addresses(resolver, "mx1.d.test"))[0][-1] == "2001:db8::1"
            for bad in ("a..b", "x" * 64 + ".test", ".".join(["x" * 60] * 5)):
                assert (await resolver.resolve(bad, "A")).status is Status.NO_NAME, bad

    run_async(main)


def test_a_large_answer_comes_by_tcp() -> None:
    records = {"many.test": {"A": [f"192.0.2.{n}" for n in range(1, 255)]}}

    async def main() -> None:
        with nameserver(records) as (address, _):
            found = await DnsResolver([address]).resolve("many.test", "A")
            assert found.status is Status.FOUND and len(found.records) == 100, "cut to what anybody needs"

    run_async(main)


def test_nobody_answers() -> None:
    async def main() -> None:
        resolver = DnsResolver(["127.0.0.1:1"], time_out_s=0.3)
        assert (await resolver.resolve("d.test", "MX")).status is Status.FAILED

    run_async(main)


def test_the_cache_keeps_ttls_and_negative_answers() -> None:
    async def main() -> None:
        clock, inner = ManualClock(), DictResolver({"a.test": {"A": ["192.0.2.1"]}, "b.test": Status.FAILED}, ttl_s=100)
        cache = CachingResolver(inner, clock)
        for name in ("a.test", "A.TEST.", "nobody.test", "nobody.test"):
            await cache.resolve(name, "A")
        assert len(inner.asked) == 2 and cache.hits == 2
        clock.advance(99)
        await cache.resolve("a.test", "A")
        assert len(inner.asked) == 2
        clock.advance(2)
        await cache.resolve("a.test", "A")
        await cache.resolve("nobody.test", "A")
        assert len(inner.asked) == 4
        for _ in range(3):
            assert (await cache.resolve("b.test", "A")).status is Status.FAILED
        assert len(inner.asked) == 5, "a failure is remembered for a moment"
        clock.advance(1.1)
        await cache.resolve("b.test", "A")
        assert len(inner.asked) == 6

    run_async(main)


def test_the_cache_is_bounded_and_asks_once() -> None:
    async def main() -> None:
        inner = DictResolver({})
        cache = CachingResolver(inner, ManualClock(), max_entries=10)
        for n in range(30):
            await cache.resolve(f"n{n}.test", "A")
        assert len(cache) == 10
        inner.hold = asyncio.Event()
        waiting = [asyncio.ensure_future(cache.resolve("same.test", "A")) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        inner.hold.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert all(isinstance(one, Answer) for one in answers[1:]), "one that gives up takes nothing from the others"
        assert inner.asked.count(("same.test", "A")) == 1
        await cache.close()

    run_async(main)


def test_a_resolver_that_raises_is_a_failure() -> None:
    class Broken:
        async def resolve(self, name: str, kind: str) -> Answer:
            raise RuntimeError("no")

    async def main() -> None:
        assert (await CachingResolver(Broken(), ManualClock()).resolve("a.test", "A")).status is Status.FAILED

    run_async(main)


def test_reversed_names() -> None:
    assert reversed_name("192.0.2.99", "bl.test") == "99.2.0.192.bl.test"
    assert reversed_name("::ffff:192.0.2.99", "bl.test") == "99.2.0.192.bl.test"
    assert reversed_name("2001:db8::1", "bl.test") == "1." + "0." * 23 + "8.b.d.0.1.0.0.2.bl.test"


def test_nameserver_options() -> None:
    assert parse_options({"nameservers": "127.0.0.1:5353"}).nameservers == ["127.0.0.1:5353"]
    parse_options({"nameservers": ["::1", "[2001:db8::1]:53", "192.0.2.1"]})
    for bad in ("ns.example.org", "127.0.0.1:x", ""):
        with pytest.raises(OptionError, match="nameservers"):
            parse_options({"nameservers": bad})
    with pytest.raises(OptionError, match="resolver"):
        parse_options({"resolver": object()})


# ------------------------------------------------------------------------------- MX


def test_preference_order() -> None:
    zones = {
        "d.test": {"MX": [(30, "c.test"), (10, "a.test"), (20, "b.test")]},
        **{f"{name}.test": {"A": [f"127.0.0.{n}"]} for n, name in enumerate("abc", 1)},
    }
    assert names(look_up(zones)) == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


def test_equal_preferences_are_shuffled() -> None:
    zones = {
        "d.test": {"MX": [(10, f"m{n}.test") for n in range(4)] + [(20, "last.test")]},
        **{f"m{n}.test": {"A": [f"127.0.1.{n}"]} for n in range(4)},
        "last.test": {"A": ["127.0.9.9"]},
    }
    orders = {tuple(names(look_up(zones, rng=seed))) for seed in range(30)}
    assert len(orders) > 10 and all(order[-1] == "127.0.9.9" and len(order) == 5 for order in orders)
    assert {order[0] for order in orders} == {f"127.0.1.{n}" for n in range(4)}


def test_all_addresses_and_the_preferred_family() -> None:
    zones = {"d.test": {"MX": [(1, "a.test")]}, "a.test": {"A": ["127.0.0.1", "127.0.0.2"], "AAAA": ["::1"]}}
    assert names(look_up(zones)) == ["127.0.0.1", "127.0.0.2", "::1"]
    assert names(look_up(zones, ip_preference="ipv6")) == ["::1", "127.0.0.1", "127.0.0.2"]
    assert names(look_up(zones, ip_preference="ipv6-only")) == ["::1"]
    assert names(look_up(zones, ip_preference="ipv4-only")) == ["127.0.0.1", "127.0.0.2"]


def test_implicit_mx() -> None:
    assert names(look_up({"d.test": {"A": ["127.0.0.5"]}})) == ["127.0.0.5"]
    assert names(look_up({"d.test": {"AAAA": ["::1"]}})) == ["::1"]
    assert refused(look_up({"d.test": {"TXT": ["x"]}})) == "550 5.1.2"
    assert refused(look_up({"d.test": {"A": Status.FAILED}})) == "451 4.4.3"
    assert names(look_up({"d.test": {"A": ["127.0.0.1"], "AAAA": Status.FAILED}})) == ["127.0.0.1"]


def test_null_mx_and_none() -> None:
    assert refused(look_up({"d.test": {"MX": [(0, ".")], "A": ["127.0.0.1"]}})) == "556 5.1.10"
    assert refused(look_up({})) == "550 5.1.2"
    assert refused(look_up({"d.test": Status.FAILED})) == "451 4.4.3"
    mixed = {"d.test": {"MX": [(0, "."), (5, "a.test")]}, "a.test": {"A": ["127.0.0.1"]}}
    assert names(look_up(mixed)) == ["127.0.0.1"]


def test_hosts_without_addresses() -> None:
    assert refused(look_up({"d.test": {"MX": [(1, "gone.test")], "A": ["127.0.0.1"]}})) == "550 5.4.4", (
        "no implicit MX then"
    )
    some = {"d.test": {"MX": [(1, "gone.test"), (2, "a.test")]}, "a.test": {"A": ["127.0.0.1"]}}
    assert names(look_up(some)) == ["127.0.0.1"]
    assert refused(look_up({"d.test": {"MX": [(1, "x.test")]}, "x.test": Status.FAILED})) == "451 4.4.3"


def test_ourselves() -> None:
    def is_me(host: str, address: str) -> bool:
        return host == "me.test"

    zones = {
        "d.test": {"MX": [(10, "better.test"), (20, "me.test"), (20, "equal.test"), (30, "worse.test")]},
        **{f"{n}.test": {"A": [f"127.0.0.{i}"]} for i, n in enumerate(("better", "me", "equal", "worse"), 1)},
    }
    assert names(look_up(zones, is_ourselves=is_me)) == ["127.0.0.1"], "only who is better than we are"
    zones["d.test"] = {"MX": [(20, "me.test"), (30, "worse.test")]}
    assert refused(look_up(zones, is_ourselves=is_me)) == "554 5.4.6"
    assert refused(look_up({"me.test": {"A": ["127.0.0.1"]}}, "me.test", is_ourselves=is_me)) == "554 5.4.6"
    zones["d.test"] = {"MX": [(10, "better.test"), (20, "me.test")]}
    zones["better.test"] = Status.FAILED
    assert refused(look_up(zones, is_ourselves=is_me)) == "451 4.4.3", "it may come back"


def test_literals() -> None:
    assert names(look_up({}, "[127.0.0.7]")) == ["127.0.0.7"]
    assert names(look_up({}, "[IPv6:::1]")) == ["::1"]
    assert refused(look_up({}, "[127.0.0.7]", networks=())) == "550 5.4.4"


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "172.16.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255",
     "100.64.0.1", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_private_targets_are_refused(address: str) -> None:
    kind = "AAAA" if ":" in address else "A"
    assert refused(look_up({"d.test": {kind: [address]}}, networks=())) == "550 5.4.4"
    public = {
        "d.test": {"MX": [(1, "x.test"), (2, "y.test")]},
        "x.test": {kind: [address]},
        "y.test": {"A": ["9.9.9.9"]},
    }
    assert names(look_up(public, networks=())) == ["9.9.9.9"], "the others serve"


def test_mx_that_is_no_host_name() -> None:
    cname = {
        "d.test": {"MX": [(1, "alias.test")]},
        "alias.test": {"A": Answer(Status.FOUND, ("127.0.0.1",), 9, "", "real.test")},
    }
    assert refused(look_up(cname)) == "550 5.4.4"
    assert names(look_up(cname, may_be_cname=True)) == ["127.0.0.1"]
    for host in ("192.0.2.1", "localhost", "foo.localhost"):
        assert refused(look_up({"d.test": {"MX": [(1, host)]}})) == "550 5.4.4"


def test_five_hundred_of_five_hundred() -> None:
    zones: dict[str, Any] = {"d.test": {"MX": [(n % 7, f"h{n}.test") for n in range(500)]}}
    for n in range(500):
        zones[f"h{n}.test"] = {"A": [f"127.{n // 250}.{n % 250}.{k % 250}" for k in range(500)]}
    assert len(names(look_up(zones))) == MAX_TARGETS


def test_target_names() -> None:
    assert Target("mx.test", 25, address="192.0.2.1").name == "mx.test[192.0.2.1]:25"
    assert Target("::1", 25).name == "[::1]:25" and Target("mx.test", 25).name == "mx.test:25"
