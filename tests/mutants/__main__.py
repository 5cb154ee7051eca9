"""Plants each fault in a scratch copy of the project and reports which test, or which simulated world, finds it.

    python -m tests.mutants                the faults that the simulation finds
    python -m tests.mutants --all          every fault; prints which test found which
    python -m tests.mutants NAME...        these
    python -m tests.mutants --room tls     those of one room (a module of tests/mutants/faults)
    python -m tests.mutants --list         their names

A fault that its own finders miss is tried on the whole suite with --suite. Exit code 1 when a fault is not found.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.faults import load
from tests.mutants.model import SIMULATION, Fault

ROOT = Path(__file__).parent.parent.parent
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "results", "benchmarks", ".peers", "artefacts"
)
_TIME_OUT_S = 900


@dataclass(frozen=True, slots=True)
class Finding:
    """What the finders of one fault said: the test or seed that noticed, None where none did."""

    finder: str | None
    text: str


def plant(fault: Fault, folder: Path) -> None:
    """Applies a fault to the copy of the source in `folder`. ValueError when its text does not occur exactly once."""
    for edit in fault.edits:
        path = folder / "src" / "pillarbox" / edit.file
        text = path.read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            raise ValueError(
                f"{fault.name}: {edit.file}: expected the text once, found it {text.count(edit.old)} times: {edit.old!r}"
            )
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def copy_project(folder: Path) -> None:
    """Copies what the tests need, without the environment and the results of earlier runs."""
    shutil.copytree(ROOT, folder, ignore=_LEFT_OUT, dirs_exist_ok=True, symlinks=True)


def find(fault: Fault, folder: Path, *, seeds: int = 2000, use_suite: bool = False) -> Finding:
    """Plants a fault in a copy in `folder` and runs its finders there."""
    copy_project(folder)
    plant(fault, folder)
    if fault.finders == (SIMULATION,):
        return _simulate(folder, seeds)
    finding = _run_tests(folder, fault.finders)
    if finding.finder is None and use_suite:
        finding = _run_tests(folder, ("tests", "-m", "not alone"))
    return finding


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def _simulate(folder: Path, seeds: int) -> Finding:
    command = [sys.executable, "-m", "tests.sim", "--most=1", f"--seeds={seeds}", "--first=0"]
    done = subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, timeout=_TIME_OUT_S
    )
    found = re.search(r"^seed (\d+):\s*(.*)", done.stdout, re.M)
    return Finding(f"simulation, seed {found[1]}: {found[2][:100]}" if found else None, done.stdout + done.stderr)


def _run_tests(folder: Path, finders: tuple[str, ...]) -> Finding:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *finders]
    done = subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, timeout=_TIME_OUT_S
    )
    if done.returncode == 0:
        return Finding(None, done.stdout + done.stderr)
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.M)
    if done.returncode != 1 or failed is None:
        # A finder that does not exist, or a copy that cannot be imported, proves nothing.
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Finding(failed[1], done.stdout)


def _one(name: str, room: str, fault: Fault, *, use_suite: bool) -> bool:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        try:
            finding = find(fault, Path(folder), use_suite=use_suite)
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            finding = Finding(None, str(error))
            print(f"{name}: {str(error)[:3000]}", file=sys.stderr, flush=True)
    print(f"{room:12} {name:52} {time.monotonic() - began:5.0f} s  {finding.finder or 'NOT FOUND'}", flush=True)
    return finding.finder is not None


def main() -> int:
    """Returns 1 when a fault is not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", dest="is_all", help="every fault")
    parser.add_argument("--room", help="the faults of one room")
    parser.add_argument("--list", action="store_true", dest="is_list", help="print the names")
    parser.add_argument("--suite", action="store_true", help="try a fault that its finders miss on the whole suite")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    faults = load()
    if unknown := set(given.names) - set(faults):
        parser.error(f"unknown fault {', '.join(sorted(unknown))}: --list shows the names")
    chosen = {
        name: (room, fault)
        for name, (room, fault) in faults.items()
        if name in given.names
        or (not given.names and given.room == room)
        or (not given.names and not given.room and (given.is_all or fault.finders == (SIMULATION,)))
    }
    if given.is_list:
        print("\n".join(f"{room:12} {name}" for name, (room, _) in chosen.items()))
        return 0
    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = [pool.submit(_one, name, room, fault, use_suite=given.suite) for name, (room, fault) in chosen.items()]
        found = [job.result() for job in jobs]
    print(f"{sum(found)} of {len(found)} faults found")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
