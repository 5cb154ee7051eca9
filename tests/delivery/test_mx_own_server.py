"""MX lists that lead to this very server, to forbidden hosts or to hosts without an answer: what may be tried, and why not."""

from __future__ import annotations

from typing import Any

import pytest

from pillarbox.delivery.mx import MAX_ADDRESSES, MAX_HOSTS
from pillarbox.dns import Answer, Status
from tests.delivery.test_dns_mx import look_up, names, refused

ZONES: dict[str, Any] = {
    **{f"h{n}.test": {"A": [f"127.0.0.{n}"]} for n in range(1, 9)},
    "me.test": {"A": ["127.0.0.99"]},
    "private.test": {"A": ["10.0.0.1"]},
    "broken.test": Status.FAILED,
    "alias.test": {"A": Answer(Status.FOUND, ("127.0.0.50",), 9, "", "real.test")},
    "localhost": {"A": ["127.0.0.60"]},
    "x.localhost": {"A": ["127.0.0.61"]},
}


def by_name(host: str, address: str) -> bool:
    return host == "me.test"


def by_address(host: str, address: str) -> bool:
    return address == "127.0.0.99"


LOOP, LATER, FORBIDDEN, UNRESOLVED = "554 5.4.6", "451 4.4.3", "550 5.4.4", "550 5.4.4"


@pytest.mark.parametrize("is_ourselves", [by_name, by_address])
@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        # RFC 5321 section 5.1: hosts that are no better than this server are left out, those that are better are tried.
        ("1 h1, 2 me", ["127.0.0.1"]),
        ("1 h1, 2 h2, 3 me, 4 h4", ["127.0.0.1", "127.0.0.2"]),
        ("1 h1, 2 me, 2 h2", ["127.0.0.1"]),
        ("1 me, 1 h1", LOOP),
        ("1 me, 2 h1", LOOP),
        ("1 me", LOOP),
        ("0 me, 0 h1, 0 h2", LOOP),
        ("1 h1, 2 me, 3 me", ["127.0.0.1"]),
        ("1 h1, 3 me, 2 me, 2 h2", ["127.0.0.1"]),
        # A better host that has no answer now may have one later; one that is no better changes nothing.
        ("1 broken, 2 me", LATER),
        ("1 me, 2 broken", LOOP),
        ("1 me, 1 broken", LOOP),
        ("1 broken, 2 h1, 3 me", ["127.0.0.1"]),
        # A better host that can never be used does not stand between the domain and this server.
        ("1 gone, 2 me", LOOP),
        ("1 me, 2 gone", LOOP),
    ],
)
def test_hosts_no_better_than_this_server_are_left_out(is_ourselves: Any, hosts: str, expected: Any) -> None:
    check(hosts, expected, is_ourselves=is_ourselves)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("1 h1, 2 h2", ["127.0.0.1", "127.0.0.2"]),
        ("2 h2, 1 h1, 10 h3", ["127.0.0.1", "127.0.0.2", "127.0.0.3"]),
        ("1 private", FORBIDDEN),
        ("1 private, 2 h1", ["127.0.0.1"]),
        ("1 private, 2 broken", LATER),
        ("1 alias", FORBIDDEN),
        ("1 alias, 2 h1", ["127.0.0.1"]),
        # The name of this machine, in whatever form, is nobody's MX, though it has an address.
        ("1 localhost", FORBIDDEN),
        ("1 x.localhost", FORBIDDEN),
        ("1 localhost, 2 h1", ["127.0.0.1"]),
        ("1 127.0.0.1", FORBIDDEN),
        ("1 ::1, 2 h1", ["127.0.0.1"]),
        ("1 gone", UNRESOLVED),
        ("1 gone, 2 broken", LATER),
        ("1 gone, 2 h1", ["127.0.0.1"]),
        ("1 broken, 2 h1", ["127.0.0.1"]),
    ],
)
def test_mx_hosts_that_cannot_be_used_give_way_to_those_that_can(hosts: str, expected: Any) -> None:
    networks = look_up.__globals__["TEST_NET"]
    check(hosts, expected, networks=networks)


def check(hosts: str, expected: Any, **policy: Any) -> None:
    records = []
    for pair in hosts.split(", "):
        preference, host = pair.split()
        bare = "." in host or ":" in host or host == "localhost"
        records.append((int(preference), host if bare else f"{host}.test"))
    found = look_up({**ZONES, "d.test": {"MX": records}}, **policy)
    assert (names(found) if isinstance(expected, list) else refused(found)) == expected


@pytest.mark.parametrize(
    ("hosts", "text"),
    [("1 gone", "has an address"), ("1 localhost", "private address"), ("1 private", "private address")],
)
def test_refusal_of_an_mx_says_what_is_wrong_with_it(hosts: str, text: str) -> None:
    records = [(1, host if host == "localhost" else f"{host}.test") for host in [hosts.split()[1]]]
    assert text in str(look_up({**ZONES, "d.test": {"MX": records}}))


def test_domain_without_mx_may_be_an_alias() -> None:
    """RFC 5321 section 5.1: the domain itself may be a CNAME; only the name in an MX record may not."""
    assert names(look_up(ZONES, "alias.test")) == ["127.0.0.50"]


@pytest.mark.parametrize("is_ourselves", [by_name, by_address])
def test_domain_without_mx_that_is_this_server_is_a_loop(is_ourselves: Any) -> None:
    assert refused(look_up(ZONES, "me.test", is_ourselves=is_ourselves)) == LOOP


def test_address_literal_of_this_server_is_a_loop() -> None:
    assert refused(look_up({}, "[127.0.0.99]", is_ourselves=by_address)) == LOOP


def test_domain_with_a_private_address_and_no_answer_waits() -> None:
    zones = {"d.test": {"A": ["10.0.0.1"], "AAAA": Status.FAILED}}
    assert refused(look_up(zones)) == FORBIDDEN
    assert refused(look_up({"d.test": {"AAAA": Status.FAILED}})) == LATER


def test_addresses_and_hosts_that_are_tried_are_bounded() -> None:
    many = {"d.test": {"MX": [(1, "many.test")]}, "many.test": {"A": [f"127.0.1.{n}" for n in range(50)]}}
    assert len(names(look_up(many))) == MAX_ADDRESSES == 8
    hosts = {"d.test": {"MX": [(n, f"n{n}.test") for n in range(60)]}}
    hosts |= {f"n{n}.test": {"A": [f"127.0.2.{n}"]} for n in range(60)}
    assert names(look_up(hosts)) == [f"127.0.2.{n}" for n in range(MAX_HOSTS)]


def test_targets_keep_name_port_and_address() -> None:
    zones = {"d.test": {"MX": [(1, "h1.test")]}, "h1.test": {"A": ["127.0.0.1"]}}
    (target,) = look_up(zones, port=2525)  # type: ignore[misc]
    assert (target.host, target.port, target.address, target.is_tls) == ("h1.test", 2525, "127.0.0.1", False)


def test_failed_mx_look_up_is_not_taken_for_a_domain_without_mx() -> None:
    """RFC 5321 section 5.1: an implicit MX is for domains without MX; where that is not known the mail waits."""
    assert refused(look_up({"d.test": {"MX": Status.FAILED, "A": ["127.0.0.1"]}})) == LATER
    assert refused(look_up({"d.test": {"MX": Status.NO_NAME, "A": ["127.0.0.1"]}})) == "550 5.1.2"
    assert names(look_up({"d.test": {"MX": Status.NO_DATA, "A": ["127.0.0.1"]}})) == ["127.0.0.1"]


def test_failed_mx_look_up_says_why() -> None:
    zones = {"d.test": {"MX": Answer(Status.FAILED, reason="SERVFAIL from 192.0.2.53")}}
    assert "SERVFAIL from 192.0.2.53" in str(look_up(zones))


@pytest.mark.parametrize("address", ["::ffff:9.9.9.9", "64:ff9b::909:909", "2002:909:909::1", "2600::1"])
def test_public_address_inside_an_ipv6_form_of_ipv4_may_be_used(address: str) -> None:
    assert names(look_up({"d.test": {"AAAA": [address]}}, networks=())) == [address]
