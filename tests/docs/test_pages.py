"""Every command and program of README and docs runs as it is written, on a scratch machine of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.page import Block, blocks, commands
from tests.docs.scratch_root import PageError, ScratchRoot, missing, scratch_root

PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if blocks(path))
_NAMES = re.compile(r"\b(?:[a-z0-9-]+\.)+(?:example\.(?:org|net|com)|test)\b|\b(?:example\.(?:org|net|com))\b")
# The number of blocks that are not run may only fall.
MOST_SKIPPED = 12


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this checkout, and `site`: the installed packages without this project."""
    folder = tmp_path_factory.mktemp("wheels")
    (folder / "site").mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("pillarbox", "_pillarbox")):
            (folder / "site" / package.name).symlink_to(package)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=110)
    return folder


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_runs_as_written(path: Path, tmp_path: Path, wheels: Path) -> None:
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with scratch_root(tmp_path) as root:
        _prepare(root, path, wheels)
        for block in blocks(path):
            if block.skipped:
                continue
            try:
                _run(root, block)
            except PageError as error:
                raise AssertionError(f"{path.relative_to(ROOT)}:{block.line}: {error}") from None


def test_blocks_that_are_not_run_have_a_reason() -> None:
    skipped = [(path.name, block.line, block.skipped) for path in PAGES for block in blocks(path) if block.skipped]
    assert len(skipped) <= MOST_SKIPPED and all(len(str(reason).split()) > 2 for *_, reason in skipped), skipped


def _prepare(root: ScratchRoot, path: Path, wheels: Path) -> None:
    """The names that a page uses are this machine's, and the page starts in a checkout."""
    names = " ".join(sorted(set(_NAMES.findall(path.read_text(encoding="utf-8")))))
    root.run(f"printf '127.0.0.1 localhost {names}\\n::1 localhost\\n' >/etc/hosts; : >/etc/resolv.conf")
    # pip takes the wheel of this checkout, and the packages of the tests' environment: there is no network.
    root.run(f"export PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_FIND_LINKS={wheels} PIP_NO_BUILD_ISOLATION=0 PIP_QUIET=1")
    root.run(f"cp -r {wheels / 'site'} /srv/site; export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPATH=/srv/site")
    # A service's own user reads the packages, wherever the environment is.
    root.run(f"chmod o+x {' '.join(map(str, list(Path(sysconfig.get_path('purelib')).parents)[:-1]))}")
    files = f"git -C {ROOT} -c safe.directory='*' ls-files -zco --exclude-standard"
    root.run(f"mkdir /root/pillarbox && {files} | tar -C {ROOT} --null -T - -c | tar -C /root/pillarbox -x")
    root.run("cd /root/pillarbox && rm -rf /var/lib/pillarbox /etc/pillarbox")


def _run(root: ScratchRoot, block: Block) -> None:
    if block.target is not None:
        root.run(f"mkdir -p $(dirname {block.target})")
        root.run(f"cat >{block.target} <<'END-OF-FILE'\n{block.text}END-OF-FILE")
        if block.kind == "toml":
            root.run(f"pillarbox config check {block.target}")
    elif block.kind in ("hidden", "sh"):
        for command in commands(block.text):
            root.type(command)
    elif block.kind == "python":
        root.run(f"cat >/root/work/program_{block.line}.py <<'END-OF-FILE'\n{block.text}END-OF-FILE")
        root.type(f"python3 /root/work/program_{block.line}.py")
    else:
        raise PageError(f"a block of language {block.kind!r} is not run: name a file for it, or skip it with a reason")
