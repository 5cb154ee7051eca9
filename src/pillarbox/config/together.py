"""Options that contradict each other, and such as most likely are a mistake: read together, never one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..places import LOGIN_SCHEMES, TLS_SCHEMES

# (the smaller, the larger, what comes of it otherwise): of two that are both given the second must not be less.
_ORDERED = (
    ("retry_first_s", "retry_longest_s", "the first pause would be longer than the longest"),
    ("retry_longest_s", "expire_s", "a message would expire before its second attempt"),
    ("retry_first_s", "expire_s", "a message would expire before its second attempt"),
    ("delay_notice_s", "expire_s", "the message would expire before its sender is notified"),
    ("maxrelay_per_next_hop", "maxrelay", "one next hop cannot have more connections than all"),
)


def contradictions(options: Any) -> Iterator[str]:
    """A line for each pair of options that cannot be meant so."""
    if options.queue and options.store != "sqlite":
        yield f"queue and store {options.store} are both given: one of them keeps the mail"
    if options.tls_key and not options.tls_cert:
        yield "tls_key is given without tls_cert: give both"
    if options.dnsbl_enable and not options.dnsbl:
        yield "dnsbl_enable is given without a list: name one in dnsbl"
    yield from _of_relay(options)
    if options.authenticator is not None and options.auth_file:
        yield "authenticator and auth_file are both given: one of them decides"
    schemes = {scheme for scheme, _, _ in options.listeners}
    secure = sorted(schemes & (TLS_SCHEMES | LOGIN_SCHEMES))
    if secure and not options.tls_cert:
        yield f"listen has {secure[0]}:// but there is no tls_cert: give a certificate"
    logins = sorted(schemes & LOGIN_SCHEMES)
    if logins and options.simple and options.authenticator is None and not options.auth_file:
        yield f"listen has {logins[0]}:// but nobody can log in: give auth_file or authenticator"
    for low, high, why in _pairs(options):
        if {low, high} <= options.model_fields_set:
            yield _order_text(options, low, high, why)


def doubts(options: Any) -> Iterator[str]:
    """A line for each option that will have no effect, or another than its name says."""
    for low, high, why in _pairs(options):
        # Of the defaults the one gives way to what is given for the other.
        if low in options.model_fields_set and high not in options.model_fields_set:
            yield _order_text(options, low, high, why)
    if options.listen:
        for name in ("port", "address"):
            if name in options.model_fields_set:
                yield f"{name} has no effect beside listen: write HOST:PORT into listen and leave {name} out"
    if options.verify_recipients and not (options.relay and options.domains_via == "relay"):
        yield 'verify_recipients has no effect: it asks the relay, so give relay and domains_via = "relay"'
    if options.relay_user and not options.relay:
        yield "relay_user is given without relay: name the smart host that it is for"
    offers = options.auth_file or options.authenticator is not None
    if offers and not options.tls_cert and not options.auth_in_clear and options.simple:
        name = "auth_file" if options.auth_file else "authenticator"
        yield f"{name} is given without tls_cert: AUTH is offered under TLS only, so nobody can log in; give tls_cert"


def _pairs(options: Any) -> Iterator[tuple[str, str, str]]:
    for low, high, why in _ORDERED:
        smaller, larger = getattr(options, low), getattr(options, high)
        if smaller is not None and smaller > larger:
            yield low, high, why


def _order_text(options: Any, low: str, high: str, why: str) -> str:
    return f"{low} ({getattr(options, low):g}) is more than {high} ({getattr(options, high):g}): {why}"


def _of_relay(options: Any) -> Iterator[str]:
    if options.relay_auth and not options.relay_user:
        yield "relay_auth is given without relay_user and relay_pass: give all three"
    if bool(options.relay_user) != bool(options.relay_pass):
        yield "relay_user and relay_pass belong together: give both or none"
    if options.relay_user and options.relay_tls in ("none", "may") and not options.relay_auth_in_clear:
        yield (
            "relay_user with relay_tls none or may could send the password in clear: "
            "use relay_tls verify, or allow it with relay_auth_in_clear"
        )
    # SCRAM does not send the password, and has the server prove that it knows it.
    is_allowed = options.relay_auth_unverified or options.relay_auth_in_clear or options.relay_auth == "SCRAM-SHA-256"
    if options.relay_user and options.relay_tls == "encrypt" and not is_allowed:
        yield (
            "relay_user with relay_tls encrypt sends the password to any server, with whatever certificate: "
            "use relay_tls verify (relay_ca names a CA of your own), or allow it with relay_auth_unverified"
        )
