"""Where an MX may point: the public internet, in whatever form an address is written."""

from __future__ import annotations

import pytest

from pillarbox.delivery.mx import MxPolicy
from pillarbox.options import parse_networks

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::10.0.0.1",
    "::8.8.8.8",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:10.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b::a00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "64:ff9b:1::808:808",
    "100::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2002:a00:1::1",
    "2002:7f00:1::1",
    "2620:0:1::5efe:a00:1",
    "2620:0:1::200:5efe:7f00:1",
    "2001:0:a00:1::f5ff:fffe",
    "2001:10::1",
    "2001:2::1",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "93.184.216.34",
    "2606:4700::1111",
    "2a00:1450:4001:82a::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_mx_may_not_point_to_special_address(address: str) -> None:
    assert not MxPolicy().allows(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_mx_may_point_to_public_address(address: str) -> None:
    assert MxPolicy().allows(address)


def test_mx_networks_allow_an_operators_own_in_each_form() -> None:
    policy = MxPolicy(networks=parse_networks(["10.0.0.0/8"]))
    assert policy.allows("10.1.2.3") and policy.allows("::ffff:10.1.2.3") and not policy.allows("192.168.0.1")
