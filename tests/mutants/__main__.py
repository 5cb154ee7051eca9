"""`python -m tests.mutants [NAME]...`: plants each fault in a copy of the source, and has the simulation look for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def names() -> list[str]:
    """Of all that there are."""
    return sorted(path.stem for path in HERE.glob("*.patch"))


def find(name: str, folder: Path, *, seeds: int = 2000, first: int = 0) -> tuple[int | None, str]:
    """The first seed that shows the fault, and what the simulation says; None when it shows in none of them."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "-p1", str(HERE / f"{name}.patch")], cwd=folder, check=True, capture_output=True)
    command = [sys.executable, "-m", "tests.sim", "--most=1", f"--seeds={seeds}", f"--first={first}"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    found = re.search(r"^seed (\d+):", done.stdout, re.M)
    return (int(found[1]) if found else None), done.stdout + done.stderr


def main() -> int:
    """Exit code 1 when one of them is not found."""
    missed = 0
    for name in sys.argv[1:] or names():
        with tempfile.TemporaryDirectory() as folder:
            seed, text = find(name, Path(folder))
        said = text.splitlines()
        print(
            f"{name.replace('_', ' '):44} "
            + (f"seed {seed}: {said[1].strip()[:100]}" if seed is not None else "NOT FOUND")
        )
        missed += seed is None
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
