"""AnyServer: PLAIN and LOGIN of a server that lets every client in, as `pillarbox dev` does."""

from __future__ import annotations

import pytest

from pillarbox.smtp.sasl import AnyServer, SaslFault


@pytest.mark.parametrize(
    ("response", "username", "password"),
    [
        (b"\0user\0secret", "user", "secret"),
        (b"admin\0\0secret", "admin", "secret"),
        (b"user\0secret", "user", "secret"),
        (b"\0\xe9\0\xff", "é", "ÿ"),
        ("\0jürgen\0größe".encode(), "jürgen", "größe"),
    ],
)
def test_any_server_plain_takes_fields_as_they_are(response: bytes, username: str, password: str) -> None:
    server = AnyServer("PLAIN")
    assert server.step(None) == b""
    given = server.step(response)
    assert (given.username, given.password) == (username, password)  # type: ignore[union-attr]


def test_any_server_plain_without_fields_is_refused() -> None:
    with pytest.raises(SaslFault):
        AnyServer("PLAIN").step(b"user")


@pytest.mark.parametrize("first", [None, b"us\xe9r"])
def test_any_server_login_asks_for_what_is_missing(first: bytes | None) -> None:
    server = AnyServer("LOGIN")
    if first is None:
        assert server.step(None) == b"Username:"
    assert server.step(b"us\xe9r") == b"Password:"
    given = server.step(b"secret")
    assert (given.username, given.password) == ("usér", "secret")  # type: ignore[union-attr]
