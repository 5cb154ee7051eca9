"""A transaction that went ahead of another's final reply, and goes another way."""

from __future__ import annotations

import pytest

from pillarbox.smtp.client import Happened
from pillarbox.smtp.state import ClientState
from tests.smtp.test_protocols import greeted, sent_content, transaction


@pytest.mark.parametrize(
    "behind", [b"", b"250 ok\r\n250 ok\r\n354 go\r\n"], ids=["alone", "with the replies behind it"]
)
@pytest.mark.parametrize("final", [b"250 2.0.0 taken\r\n", b"554 5.7.1 no\r\n", b""])
def test_what_went_ahead_is_taken_back(final: bytes, behind: bytes) -> None:
    client, first, ahead = greeted(), transaction(), transaction("e@d.test")
    client.start_transaction(first)
    assert client.take_back() is None, "there is nobody behind whom it could be"
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert client.next_event() is Happened.WANTS_CONTENT and sent_content(client) == b"body\r\n.\r\n"
    assert client.take_back() is None
    client.start_transaction(ahead)
    assert client.take_back() is ahead and client.take_back() is None and client.open_transactions == [first]
    assert not client.can_start and not ahead.is_content_begun and ahead.outcomes == [None]
    if final:
        client.receive_data(final + behind)
    else:
        client.receive_eof()
    assert client.next_event() is Happened.DONE and client.pop_done() is first
    outcome = first.outcomes[0]
    assert outcome is not None and outcome.is_delivered == final.startswith(b"2")
    assert outcome.reply.code == int(final[:3] or b"451")
    # Nothing more may be said to it, and nothing is heard of the other one.
    assert client.next_event() is Happened.CLOSED and client.next_event() is None
    assert client.state is ClientState.CLOSED and not client.can_start and ahead.outcomes == [None]


def test_what_has_begun_is_not_taken_back() -> None:
    client, first, second = greeted(), transaction(), transaction("e@d.test")
    client.start_transaction(first)
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    sent_content(client)
    client.start_transaction(second)
    client.receive_data(b"250 2.0.0 taken\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert client.is_content_wanted and client.take_back() is None
    sent_content(client)
    assert client.take_back() is None
