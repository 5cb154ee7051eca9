"""The relay rule as a table: whose networks are trusted, which domains are ours, who may send where and as whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pillarbox.config.networks import parse_networks
from pillarbox.events.session import Endpoint, Session
from pillarbox.mail.envelope import Envelope
from pillarbox.options import parse_options
from pillarbox.plugins.recipients import RecipientList, is_role
from pillarbox.plugins.simple import RelayRule, may_send_as
from pillarbox.smtp.address import comparable_domain, comparable_mailbox

DENIED, UNKNOWN = "550 5.7.1", "550 5.1.1"


def rule_of(can_deliver: Callable[[str], bool] = lambda address: True, **options: Any) -> RelayRule:
    given = parse_options({"store": "memory", "direct": False, **options})
    return RelayRule(given.domains, parse_networks(given.trust), can_deliver)


def session_of(*, is_trusted: bool = False, username: str | None = None) -> Session:
    session = Session("s1", Endpoint("192.0.2.7", 4000), Endpoint("192.0.2.1", 25))
    session.is_trusted, session.username = is_trusted, username
    return session


STRANGER, CLIENT, ACCOUNT = session_of(), session_of(is_trusted=True), session_of(username="ann")


def verdict(rule: RelayRule, address: str, session: Session = STRANGER) -> str:
    reply = rule.judge(session, address)
    return "" if reply is None else f"{reply.code} {reply.enhanced}"


@pytest.mark.parametrize(
    ("domain", "is_ours"),
    [
        ("us.test", True), ("US.Test", True), ("us.test.", True), ("sub.us.test", False), ("notus.test", False),
        ("us.test.evil.example", False), ("test", False), ("", False), ("us", False),
        ("below.test", False), ("a.below.test", True), ("A.B.Below.TEST.", True), ("notbelow.test", False), ("a.notbelow.test", False),
        ("xn--mnchen-3ya.test", True), ("m\u00fcnchen.test", True), ("mu\u0308nchen.test", True), ("M\u00dcNCHEN.test", True), ("munchen.test", False),
        ("[192.0.2.1]", True), ("[192.0.2.10]", False), ("192.0.2.1", False),
    ],
)  # fmt: skip
def test_domain_of_ours_is_exact_or_below_a_suffix(domain: str, is_ours: bool) -> None:
    rule = rule_of(domains=["us.test", ".below.test", "m\u00fcnchen.test", "[192.0.2.1]"])
    assert rule.is_ours(domain) is is_ours
    assert verdict(rule, f"u@{domain}") == ("" if is_ours or not domain else DENIED)


@pytest.mark.parametrize(
    ("host", "is_trusted"),
    [
        ("10.1.2.3", True), ("11.1.2.3", False), ("9.255.255.255", False), ("192.0.2.7", True), ("192.0.2.8", False), ("192.0.2.6", False),
        ("::ffff:10.1.2.3", True), ("::ffff:11.1.2.3", False), ("::ffff:192.0.2.7", True), ("::10.1.2.3", False),
        ("2001:db8:1::9", True), ("2001:db8:2::9", False), ("2001:db8:1::9%eth0", True), ("fe80::1%10.1.2.3", False),
        ("", False), ("localhost", False), ("10.1.2", False), ("/run/smtp.sock", False), ("10.1.2.3.example", False),
    ],
)  # fmt: skip
def test_trusted_host_is_an_address_inside_the_networks(host: str, is_trusted: bool) -> None:
    rule = rule_of(domains=["us.test"], trust=["10.0.0.0/8", "192.0.2.7", "2001:db8:1::/48"])
    assert rule.is_trusted(host) is is_trusted
    # The second answer is a remembered one.
    assert rule.is_trusted(host) is is_trusted


def test_change_of_domains_and_networks_counts_immediately() -> None:
    rule = rule_of(domains=["us.test"], trust=["10.0.0.0/8"])
    assert rule.is_trusted("10.1.2.3") and not rule.is_trusted("192.0.2.7")
    other = parse_options({"store": "memory", "direct": False, "domains": ["other.test"], "trust": ["192.0.2.0/24"]})
    rule.change(other.domains, parse_networks(other.trust))
    assert not rule.is_trusted("10.1.2.3") and rule.is_trusted("192.0.2.7")
    assert not rule.is_ours("us.test") and rule.is_ours("other.test")


def test_memory_of_trusted_hosts_is_bounded() -> None:
    rule = rule_of(domains=["us.test"], trust=["10.0.0.0/8"])
    for number in range(10_000):
        rule.is_trusted(f"192.0.{number >> 8}.{number & 255}")
    assert len(rule._trusted) <= 4097


def test_foreign_domain_is_for_trusted_networks_and_accounts_alone() -> None:
    rule = rule_of(domains=["us.test"])
    for address in ("u@them.test", "postmaster@them.test", "u@us.test.evil.example", "u%us.test@them.test"):
        assert verdict(rule, address) == DENIED
        assert verdict(rule, address, CLIENT) == verdict(rule, address, ACCOUNT) == ""


def test_server_without_domains_relays_for_its_own_clients_alone() -> None:
    rule = rule_of()
    assert verdict(rule, "u@them.test") == DENIED
    assert verdict(rule, "u@them.test", CLIENT) == verdict(rule, "postmaster", CLIENT) == ""
    assert not rule.is_own("") and not rule.is_own("us.test")


def test_address_of_ours_that_nothing_can_deliver_is_refused_to_everybody() -> None:
    rule = rule_of(lambda address: address.startswith("known@"), domains=["us.test"])
    for session in (STRANGER, CLIENT, ACCOUNT):
        assert verdict(rule, "other@us.test", session) == UNKNOWN
        assert verdict(rule, "known@us.test", session) == ""
        # RFC 5321 section 4.5.1: these wait in the queue where nothing can deliver them.
        for role in (
            "postmaster",
            "PostMaster",
            "postmaster@us.test",
            "POSTMASTER@US.TEST",
            "abuse@us.test",
            '"abuse"@us.test',
        ):
            assert verdict(rule, role, session) == "", role


def test_address_outside_the_recipient_list_is_refused_to_everybody_unless_handled() -> None:
    rule = rule_of(domains=["us.test"])
    rule.recipients = RecipientList(["ann@us.test"])
    rule.is_handled = lambda address: address.startswith("bot")
    for session in (STRANGER, CLIENT, ACCOUNT):
        assert verdict(rule, "bob@us.test", session) == UNKNOWN
        for address in ("ann@us.test", "ANN@us.test", "ann+x@us.test", "bot@us.test", "postmaster@us.test"):
            assert verdict(rule, address, session) == ""


@pytest.mark.parametrize(
    ("address", "is_listed"),
    [
        ("ann@us.test", True), ("Ann@US.test", True), ('"ann"@us.test', True), ('"a\\nn"@us.test', True), ("ann+news@us.test", True),
        ("ann@other.test", False), ("annn@us.test", False), ("an@us.test", False), ("+ann@us.test", False), ("+@us.test", False),
        ("sales-x@us.test", True), ("sales-@us.test", True), ("sales@us.test", False), ("xsales-y@us.test", False), ("SALES-X@us.test", True),
        ("a.b-eu@us.test", True), ("a.b-eux@us.test", False), ("axb-eu@us.test", False), ("sales-x@all.test", True), ("sales-x@other.test", False),
        ("whoever@all.test", True), ("whoever@sub.all.test", False), ('"who ever"@ALL.test', True),
    ],
)  # fmt: skip
def test_recipient_list_names_addresses_patterns_and_domains(address: str, is_listed: bool) -> None:
    listed = RecipientList(["ann@us.test", "sales-*@us.test", "a.b-eu@us.test", "*.b-eu@us.test", "@all.test"])
    assert listed.has(address) is is_listed


def test_mail_for_the_roles_of_ours_goes_to_the_option_postmaster() -> None:
    rule = rule_of(domains=["us.test"])
    rule.postmaster = "ann@us.test"
    rule.is_handled = lambda address: address == "abuse@us.test"
    ours = [
        "postmaster",
        "PostMaster@us.test",
        "abuse@us.test",
        "postmaster@them.test",
        "bob@us.test",
        '"postmaster"@us.test',
    ]
    envelope = Envelope("a@b.test", [])
    for address in ours:
        envelope.add(address)
    rule.redirect(envelope.recipients)
    got = [one.address for one in envelope.recipients]
    # The handler takes abuse, and the postmaster of another domain is not ours.
    assert got == ["ann@us.test", "ann@us.test", "abuse@us.test", "postmaster@them.test", "bob@us.test", "ann@us.test"]
    rule.postmaster = None
    envelope.add("postmaster")
    rule.redirect(envelope.recipients)
    assert envelope.recipients[-1].address == "postmaster"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postmaster", True), ("POSTMASTER", True), ("abuse", False), ("abuse@x.test", True), ("Abuse@x.test", True), ('"postmaster"@x.test', True),
        ("postmaster+x@x.test", False), ("xpostmaster@x.test", False), ("hostmaster@x.test", False), ("x@postmaster", False),
    ],
)  # fmt: skip
def test_role_address_is_postmaster_or_abuse(address: str, expected: bool) -> None:
    assert is_role(address) is expected


@pytest.mark.parametrize(
    ("senders", "address", "may"),
    [
        ((), "a@b.test", False), (("*",), "a@b.test", True), (("a@b.test",), "a@B.TEST", True), (("a@b.test",), "A@b.test", False),
        (("a@b.test",), "aa@b.test", False), (("a@b.test",), "a@c.b.test", False), (("@b.test",), "any@b.test", True), (("@b.test",), "any@B.test.", True),
        (("@b.test",), "any@sub.b.test", False), (("@b.test",), "any@notb.test", False), (("@b.test",), "any@test", False),
        (("b.test",), "any@b.test", False), (("x@y.test", "a@b.test"), "a@b.test", True), (("@m\u00fcnchen.test",), "a@xn--mnchen-3ya.test", True),
        (("*@b.test",), "any@b.test", False),
    ],
)  # fmt: skip
def test_account_sends_as_its_own_addresses_alone(senders: tuple[str, ...], address: str, may: bool) -> None:
    session = session_of(username="ann")
    session.senders = senders
    assert may_send_as(session, address) is may


def test_domains_of_deviating_letters_are_told_apart() -> None:
    # UTS 46: IDNA 2003 made "strasse" of the first one.
    assert comparable_domain("stra\u00dfe.test") != "strasse.test"
    assert comparable_domain("a\u200db.test") != "ab.test"
    assert comparable_mailbox("u@stra\u00dfe.test") != comparable_mailbox("u@strasse.test")
