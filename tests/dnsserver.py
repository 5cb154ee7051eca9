"""A real nameserver on loopback (dnslib), whose zone is a dict that a test may change at any time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from dnslib import AAAA, CNAME, MX, QTYPE, RCODE, RR, SOA, TXT, A
from dnslib.server import DNSLogger, DNSServer

SERVFAIL = "SERVFAIL"
SILENT = "SILENT"
TTL = 300


class Zone:
    """`records[name][kind]`: MX as (preference, host), others as text. A name may be SERVFAIL or SILENT; unknown: NXDOMAIN."""

    def __init__(self, records: dict[str, Any]) -> None:
        self.records = records
        self.asked: list[tuple[str, str]] = []
        self.ttl = TTL
        self.delay_s = 0.0

    def resolve(self, request: Any, handler: Any) -> Any:
        """dnslib's hook."""
        reply = request.reply()
        name, kind = str(request.q.qname).rstrip(".").lower(), QTYPE[request.q.qtype]
        self.asked.append((name, kind))
        if self.delay_s:
            time.sleep(self.delay_s)
        found = self.records.get(name)
        if found == SILENT:
            raise TimeoutError("says nothing")
        if found == SERVFAIL:
            reply.header.rcode = RCODE.SERVFAIL
            return reply
        if found is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif "CNAME" in found:
            target = found["CNAME"]
            reply.add_answer(RR(name, QTYPE.CNAME, rdata=CNAME(target), ttl=self.ttl))
            self._add(reply, target, kind, self.records.get(target, {}))
        else:
            self._add(reply, name, kind, found)
        if not reply.rr:
            reply.add_auth(RR("test", QTYPE.SOA, rdata=SOA("ns.test", "root.test", (1, 60, 60, 60, 60)), ttl=60))
        return reply

    def _add(self, reply: Any, name: str, kind: str, found: dict[str, Any]) -> None:
        make = {"A": A, "AAAA": AAAA, "TXT": TXT, "MX": lambda value: MX(value[1], value[0])}
        for value in found.get(kind, ()):
            reply.add_answer(RR(name, getattr(QTYPE, kind), rdata=make[kind](value), ttl=self.ttl))


@contextlib.contextmanager
def nameserver(records: dict[str, Any]) -> Iterator[tuple[str, Zone]]:
    """("127.0.0.1:PORT", zone) of a nameserver that answers over UDP and TCP."""
    zone = Zone(records)
    logger = DNSLogger(log="-request,-reply,-truncated,-error,-recv,-send,-data", prefix=False)
    while True:
        udp = DNSServer(zone, address="127.0.0.1", port=0, logger=logger)
        port = udp.server.server_address[1]
        try:
            tcp = DNSServer(zone, address="127.0.0.1", port=port, tcp=True, logger=logger)
            break
        except OSError:
            # Somebody has that port for TCP.
            udp.server.server_close()
    udp.server.handle_error = tcp.server.handle_error = lambda *args: None
    for server in (udp, tcp):
        threading.Thread(target=server.server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"127.0.0.1:{port}", zone
    finally:
        for server in (udp, tcp):
            server.server.shutdown()
            server.server.server_close()
