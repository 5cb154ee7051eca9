"""The table of planted faults fits the code: each text occurs once, each finder exists. `make mutants ARGS=--all` runs them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOT, find, plant
from tests.mutants.faults import load
from tests.mutants.model import SIMULATION, Edit, Fault

FAULTS = load()


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_names_text_that_occurs_once_and_stays_python(name: str) -> None:
    for edit in FAULTS[name][1].edits:
        text = (ROOT / "src" / "pillarbox" / edit.file).read_text(encoding="utf-8")
        assert text.count(edit.old) == 1 and edit.old != edit.new, edit
        if edit.file.endswith(".py"):
            compile(text.replace(edit.old, edit.new), edit.file, "exec")


def test_every_room_of_the_server_has_planted_faults() -> None:
    rooms = {room for room, _ in FAULTS.values()}
    assert len(FAULTS) >= 60 and len(rooms) >= 10, sorted(rooms)


def test_finders_of_planted_faults_exist() -> None:
    files = {
        finder.partition("::")[0]
        for _, fault in FAULTS.values()
        for finder in fault.finders
        if finder.startswith("tests/")
    }
    assert all((ROOT / file).exists() for file in files), sorted(files)
    assert all(fault.finders for _, fault in FAULTS.values())
    nodes = sorted({finder for _, fault in FAULTS.values() for finder in fault.finders if "::" in finder})
    if nodes:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *nodes]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stdout[-2000:]


def test_fault_whose_text_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "src" / "pillarbox").mkdir(parents=True)
    (tmp_path / "src" / "pillarbox" / "clock.py").write_text("a = 1\na = 1\n")
    for old in ("b = 2", "a = 1"):
        with pytest.raises(ValueError, match="expected the text once"):
            plant(Fault("x", (Edit("clock.py", old, "c"),), (SIMULATION,)), tmp_path)


def test_fault_that_no_finder_notices_is_reported_as_not_found(tmp_path: Path) -> None:
    text = (ROOT / "src" / "pillarbox" / "cli" / "__init__.py").read_text(encoding="utf-8")
    finder = "tests/test_mutants.py::test_fault_whose_text_is_gone_is_refused"
    harmless = Fault("harmless", (Edit("cli/__init__.py", text, f"{text}# no effect\n"),), (finder,))
    assert find(harmless, tmp_path).finder is None


def test_finder_that_does_not_exist_proves_nothing(tmp_path: Path) -> None:
    text = (ROOT / "src" / "pillarbox" / "cli" / "__init__.py").read_text(encoding="utf-8")
    wrong = Fault("wrong", (Edit("cli/__init__.py", text, f"{text}# no effect\n"),), ("tests/test_nothing.py",))
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        find(wrong, tmp_path)


def test_planted_faults_are_spread_over_every_room() -> None:
    rooms = Counter(room for room, _ in FAULTS.values())
    assert len(FAULTS) >= 60 and len(rooms) >= 10, rooms
    wanted = {
        "admission", "client", "control", "delivery", "dsn", "durability", "framing", "headers", "leases", "mx", "permissions", "plugins", "relay_rules",
        "retry", "simulated", "stores", "tls_receiving", "tls_sending", "tokens",
    }  # fmt: skip
    assert wanted <= set(rooms), wanted - set(rooms)
