"""What the bench found: a table for the terminal, and from the JSON a page with pictures (docs/benchmarks.md)."""

from __future__ import annotations

import html
import json
import statistics
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
_COLOURS = {"pillarbox": "#2f6fb0", "smtp-sink": "#b9b9b9"}
_OTHER = "#8a9aa9"

_HEAD = """# Benchmarks

Made by `make bench-page` from what it measured (kept in `docs/benchmarks.json`); not written by hand. `make bench` measures
on your machine, `make bench-quick` the rows that say most, in under two minutes.

Measured at {at} with Python {python} on {processors} processors ({system}), {rounds} rounds in which
the peers alternate. Figures are medians; **ratio** is messages per second, or processor time per message, against Postfix with
its defaults in the same round (against Pillarbox alone where Postfix has no part): the median of the rounds' own ratios, for
the machine's pace changes from round to round; **range** is from the lowest to the highest. Load generator, server and sink
share the processors, so ratios of rates are compressed: processor time per message says more. The dots in the pictures are
single runs.

What a peer promises when it says 250:

{promises}

All listen on loopback, without TLS unless the row says so, and look no names up. Messages have 4 KB unless the row says
otherwise. Postfix keeps accepted mail on hold in the rows of acceptance; `postfix-tuned` has no `in_flow_delay`, processes
that live longer, and more connections out. `smtp-sink` stores nothing at all: it is the ceiling of what the load generator
can do. Exim and OpenSMTPD are Debian's, fetched and not installed; they accept on reused connections only, for new ones stall
them. Exim's processor time in relay-through and fan-out leaves out its delivery processes, which nobody waits for. Haraka runs
two processes. aiosmtpd, Exim and Haraka are given a quarter of the messages. `pillarbox-slots` is Pillarbox
with the places cut out of its source where plugins might stand; the servers of that row stand side by side, take the load
in pieces by turns, and are started four times a round, for a few percent are less than what the machine changes between two
runs, and no more than what the same server differs from itself. The rows of STARTTLS have certificates with P-256 keys and
TLS 1.3; their client is written in Python.
"""


def medians(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure."""
    found: dict[str, Any] = {}
    for name in ("rate", "cpu_s_per_1000", "peak_mb", "p50_ms", "p99_ms"):
        values = [sample[name] for sample in samples if sample.get(name) is not None]
        found[name] = statistics.median(values) if values else None
    notes = samples[0].get("notes") or {}
    found["notes"] = {name: statistics.median(sample["notes"][name] for sample in samples) for name in notes}
    return found


def ratios(samples: list[dict[str, Any]], base: list[dict[str, Any]], name: str) -> list[float]:
    """Of one figure, round by round, lowest first: what was measured within minutes of each other is what can be compared."""
    # A peer that had trouble in one round has fewer of them: then nobody knows which belong together.
    pairs = zip(samples, base, strict=True) if len(samples) == len(base) else ((one, medians(base)) for one in samples)
    return sorted(one[name] / other[name] for one, other in pairs if other[name])


def _rows(report: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], list[float], list[float]]]:
    """(workload, peer, medians, ratios of rate and of CPU per message to Postfix, or to Pillarbox where that has no part)."""
    rows = []
    for workload, by_peer in report["samples"].items():
        base = by_peer.get("postfix") or by_peer.get("pillarbox") or []
        for peer, samples in by_peer.items():
            rate, cpu = (ratios(samples, base, name) if base else [] for name in ("rate", "cpu_s_per_1000"))
            rows.append((workload, peer, medians(samples), rate, cpu))
    return rows


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}x" if values else ""


def _range(values: list[float]) -> str:
    return f"{values[0]:.2f} to {values[-1]:.2f}" if values and values[0] < values[-1] else ""


def table(report: dict[str, Any]) -> str:
    """For the terminal."""
    head = f"{'':58} {'peer':16} {'msg/s':>8} {'ratio':>7} {'range':>14}"
    lines = ["", f"{head} {'CPU s/1000':>11} {'ratio':>6} {'peak MB':>8} {'p50/p99 ms':>13}"]
    for workload, peer, found, rates, cpus in _rows(report):
        times = f"{found['p50_ms']:.1f}/{found['p99_ms']:.1f}" if found["p50_ms"] else "-"
        rate = f"{found['rate']:8.0f} {_median(rates) or '-':>7} {_range(rates):>14}"
        cpu = f"{found['cpu_s_per_1000']:11.3f} {_median(cpus) or '-':>6}"
        figures = f"{rate} {cpu} {found['peak_mb']:8.0f} {times:>13}"
        lines.append(f"{workload:58} {peer:16} {figures}")
        lines += [f"{'':58}   {name}: {value:.1f}" for name, value in found["notes"].items()]
    lines += ["", "What a peer promises when it says 250:"]
    lines += [f"  {peer:16} {promise}" for peer, promise in report["promises"].items()]
    return "\n".join(lines)


def page(report: dict[str, Any]) -> str:
    """docs/benchmarks.md."""
    machine = report["machine"]
    facts = {
        "at": report["at"],
        "python": report["python"],
        "processors": machine["processors"],
        "system": machine["system"],
        "rounds": report["rounds"],
        "promises": "\n".join(f"- **{peer}**: {promise}" for peer, promise in report["promises"].items()),
    }
    lines = [_HEAD.format(**facts)]
    for workload, by_peer in report["samples"].items():
        name = _file_name(workload)
        lines += [f"## {workload[0].upper()}{workload[1:]}", "", f"![messages per second](benchmarks/{name})", ""]
        lines += [
            "| peer | msg/s | ratio | range | CPU s/1000 | ratio | peak MB | p50 ms | p99 ms |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        notes: list[str] = []
        for one, peer, found, rates, cpus in _rows({"samples": {workload: by_peer}}):
            assert one == workload
            cells = [
                f"{found['rate']:,.0f}",
                _median(rates),
                _range(rates),
                f"{found['cpu_s_per_1000']:.3f}",
                _median(cpus),
            ]
            cells += [f"{found['peak_mb']:.0f}", *(f"{found[n]:.1f}" if found[n] else "" for n in ("p50_ms", "p99_ms"))]
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
            notes += [f"- {peer}: {name}: {value:,.1f}" for name, value in found["notes"].items()]
        lines += ["", *notes, *([""] if notes else [])]
    return "\n".join(lines)


def _file_name(workload: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in workload.lower()).strip("-") + ".svg"


def picture(workload: str, by_peer: dict[str, list[dict[str, Any]]]) -> str:
    """Bars of messages per second, as SVG; each sample a dot, so that the noise can be seen."""
    rates = {peer: [sample["rate"] for sample in samples] for peer, samples in by_peer.items()}
    top = max(max(values) for values in rates.values()) or 1.0
    height, left, width = 26, 130, 430
    total = height * len(rates) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{total}" viewBox="0 0 640 {total}" role="img"'
        f' aria-label="{html.escape(workload)}" font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{html.escape(workload)}</title>",
    ]
    for row, (peer, values) in enumerate(rates.items()):
        y, middle = row * height + 6, statistics.median(values)
        colour = _COLOURS.get(peer, _OTHER)
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end" fill="#777">{html.escape(peer)}</text>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{middle / top * width:.1f}" height="18" rx="2" fill="{colour}"/>'
        )
        for value in values:
            parts.append(f'<circle cx="{left + value / top * width:.1f}" cy="{y + 9}" r="2.5" fill="#222"/>')
        parts.append(f'<text x="{left + width + 12}" y="{y + 14}" fill="#777">{middle:,.0f}/s</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_page(report: dict[str, Any]) -> None:
    """The page, its pictures, and the JSON that both come from."""
    folder = DOCS / "benchmarks"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for workload, by_peer in report["samples"].items():
        (folder / _file_name(workload)).write_text(picture(workload, by_peer))
    (DOCS / "benchmarks.json").write_text(json.dumps(report, indent=1) + "\n")
    (DOCS / "benchmarks.md").write_text(page(report).rstrip() + "\n")
