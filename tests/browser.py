"""Headless Chromium for the tests that look at pages; screenshots go to $SCREENSHOTS, else to the test's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tool

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def browsing(base: str, *, is_hostile: bool = False) -> Iterator[Any]:
    """A page; at the end it must not have complained, nor asked any other host than `base`.

    `is_hostile`: the page shows a message that tries to load and run something; the browser reports what it has blocked.
    """
    if os.environ.get("CI"):
        import playwright.sync_api as playwright
    else:
        playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=tool("chromium"), args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1100, "height": 800})
            complaints: list[str] = []
            blocked = re.compile("Content Security Policy|Blocked script execution|ERR_BLOCKED_BY_CSP")
            page.on(
                "console",
                lambda message: (
                    complaints.append(message.text)
                    if message.type == "error" and not (is_hostile and blocked.search(message.text))
                    else None
                ),
            )
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "requestfinished" if is_hostile else "request",
                lambda r: complaints.append(r.url) if not r.url.startswith((base, "data:")) else None,
            )
            yield page
            assert complaints == []
        finally:
            browser.close()


def follow(page: Any, selector: str) -> None:
    """Click what leads to another page, or to this one anew, and wait until that one has loaded with its script.

    A click alone comes back before the new page is there, and a button of a page whose script has not run yet does nothing.
    """
    with page.expect_navigation():
        page.click(selector)


def shots(folder: Path) -> Path:
    """Where screenshots go."""
    found = Path(os.environ.get("SCREENSHOTS") or folder / "shots").resolve()
    found.mkdir(parents=True, exist_ok=True)
    return found
