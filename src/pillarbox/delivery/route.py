"""Where a recipient's copy goes next. For now: the smart hosts of `relay`, in order."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import parse_endpoint


@dataclass(frozen=True, slots=True)
class Target:
    """One server to try. `is_tls` means TLS from the first octet (smtps://)."""

    host: str
    port: int
    is_tls: bool = False

    @property
    def name(self) -> str:
        """host:port for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class NextHop:
    """A place for copies to go: a key that the queue keeps, and the servers behind it, in order of preference."""

    key: str
    targets: tuple[Target, ...]


def relay_next_hop(relay: list[str]) -> NextHop | None:
    """The smart hosts as one next hop, None without any."""
    targets = []
    for text in relay:
        scheme, host, port = parse_endpoint(text, default_port=25)
        targets.append(Target(host, port, scheme == "smtps"))
    if not targets:
        return None
    return NextHop("relay:" + ",".join(target.name for target in targets), tuple(targets))
