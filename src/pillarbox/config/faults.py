"""What is wrong with an option, in words of ours: `option 'port': invalid number 'x': expected a whole number from 0 to 65535`.

The form that is expected is made from the option's type and bounds, and the documentation's column of types too.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from ..places import HIDDEN, hide_password
from . import units
from .secrets import mark_of

_MAX_SHOWN = 200


def kind_of(field: FieldInfo) -> str:
    """The type of an option for people: "seconds", "octets", "path", "list of text", "'sqlite' or 'memory'", ..."""
    metadata = tuple(field.metadata)
    words = list(dict.fromkeys(_kinds(field.annotation, metadata)))
    return " or ".join(words)


def expected(field: FieldInfo) -> tuple[str, str]:
    """(thing, form) for a message: what the value was meant to be, and what may be written."""
    words = list(dict.fromkeys(_kinds(field.annotation, tuple(field.metadata))))
    bounds = _bounds(field)
    if "seconds" in words:
        return "duration", "seconds or a value such as 30s, 5m, 2h" + bounds + _or_none(words)
    if "octets" in words:
        return "size", "octets or a value such as 512kB, 10MB, 64MiB" + bounds + _or_none(words)
    if "path" in words:
        return "path", "the path of a file or folder" + _or_none(words)
    if "true" in words and len(words) == 2:
        return "value", "true or false"
    if "number" in words or "whole number" in words:
        word = "number" if "number" in words else "whole number"
        return "number", f"a {word}{bounds}" + "".join(f" or {one}" for one in words if one != word)
    forms = [_FORMS.get(one, one) for one in words]
    return "value", (", ".join(forms[:-1]) + " or " if len(forms) > 1 else "") + forms[-1]


_FORMS = {
    "text": "text",
    "list of text": "a list of texts",
    "list": "a list",
    "table": 'a table such as { "name" = value }',
    "callable": "a function",
    "object": "an object",
}


def _or_none(words: list[str]) -> str:
    return ", or none" if "none" in words else ""


def _kinds(annotation: Any, metadata: tuple[Any, ...]) -> Iterable[str]:
    functions = [one.func for one in metadata if isinstance(one, BeforeValidator)]
    known: dict[Any, str] = {units.parse_duration: "seconds", units.parse_size: "octets", units.parse_path: "path"}
    named = next((known[one] for one in functions if one in known), None)
    origin = get_origin(annotation)
    if named is not None:
        yield named
    elif origin is Annotated:
        base, *more = get_args(annotation)
        yield from _kinds(base, tuple(more))
    elif origin in (Union, types.UnionType):
        for one in sorted(get_args(annotation), key=lambda one: one is type(None)):
            yield from _kinds(one, ())
    elif origin is Literal:
        yield from (repr(one) if isinstance(one, str) else str(one).lower() for one in get_args(annotation))
    elif annotation is bool:
        yield from ("true", "false")
    elif origin is list:
        yield "list of text" if get_args(annotation) == (str,) else "list"
    else:
        plain: dict[Any, str] = {str: "text", int: "whole number", float: "number", type(None): "none", Any: "object"}
        yield plain.get(annotation) or {dict: "table", Callable: "callable"}.get(origin or annotation, "object")


def _bounds(field: FieldInfo) -> str:
    low = high = above = below = None
    for one in _bound_marks(field.annotation, tuple(field.metadata)):
        low = one.ge if isinstance(one, Ge) else low
        above = one.gt if isinstance(one, Gt) else above
        high = one.le if isinstance(one, Le) else high
        below = one.lt if isinstance(one, Lt) else below
    if low is not None and high is not None:
        return f" from {low} to {high}"
    words = [f" {word} {bound}" for word, bound in (("from", low), ("above", above), ("up to", high), ("below", below))]
    return "".join(word + (" on" if word.startswith(" from") else "") for word in words if not word.endswith(" None"))


def _bound_marks(annotation: Any, metadata: tuple[Any, ...]) -> Iterable[Any]:
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from one.metadata
        elif isinstance(one, (Ge, Gt, Le, Lt)):
            yield one
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        yield from _bound_marks(base, tuple(more))
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _bound_marks(part, ())


def fault_text(fault: Mapping[str, Any], field: FieldInfo, given: Any) -> str:
    """One fault that pydantic found, in our words; `fault` is an element of `ValidationError.errors()`.

    `given` is the value as it was written: pydantic names what a unit became.
    """
    name = str(fault["loc"][0])
    # Something that is no URL may be a password that stands in the wrong place.
    value = HIDDEN if mark_of(field) is not None else _shown(name, given)
    said = str(fault["msg"])
    thing, form = expected(field)
    if fault["type"] == "value_error" and thing not in ("duration", "size", "path"):
        # One of our own validators: it knows more than the type does.
        return f"option {name!r}: invalid value {value}: {said.removeprefix('Value error, ')}"
    if name == "plugins":
        form = 'a table of plugins by name, such as {"name": plugin}'
    return f"option {name!r}: invalid {thing} {value}: expected {form}"


def _shown(name: str, value: Any) -> str:
    text = repr(value)
    if name in ("relay", "listen"):
        texts = value if isinstance(value, (list, tuple)) else [value]
        text = ", ".join(repr(hide_password(one) if isinstance(one, str) else one) for one in texts)
        text = f"[{text}]" if isinstance(value, (list, tuple)) else text
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def unknown_text(what: str, name: str, known: Iterable[str], otherwise: str = "") -> str:
    """`name` is not known, and the nearest one that is."""
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {near[0]!r}?" if near else otherwise
    return f"{what} {name!r} is not known" + (f"; {hint}" if hint else "")
