"""A fault at every step loses nothing that had its 250 (row H113); `python -m tests.faults` tries all points and lists them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults import on_journal, on_postgres, on_sqlite, run_all


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgres"])
def test_row_113_a_fault_at_every_step(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    server: Any = request.getfixturevalue("postgres") if kind == "postgres" else None
    on_file = on_journal if kind == "journal" else on_sqlite
    options = on_file if server is None else lambda: on_postgres(server)
    results = list(run_all(tmp_path, options, every=3 if os.environ.get("CI") else 9))
    assert len(results) >= 8 and sum(result.was_reached for result in results) >= 5
    assert [str(result) for result in results if result.lost] == []
