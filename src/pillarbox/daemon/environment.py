"""Options from the environment: PILLARBOX_MAX_SESSIONS=100, lists with commas; and variables that name no option."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from ..config.usual import ENVIRONMENT

# Variables of ours that are no option of the server.
OTHERS = frozenset(("CONFIG", "SENDMAIL", "HANDOVER", "TOKEN"))
# Tables of objects: only a file has them.
TABLES = ("plugins", "handlers")
# What Kubernetes and Docker links add for a service that is called pillarbox.
_LINKS = re.compile(r"(SERVICE_(HOST|PORT).*|PORT_\d+_.*|ENV_.*|NAME)\Z")
_NEAR = 0.8


def given_by(environment: Mapping[str, str], known: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(option, value, variable) of each option that the environment has."""
    for name, field in known.items():
        variable = ENVIRONMENT + name.upper()
        text = environment.get(variable)
        if text is not None and name not in TABLES:
            yield name, _value(name, field.annotation, text), variable


def unknown_variables(environment: Mapping[str, str], known: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(variable, text, whether it is surely a mistake) of each variable with our prefix that names no option."""
    names = {name.upper() for name in known if name not in TABLES} | OTHERS
    for variable in sorted(environment):
        word = variable.removeprefix(ENVIRONMENT)
        if word == variable or word in names or _LINKS.match(word):
            continue
        if word.lower() in TABLES:
            yield variable, f"option {word.lower()!r} cannot stand in the environment: write it into the file", True
            continue
        near = difflib.get_close_matches(word.upper(), names, 1, _NEAR)
        hint = f"; did you mean {ENVIRONMENT + near[0]}?" if near else ""
        yield variable, f"variable {variable} names no option{hint}", bool(near)


def _value(name: str, annotation: Any, text: str) -> Any:
    """A list from words with commas, None from nothing, a table from words with "="; any other text as it is."""
    kinds = (annotation, *get_args(annotation))
    words = [word.strip() for word in text.split(",") if word.strip()]
    if name == "options":
        return {word.partition("=")[0].strip(): word.partition("=")[2].strip() or "true" for word in words}
    if name == "dnsbl":
        pairs = [word.rpartition("=") if "=" in word else (word, "=", "1") for word in words]
        return {zone.strip(): _number(weight) for zone, _, weight in pairs}
    if any(get_origin(kind) is list for kind in kinds):
        return words
    return None if not text.strip() and type(None) in kinds else text


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
