"""The public names, their types and their help."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import pillarbox
from pillarbox import errors
from pillarbox.delivery.handlers import Handler
from pillarbox.events.catalogue import CATALOGUE
from pillarbox.option_types import MailServerOptions
from pillarbox.options import Options

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SAMPLE = HERE / "typing_samples" / "mistakes.py"


def test_dir_of_the_package_lists_exactly_the_public_names() -> None:
    assert dir(pillarbox) == sorted(pillarbox.__all__)
    for name in pillarbox.__all__:
        assert getattr(pillarbox, name) is not None
    namespace: dict[str, object] = {}
    exec("from pillarbox import *", namespace)  # noqa: S102
    assert set(pillarbox.__all__) - {"__version__"} <= set(namespace)
    with pytest.raises(AttributeError, match="has no attribute 'MialServer'"):
        pillarbox.__getattr__("MialServer")


def test_every_error_is_a_public_name() -> None:
    ours = [
        name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, errors.PillarboxError)
    ]
    assert {*ours} <= {*pillarbox.__all__}
    assert all(getattr(pillarbox, name) is getattr(errors, name) for name in ours)


def test_every_event_class_is_exported() -> None:
    for cls in CATALOGUE.values():
        assert getattr(pillarbox.events, cls.__name__) is cls
        assert cls.__name__ in pillarbox.events.__all__


def test_import_of_the_package_loads_nothing_of_third_parties() -> None:
    code = "import sys, pillarbox; print(sorted(m for m in sys.modules if m.split('.')[0] in ('pydantic', 'apsw', 'typer') or m.startswith('pillarbox.')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_keywords_of_the_server_are_the_options() -> None:
    assert set(MailServerOptions.__annotations__) == set(Options.model_fields)
    for method in (
        pillarbox.MailServer.__init__,
        pillarbox.MailServer.spawn,
        pillarbox.MailServer.run,
        pillarbox.MailServer.reload,
    ):
        assert "options" in inspect.signature(method).parameters


def test_help_of_the_server_lists_every_option_with_its_meaning() -> None:
    shown = inspect.getdoc(pillarbox.MailServer) or ""
    for name, field in Options.model_fields.items():
        assert f"{name} (" in shown
        assert str(field.description) in shown


def test_keywords_of_a_handler_are_those_of_its_decorator() -> None:
    from pillarbox.keywords import HandlerKeywords

    taken = {
        name for name in inspect.signature(Handler.__init__).parameters if name not in ("self", "match", "callback")
    }
    assert set(get_type_hints(HandlerKeywords)) == taken


def test_keywords_of_the_queue_are_fields_of_its_filter() -> None:
    from pillarbox.keywords import EnqueueKeywords, QueryKeywords
    from pillarbox.queue.control import parse_query
    from pillarbox.queue.enqueue import parse_enqueue

    parse_query(dict.fromkeys(get_type_hints(QueryKeywords)))
    given = {"reverse_path": None, "recipients": ["a@b.example"], "content": b"x"}
    more = dict.fromkeys(set(get_type_hints(EnqueueKeywords)) - set(given))
    parse_enqueue(None, {**given, **more})


def test_type_checker_finds_every_mistake_of_a_sample_and_no_other(tmp_path: Path) -> None:
    wanted = {n for n, line in enumerate(SAMPLE.read_text().splitlines(), 1) if line.endswith("MISTAKE")}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(SAMPLE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT / "src")
    found = {
        int(line.split(":")[1]) for line in result.stdout.splitlines() if ": error:" in line and SAMPLE.name in line
    }
    assert found == wanted, result.stdout
