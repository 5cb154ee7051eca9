"""Faults of MX look-up: null MX, order, implicit MX, failures, this server itself, forbidden targets, the cache."""

from __future__ import annotations

from tests.mutants.model import fault

_MX = "delivery/mx.py"
_OWN = "tests/delivery/test_mx_own_server.py"
_DNS = "tests/delivery/test_dns_mx.py"

FAULTS = (
    fault(
        "null MX is not known",
        _MX,
        '        if len(hosts) == 1 and hosts[0][1] == ".":\n            return _NULL_MX\n',
        "",
        f"{_DNS}::test_null_mx_and_none",
    ),
    fault(
        "MX in the order of the answer",
        _MX,
        "        return sorted(hosts, key=lambda host: (host[0], self._rng.random()))\n",
        "        return sorted(hosts, key=lambda host: self._rng.random())\n",
        f"{_DNS}::test_preference_order",
    ),
    fault(
        "a failed MX look-up is an absence",
        _MX,
        "        if answer.status is Status.FAILED:\n            return _failed(domain, answer.reason)\n",
        "",
        f"{_OWN}::test_failed_mx_look_up_is_not_taken_for_a_domain_without_mx",
    ),
    fault(
        "implicit MX beside an MX without an address",
        _MX,
        "        return _FORBIDDEN if found.is_forbidden else _UNRESOLVED\n",
        "        return _FORBIDDEN if found.is_forbidden else await self._implicit(domain)\n",
        f"{_DNS}::test_hosts_without_addresses",
    ),
    fault(
        "hosts as good as this server are tried",
        _MX,
        "            targets = [(p, t) for p, t in targets if p < best]\n",
        "            targets = [(p, t) for p, t in targets if p <= best]\n",
        f"{_OWN}::test_hosts_no_better_than_this_server_are_left_out",
    ),
    fault(
        "hosts behind this server's name are tried",
        _MX,
        "            usable = [(p, h) for p, h in usable if p < own]\n",
        "            usable = [(p, h) for p, h in usable if p != own]\n",
        f"{_OWN}::test_hosts_no_better_than_this_server_are_left_out",
    ),
    fault(
        "localhost as MX",
        _MX,
        '    if host == "localhost" or host.endswith(".localhost"):\n        return False\n',
        "",
        f"{_OWN}::test_mx_hosts_that_cannot_be_used_give_way_to_those_that_can",
    ),
    fault(
        "private addresses as MX",
        _MX,
        "            elif policy.allows(address):\n",
        "            elif address:\n",
        f"{_DNS}::test_private_targets_are_refused",
    ),
    fault(
        "an alias as MX",
        _MX,
        "            found.is_forbidden = True\n            return\n",
        "            found.is_forbidden = True\n",
        f"{_OWN}::test_mx_hosts_that_cannot_be_used_give_way_to_those_that_can",
    ),
    fault(
        "a domain without MX may not be an alias",
        _MX,
        "        if not is_implicit and not policy.may_be_cname and",
        "        if not policy.may_be_cname and",
        f"{_OWN}::test_domain_without_mx_may_be_an_alias",
    ),
    fault(
        "a better host without an answer is forgotten",
        _MX,
        "            found.failures = [(p, reason) for p, reason in found.failures if p < best]\n",
        "            found.failures = []\n",
        f"{_OWN}::test_hosts_no_better_than_this_server_are_left_out",
    ),
    fault(
        "a failed answer is kept as long as another",
        "dns.py",
        "            ttl = FAILURE_S\n",
        "            ttl = LONGEST_NEGATIVE_S\n",
        "tests/delivery/test_resolver_cache.py",
    ),
    fault(
        "an answer outlives its TTL",
        "dns.py",
        "            if self._clock.monotonic() < known[0]:\n",
        "            if self._clock.monotonic() < known[0] + 3600:\n",
        "tests/delivery/test_resolver_cache.py",
    ),
)
