"""The table is whole: every row of the original is there, every test is there, and the page says what the table says."""

from __future__ import annotations

import importlib
import subprocess
import sys

from tests.conftest import ROOT
from tests.simplesmtp.table import SECTIONS

# How many rows each part of the original has; a row that is taken out makes this fail.
COUNTS = {
    "Options of `MailServer.spawn`": 22,
    "Methods": 25,
    "Input events": 6,
    "Events": 18,
    "Plugins": 7,
    "Simple mode": 13,
    "Faults of the original, mended": 31,
    "Dialogues": 13,
}


def test_no_row_is_missing() -> None:
    assert {name: len(rows) for name, rows in SECTIONS.items()} == COUNTS


def test_every_row_has_its_test() -> None:
    for rows in SECTIONS.values():
        for row in rows:
            file, _, name = row.test.partition("::")
            module = importlib.import_module("tests.simplesmtp." + file.removesuffix(".py"))
            assert callable(getattr(module, name, None)), row.test


def test_numbers_of_the_faults() -> None:
    numbers = {part for row in SECTIONS["Faults of the original, mended"] for part in row.name.split(", ")}
    assert numbers == {f"B{n}" for n in range(1, 40) if n != 30} | {"B17b"}


def test_the_page_is_the_table() -> None:
    page = (ROOT / "docs" / "coming-from-simplesmtp.md").read_text()
    done = subprocess.run(
        [sys.executable, "-c", "from tools.make_reference import simplesmtp_page; print(simplesmtp_page(), end='')"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == page, "run `make docs`"
