"""What the bench says of what it measured (bench/report.py)."""

from __future__ import annotations

from typing import Any

from bench.report import page, ratios, table


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
