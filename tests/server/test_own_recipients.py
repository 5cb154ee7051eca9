"""Recipients in our own domains: which exist, routes within local-parts, postmaster and abuse."""

from __future__ import annotations

from typing import Any

import pytest

from pillarbox import Handler
from pillarbox.plugins.recipients import RecipientList, has_route, is_role
from tests.conftest import cuts, queued, run_async, wired

WHOLE = cuts(1)[0]
STRANGER = "192.0.2.7"
HELLO = b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\n"


def replies_to(*recipients: str, peer: str = STRANGER, **options: Any) -> list[str]:
    """The replies to RCPT of a client, and the recipients that were queued when one was taken."""
    found: list[str] = []

    async def main() -> None:
        given = {"domains": ["us.test"], "domains_via": "relay", "relay": "127.0.0.1:1", **options}
        async with wired(WHOLE, peer=peer, hostname="mx.test", **given) as (_, wire):
            await wire.ask(HELLO)
            for one in recipients:
                found.extend(await wire.ask(f"RCPT TO:<{one}>\r\n".encode()))

    run_async(main)
    return [reply[:9].strip() for reply in found]


ROUTES = [
    "v%evil.test@us.test", "evil.test!v@us.test", '"v@evil.test"@us.test', '"v%evil.test"@us.test', '"v\\@evil.test"@us.test', "v%us.test@us.test",
    "a!b%c@us.test", "@r.test:v%evil.test@us.test", "v%evil.test@US.TEST.", "%@us.test", "!@us.test", "evil.test!v%us.test@sub.us.test",
]  # fmt: skip


@pytest.mark.parametrize("to", ROUTES)
def test_route_in_the_local_part_of_a_stranger_is_refused(to: str) -> None:
    domains = ["us.test", ".us.test"]
    assert replies_to(to, domains=domains) == ["550 5.7.1"]
    assert replies_to(to, domains=domains, allow_untrusted_routing=True) == ["250 2.1.5"]
    assert replies_to(to, domains=domains, peer="127.0.0.1") == ["250 2.1.5"]
    assert replies_to(to, domains=domains, handlers=[Handler(r"@.*us\.test$", lambda item: None)]) == ["250 2.1.5"]


def test_route_to_an_address_literal_of_ours_is_refused() -> None:
    assert replies_to("u%x.test@[192.0.2.1]", "u@[192.0.2.1]", domains=["[192.0.2.1]"]) == ["550 5.7.1", "250 2.1.5"]
    assert replies_to("u@[127.0.0.1]") == ["550 5.7.1"]


def test_route_marks_are_those_of_the_local_part() -> None:
    assert (
        has_route("a%b@c.test")
        and has_route('"a@b"@c.test')
        and not has_route("a+b=c@d.test")
        and not has_route("postmaster")
    )


def test_recipient_list_refuses_all_others_at_rcpt() -> None:
    options = {"recipients": ["Ann@us.test", "sales-*@us.test", "@all.test"], "domains": ["us.test", "all.test"]}
    known = [
        "ann@us.test",
        "ANN@US.test",
        "ann+x@us.test",
        '"ann"@us.test',
        "sales-eu@us.test",
        "any@all.test",
        "postmaster@us.test",
    ]
    unknown = ["bob@us.test", "annx@us.test", "sales@us.test", "+x@us.test", "xsales-eu@us.test"]
    for peer in (STRANGER, "127.0.0.1"):
        assert replies_to(*known, peer=peer, **options) == ["250 2.1.5"] * len(known)
        assert replies_to(*unknown, peer=peer, **options) == ["550 5.1.1"] * len(unknown)
    assert replies_to("bob@us.test", **options, handlers=[Handler(r"^bob@", lambda item: None)]) == ["250 2.1.5"]


def test_recipient_pattern_has_no_other_meaning_than_its_stars() -> None:
    names = RecipientList(["a.b*@us.test", "x**y@us.test", "*@star.test"])
    assert (
        names.has("a.bc@us.test")
        and not names.has("axbc@us.test")
        and names.has("x1y@us.test")
        and names.has("q@star.test")
    )
    assert not names.has("q@us.test") and names.has("a.b@bücher.test") is False
    assert RecipientList(["u@bücher.test"]).has("u@xn--bcher-kva.test")


@pytest.mark.parametrize("peer", [STRANGER, "127.0.0.1"])
def test_postmaster_and_abuse_are_always_taken(peer: str) -> None:
    roles = ["postmaster", "PostMaster", "postmaster@us.test", "Abuse@us.test", '"postmaster"@us.test']
    for options in ({}, {"relay": []}, {"recipients": ["ann@us.test"]}):
        assert replies_to(*roles, peer=peer, **options) == ["250 2.1.5"] * len(roles)
    assert replies_to("postmaster", peer=peer, domains=[], relay=[]) == ["250 2.1.5"]
    assert replies_to("postmaster@far.test", peer=STRANGER) == ["550 5.7.1"]


def test_role_is_the_whole_local_part() -> None:
    assert (
        is_role("abuse@x.test")
        and not is_role("abuse")
        and not is_role("xpostmaster@x.test")
        and not is_role("postmaster+x@y.test")
    )


def test_mail_to_roles_goes_to_the_option_postmaster() -> None:
    async def main() -> None:
        handlers = [Handler(r"^abuse@handled\.test$", lambda item: None)]
        options = {
            "domains": ["us.test", "handled.test"],
            "postmaster": "admin@far.test",
            "handlers": handlers,
            "domains_via": "relay",
            "paused": True,
        }
        async with wired(WHOLE, peer=STRANGER, relay="127.0.0.1:1", **options) as (server, wire):
            await wire.ask(HELLO)
            for to in ("postmaster", "ABUSE@us.test", "abuse@handled.test", "ann@us.test"):
                assert (await wire.ask(f"RCPT TO:<{to}>\r\n".encode()))[0].startswith("250")
            await wire.ask(b"DATA\r\n")
            assert (await wire.ask(b"Subject: x\r\n\r\nhi\r\n.\r\n"))[0].startswith("250")
            found = {r.address for r in queued(server)[0].recipients}
            assert found == {"admin@far.test", "abuse@handled.test", "ann@us.test"}
            await server.enqueue(
                reverse_path=None, recipients=["postmaster@us.test"], content=b"Subject: x\r\n\r\nhi\r\n"
            )
            assert [r.address for r in queued(server)[1].recipients] == ["admin@far.test"]

    run_async(main)
