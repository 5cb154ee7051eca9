"""The house's rules: who may import whom, how long a file and a function may be. An AST walk over src/pillarbox."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src" / "pillarbox"
FILES = sorted(SRC.rglob("*.py"))
MAX_FILE = 500
MAX_FUNCTION = 60

# The floors of the house, lowest first. A room imports from lower floors only, and from itself; `errors` and the package's
# own version are everybody's.
FLOORS: list[set[str]] = [
    {"errors"},
    {"smtp"},
    {"mail"},
    {"clock", "httppost", "nameservers", "places", "log"},
    {"watchdog"},
    {"config"},
    {"options"},
    {"events", "queue", "dns"},
    {"server", "delivery", "plugins", "capture"},
    {"checks"},
    {"parts", "eventside", "webhook", "option_types"},
    {"keywords"},
    {"explain"},
    {"app"},
    {"daemon", "admin", "testing", "client"},
    {"django"},
    {"cli"},
    {"__main__", "__init__"},
]
SMTP_FORBIDDEN = {"asyncio", "socket", "ssl", "time", "logging", "selectors", "threading", "os", "random"}


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"{room} has no floor: give it one in FLOORS")


def imported_rooms(path: Path) -> set[tuple[str, int]]:
    """(room, line) of every import from within the package, inside functions and TYPE_CHECKING too."""
    found = set()
    depth = len(path.relative_to(SRC).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*path.relative_to(SRC).parts[: depth - node.level], *(node.module or "").split(".")]
            parts = [part for part in parts if part]
            if parts:
                found.add((parts[0], node.lineno))
            else:
                found |= {(alias.name, node.lineno) for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pillarbox."):
            found.add(((node.module or "").split(".")[1], node.lineno))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_down_only(path: Path) -> None:
    own = room_of(path)
    if own in ("__main__", "__init__"):
        return
    for room, line in imported_rooms(path):
        if room != own:
            assert floor_of(room) < floor_of(own), f"{path}:{line}: {own} imports {room}, which is not below it"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) == "smtp"], ids=lambda p: p.name)
def test_smtp_has_no_io(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(node.module or "").split(".")[0]]
        assert not SMTP_FORBIDDEN & set(names), f"{path}:{node.lineno} imports {names}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_lengths(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE, f"{path} is longer than one sitting"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[0].lineno if node.body else node.lineno
            length = (node.end_lineno or 0) - body + 1
            assert length <= MAX_FUNCTION, f"{path}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_says_what_it_is_for(path: Path) -> None:
    if path.name == "__init__.py" and not path.read_text().strip():
        return
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} does not say what it is for"


def test_two_levels_of_folders() -> None:
    deep = [p for p in FILES if len(p.relative_to(SRC).parts) > 3 and "sql" not in p.parts]
    assert not deep


def test_generated_types_are_those_of_options_and_events() -> None:
    tool = SRC.parent.parent / "tools" / "make_types.py"
    result = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert not result.returncode, result.stdout + result.stderr + "run .venv/bin/python tools/make_types.py"
