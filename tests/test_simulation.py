"""The simulation (docs/explanation/simulation.md): a seed means the same everywhere, and faults planted on purpose are found.

The thousands of seeds are `make sim`, which `.ci/run` calls.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.__main__ import find
from tests.mutants.faults import load
from tests.mutants.model import SIMULATION

# Those that many worlds do not show: half a minute, for CI and for `make mutants`.
RARE = {"timer not armed again", "outcome forgotten when the disk fails"}
SIMULATED = {name: fault for name, (_, fault) in load().items() if fault.finders == (SIMULATION,)}


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    command = [sys.executable, "-m", "tests.sim", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_some_worlds() -> None:
    done = simulate("--seeds", "60", "--jobs", "1")
    assert done.returncode == 0 and "60 worlds" in done.stdout and "every invariant holds" in done.stdout, done.stdout


@pytest.mark.parametrize("seed", [7, 40, 150])
def test_a_seed_replays_exactly(seed: int) -> None:
    first, second = (simulate("--trace", str(seed)) for _ in range(2))
    assert first.returncode == 0 and "digest" in first.stdout and first.stdout == second.stdout
    assert " 250 for " in first.stdout and " took " in first.stdout


@pytest.mark.parametrize("name", sorted(SIMULATED if os.environ.get("CI") else set(SIMULATED) - RARE))
def test_a_fault_planted_on_purpose_is_found(tmp_path: Path, name: str) -> None:
    finding = find(SIMULATED[name], tmp_path)
    assert finding.finder is not None, finding.text
