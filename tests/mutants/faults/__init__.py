"""The planted faults, one module per room."""

from __future__ import annotations

import importlib
import pkgutil

from tests.mutants.model import Fault


def load() -> dict[str, tuple[str, Fault]]:
    """Returns name -> (room, fault), sorted by room and name. ValueError for a name that occurs twice."""
    found: dict[str, tuple[str, Fault]] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        faults = importlib.import_module(f"{__name__}.{module}").FAULTS
        for fault in sorted(faults, key=lambda fault: fault.name):
            if fault.name in found:
                raise ValueError(f"{module}: the fault {fault.name!r} occurs twice")
            found[fault.name] = (module, fault)
    return found
