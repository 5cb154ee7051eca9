"""The PROXY protocol, versions 1 and 2: who a load balancer says that its client is (haproxy.org, proxy-protocol.txt).

Only named balancers are asked, and they must say it: their header comes before everything else, also before TLS. From
anybody else the same octets are a command that nobody knows. Nothing behind the header is read here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from dataclasses import dataclass

from ..events.session import Endpoint

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1 = b"PROXY "
# The longest that version 1 can be; version 2 says its length, and may carry more than we want to know.
MAX_V1_BYTES = 107
MAX_V2_BYTES = 16 + 4096
HEADER_S = 5.0
# Address families of version 2: size of the block, of an address in it.
_FAMILIES = {0x11: (12, 4), 0x21: (36, 16)}


class ProxyFault(ValueError):
    """What came is no PROXY header."""


@dataclass(frozen=True, slots=True)
class Proxied:
    """Both ends of the connection to the balancer. None: the balancer speaks for itself (LOCAL, UNKNOWN)."""

    peer: Endpoint | None = None
    local: Endpoint | None = None


def missing(octets: bytes) -> int:
    """How many octets more belong to the header in any case; 0: it is whole. ProxyFault when it cannot become one."""
    if SIGNATURE.startswith(octets) or octets.startswith(SIGNATURE):
        if len(octets) < 16:
            # Not more than version 1 could have, while it may still be that.
            return (16 if len(octets) >= len(SIGNATURE) else len(SIGNATURE)) - len(octets)
        total: int = 16 + struct.unpack_from("!H", octets, 14)[0]
        if total > MAX_V2_BYTES:
            raise ProxyFault(f"version 2 with {total} octets: {MAX_V2_BYTES} are allowed")
        return total - len(octets)
    if not (octets.startswith(_V1) or _V1.startswith(octets)):
        raise ProxyFault("no PROXY header")
    if octets.endswith(b"\r\n"):
        return 0
    if len(octets) >= MAX_V1_BYTES or b"\n" in octets:
        raise ProxyFault("version 1 without CRLF within 107 octets")
    # The shortest is "PROXY UNKNOWN" and its line end.
    return min(max(1 if octets.endswith(b"\r") else 2, 15 - len(octets)), MAX_V1_BYTES - len(octets))


def parse(octets: bytes) -> Proxied:
    """A whole header. ProxyFault says what is wrong with it."""
    if octets.startswith(SIGNATURE):
        return _parse_v2(octets)
    words = octets[:-2].split(b" ")
    if words[:2] == [b"PROXY", b"UNKNOWN"]:
        return Proxied()
    if len(words) != 6 or words[0] != b"PROXY" or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyFault("version 1: PROXY TCP4|TCP6 source destination port port is wanted")
    version = 4 if words[1] == b"TCP4" else 6
    hosts = [_host(word, version) for word in words[2:4]]
    ports = [_port(word) for word in words[4:6]]
    return Proxied(Endpoint(hosts[0], ports[0]), Endpoint(hosts[1], ports[1]))


def _host(word: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(word.decode("ascii"))
    except ValueError:
        raise ProxyFault("version 1: an address is none") from None
    if address.version != version or "%" in str(address):
        raise ProxyFault("version 1: an address is of another family")
    return str(address)


def _port(word: bytes) -> int:
    if not (word.isdigit() and len(word) <= 5 and int(word) <= 65535 and (word == b"0" or word[:1] != b"0")):
        raise ProxyFault("version 1: a port is none")
    return int(word)


def _parse_v2(octets: bytes) -> Proxied:
    version, command, family = octets[12] >> 4, octets[12] & 15, octets[13]
    if version != 2 or command > 1:
        raise ProxyFault(f"version 2: octet 13 is {octets[12]:#04x}")
    if command == 0 or family == 0:
        return Proxied()
    if family not in _FAMILIES:
        raise ProxyFault(f"version 2: family and transport {family:#04x} are no TCP")
    size, width = _FAMILIES[family]
    block = octets[16 : 16 + size]
    if len(block) < size:
        raise ProxyFault("version 2: shorter than its addresses")
    hosts = [str(ipaddress.ip_address(block[at : at + width])) for at in (0, width)]
    source, destination = struct.unpack_from("!HH", block, 2 * width)
    return Proxied(Endpoint(hosts[0], source), Endpoint(hosts[1], destination))


async def receive(sock: socket.socket) -> Proxied:
    """The header of a connection, and not one octet more. ProxyFault, OSError."""
    loop = asyncio.get_running_loop()
    octets = b""
    while wanted := missing(octets):
        more = await loop.sock_recv(sock, wanted)
        if not more:
            raise ProxyFault("closed before its PROXY header was whole")
        octets += more
    return parse(octets)
