"""What each status of a webhook's receiver means, and what every attempt has in common."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pillarbox import webhook
from pillarbox.delivery.answers import Defer, Reject
from pillarbox.errors import OptionError
from pillarbox.webhook import Webhook, secret_key

ITEM: Any = SimpleNamespace(
    uid="U1", attempt=3, reverse_path="a@b.test", recipients=["c@d.test"], received_at=1.0, facts={}, content=b"x"
)


@pytest.mark.parametrize(
    "status", [200, 202, 299, 300, 301, 302, 308, 400, 401, 404, 405, 408, 410, 413, 415, 422, 429, 500, 503]
)
def test_status_delivers_bounces_or_is_tried_again(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    ids: list[str] = []

    def answered(parts: Any, body: bytes, headers: dict[str, str], *more: Any) -> tuple[int, str]:
        ids.append(headers["webhook-id"])
        return status, ""

    monkeypatch.setattr(webhook, "post", answered)
    if status < 300:
        Webhook("http://app.test/")(ITEM)
    else:
        with pytest.raises(Reject if status in (400, 404, 405, 410, 413, 415, 422) else Defer):
            Webhook("http://app.test/")(ITEM)
    # The id is that of the message, at each attempt.
    assert ids == ["U1"]


def test_tls_of_a_webhook_checks_certificate_and_host_name() -> None:
    tls = Webhook("https://app.test/")._tls
    assert tls is not None and tls.check_hostname and tls.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize("secret", ["", "whsec_"])
def test_empty_secret_is_refused(secret: str) -> None:
    with pytest.raises(OptionError, match="empty"):
        secret_key(secret)
