"""What the bench says of what it measured (bench/report.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bench.__main__
from bench.load import Sample
from bench.report import page, ratios, table
from bench.workloads import Workload


def sample(rate: float, cpu: float = 1.0) -> dict[str, Any]:
    return {"rate": rate, "cpu_s_per_1000": cpu, "peak_mb": 50.0, "p50_ms": None, "p99_ms": None, "notes": {}}


def test_a_ratio_is_of_what_was_measured_in_the_same_round() -> None:
    """The machine was half as fast in the second round, and a little slower for one of them in the third."""
    postfix, ours = [sample(1000), sample(500), sample(900)], [sample(5000), sample(2500), sample(4000)]
    assert ratios(ours, postfix, "rate") == [4000 / 900, 5.0, 5.0]
    report = {
        "at": "2026-11-29T00:00:00Z",
        "python": "3.11",
        "rounds": 3,
        "machine": {"processors": 2, "system": "Linux"},
        "promises": {"postfix": "fsync'd", "pillarbox": "fsync'd"},
        "samples": {"accept": {"postfix": postfix, "pillarbox": ours}},
    }
    (line,) = (line for line in table(report).splitlines() if line.startswith("accept") and "pillarbox" in line)
    assert "4000   5.00x   4.44 to 5.00" in line
    assert "| pillarbox | 4,000 | 5.00x | 4.44 to 5.00 | 1.000 | 1.00x | 50 |  |  |" in page(report)
    assert "| postfix | 900 | 1.00x |  | 1.000 | 1.00x | 50 |  |  |" in page(report)


def test_where_a_round_is_missing_the_median_stands_for_all() -> None:
    assert ratios([sample(2000), sample(4000)], [sample(1000), sample(500), sample(2000)], "rate") == [2.0, 4.0]
    assert ratios([sample(1, 0.5)], [sample(1, 0.0)], "cpu_s_per_1000") == []


class Standing:
    """A peer that only says what becomes of it."""

    promise = "none"
    port = 0

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self._told = told

    def start(self, folder: Path, *, relay_to: int | None) -> None:
        if self.name == "broken":
            raise TimeoutError("nothing greets")
        self._told.append(f"{self.name} starts, in its own folder: {folder.name == self.name and folder.is_dir()}")

    def stop(self) -> None:
        self._told.append(f"{self.name} stops")

    def pids(self) -> list[int]:
        return []


def test_peers_that_are_compared_closely_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def run(peer: Standing, *, sessions: int, count: int, is_reused: bool, size: int) -> Sample:
        told.append(f"{peer.name} takes {count}")
        return Sample(100.0 if peer.name == "a" else 200.0, 0.0, 0.0)

    monkeypatch.setattr(bench.__main__, "accept_run", run)
    monkeypatch.setattr(bench.__main__, "LIVES", 2)
    monkeypatch.setattr(bench.__main__, "TURNS", 5)
    workload = Workload("w", "turns", (), 20, 1000)
    makes = [lambda: Standing("a", told), lambda: Standing("b", told)]
    found = bench.__main__.run_in_turns(makes, workload, tmp_path)
    assert {name: round(sample.rate) for name, sample in found.items()} == {"a": 100, "b": 200}
    starts = {name: f"{name} starts, in its own folder: True" for name in "ab"}
    lives = [
        [
            *[starts[name] for name in order],
            *[f"{name} takes 100" for name in order] * 5,
            *[f"{n} stops" for n in order],
        ]
        for order in ("ab", "ba")
    ]
    assert told == lives[0] + lives[1]
    told.clear()
    with pytest.raises(TimeoutError):
        bench.__main__.run_in_turns([makes[0], lambda: Standing("broken", told)], workload, tmp_path)
    assert told == [starts["a"], "a stops", "broken stops"], "none is left behind"
    assert not list(tmp_path.iterdir())
