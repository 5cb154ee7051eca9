"""Which addresses of our own domains exist: the option `recipients`, and the role addresses of RFC 5321 and RFC 2142."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..smtp.address import comparable_domain, split_mailbox

# RFC 5321 section 4.5.1 and RFC 2142 section 4: taken at each of our domains, whatever lists say.
ROLES = frozenset(("postmaster", "abuse"))
# RFC 2505 section 2.7: what may name another host within a local-part.
_ROUTE_MARKS = frozenset("@%!")


def is_role(address: str) -> bool:
    """True for postmaster and abuse at any domain, and for <postmaster> alone; in any case (RFC 5321 section 4.5.1)."""
    box = split_mailbox(address)
    local_part = _unquoted(box.local_part).lower()
    return local_part in ROLES if box.domain else local_part == "postmaster"


def has_route(address: str) -> bool:
    """True when the local-part could make the next hop send the message elsewhere: u%host@us, host!u@us, "u@host"@us."""
    return not _ROUTE_MARKS.isdisjoint(split_mailbox(address).local_part)


def _unquoted(local_part: str) -> str:
    if local_part[:1] != '"':
        return local_part
    return re.sub(r"\\(.)", r"\1", local_part[1:-1])


def _comparable(address: str) -> tuple[str, str]:
    """(local-part, domain) as they are compared: the local-part without quotes, in lower case."""
    box = split_mailbox(address)
    return _unquoted(box.local_part).lower(), comparable_domain(box.domain)


class RecipientList:
    """Addresses as `user@example.org`, patterns as `sales-*@example.org`, whole domains as `@example.org`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._addresses: set[tuple[str, str]] = set()
        self._domains: set[str] = set()
        by_domain: dict[str, list[str]] = {}
        for text in patterns:
            if text.startswith("@"):
                self._domains.add(comparable_domain(text[1:]))
            elif "*" in text:
                local_part, domain = _comparable(text)
                by_domain.setdefault(domain, []).append(".*".join(map(re.escape, re.split(r"\*+", local_part))))
            else:
                self._addresses.add(_comparable(text))
        self._patterns = {domain: re.compile("|".join(texts)) for domain, texts in by_domain.items()}

    def has(self, address: str) -> bool:
        """True when the list names the address, or the one without its `+detail` (RFC 5233)."""
        local_part, domain = _comparable(address)
        if domain in self._domains or (local_part, domain) in self._addresses:
            return True
        base, plus, _ = local_part.partition("+")
        if plus and base and (base, domain) in self._addresses:
            return True
        pattern = self._patterns.get(domain)
        return pattern is not None and pattern.fullmatch(local_part) is not None
