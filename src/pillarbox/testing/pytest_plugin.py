"""The pytest plugin: fixtures `smtp_server`, `smtp_server_factory` and `inbox`. pytest finds it once Pillarbox is installed.

    def test_welcome(smtp_server, inbox):
        register("me@example.org", smtp_host=smtp_server.host, smtp_port=smtp_server.port)
        assert "Welcome" in inbox.wait_for(to="me@example.org").subject

Options by a mark: `@pytest.mark.smtp_server(tls=True, auth={"user": "password"})`. Nothing is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .server import SmtpServer, TestInbox


def pytest_configure(config: pytest.Config) -> None:
    """The mark is known."""
    config.addinivalue_line(
        "markers", "smtp_server(**options): options of the fixture smtp_server, see pillarbox.testing.SmtpServer"
    )


@pytest.fixture
def smtp_server_factory() -> Iterator[Callable[..., SmtpServer]]:
    """`smtp_server_factory(**options)`: further servers, each on a port of its own; they end with the test."""
    from .server import SmtpServer

    with ExitStack() as running:
        yield lambda **options: running.enter_context(SmtpServer(**options))


@pytest.fixture
def smtp_server(request: pytest.FixtureRequest, smtp_server_factory: Callable[..., Any]) -> SmtpServer:
    """A server on a free port that takes everything and delivers nothing; it listens when the test begins."""
    mark = request.node.get_closest_marker("smtp_server")
    server: SmtpServer = smtp_server_factory(**(mark.kwargs if mark is not None else {}))
    return server


@pytest.fixture
def inbox(smtp_server: SmtpServer) -> TestInbox:
    """What came to `smtp_server`: `inbox.wait_for(to=..., subject=...)`, `inbox.messages()`, `inbox.clear()`."""
    return smtp_server.inbox
