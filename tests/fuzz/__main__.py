"""`python -m tests.fuzz [TARGET]... [--runs N] [--seconds S]`: atheris on each target, in a process of its own."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    """Exit code 1 when a target fails; the input that did it is in `corpus` then, for the suite to replay."""
    parser = argparse.ArgumentParser(description="coverage-guided fuzzing of every parser")
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--runs", type=int, default=-1)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    given = parser.parse_args()
    if os.environ.get("PILLARBOX_FUZZ"):
        return fuzz(os.environ["PILLARBOX_FUZZ"])
    names = given.targets or re.findall(r"@target\ndef (\w+)", (Path(__file__).parent / "targets.py").read_text())
    failed = 0
    for name in names:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(os.environ.get("TMPDIR", "/tmp")) / f"pillarbox-fuzz-{name}"
        scratch.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "tests.fuzz", str(scratch), str(folder), f"-runs={given.runs}",
            f"-max_total_time={given.seconds}", "-max_len=3000", "-timeout=10", "-rss_limit_mb=2000", "-verbosity=0",
            "-print_final_stats=1", f"-artifact_prefix={folder}/",
        ]  # fmt: skip
        environment = {**os.environ, "PILLARBOX_FUZZ": name}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        said = done.stdout + done.stderr
        runs = re.search(r"number_of_executed_units: (\d+)", said)
        print(
            f"{name:10} {int(runs[1]) if runs else 0:>9} runs  {'ok' if done.returncode == 0 else 'FAILED'}", flush=True
        )
        if done.returncode:
            failed += 1
            print("\n".join(said.splitlines()[-40:]))
    return 1 if failed else 0


def fuzz(name: str) -> int:
    """In the child: never comes back."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: it has wheels for CPython 3.11 to 3.13 on Linux")
        return 1

    with atheris.instrument_imports(include=["pillarbox"]):
        from . import targets
    # Past our own arguments: the rest is libFuzzer's.
    atheris.Setup([sys.argv[0], *sys.argv[1:]], targets.TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(fuzz(os.environ["PILLARBOX_FUZZ"]) if os.environ.get("PILLARBOX_FUZZ") else main())
