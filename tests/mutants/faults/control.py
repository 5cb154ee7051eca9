"""Faults in the control socket, questions in SQL and the operator's terminal."""

from __future__ import annotations

from tests.mutants.model import fault

FAULTS = (
    fault(
        "a filter of the wrong type",
        "queue/control.py",
        "if value is not None and (not isinstance(value, kind) or",
        "if value is None and (not isinstance(value, kind) or",
        "tests/queue/test_control_guards.py::test_action_without_a_filter_changes_nothing_unless_everything_is_meant[hold]",
    ),
    fault(
        "an empty filter changes everything",
        "queue/control.py",
        'if not request.get("is_everything") and not query.is_narrow:',
        "if False:",
        "tests/queue/test_control_guards.py::test_action_without_a_filter_changes_nothing_unless_everything_is_meant[hold]",
    ),
    fault(
        "an unknown filter is ignored",
        "queue/control.py",
        "        if kind is None:\n            raise ValueError",
        "        if kind is None:\n            continue\n            raise ValueError",
        "tests/queue/test_control_guards.py::test_filter_that_is_unknown_or_of_the_wrong_type_is_refused[fields0]",
    ),
)
