"""Networks in CIDR and nameservers, as options have them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from ..places import parse_endpoint

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_network(text: str) -> bool:
    """True for an address or a network in CIDR."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks in CIDR, judged before."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def parse_nameserver(text: str) -> tuple[str, int]:
    """(address, port) of ADDRESS[:PORT], IPV6 or [IPV6]:PORT. ValueError says what is wrong."""
    try:
        return str(ipaddress.ip_address(text)), 53
    except ValueError:
        _, host, port = parse_endpoint(text, default_port=53)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        raise ValueError(
            f"{text!r}: a nameserver is given by its address, such as 192.0.2.53 or [2001:db8::53]:53"
        ) from None
