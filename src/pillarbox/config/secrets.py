"""Which options are secret, and how they are shown: one mark at the option's field, which everything that shows options obeys.

Config show, the API, error texts and logs ask here. Must not know any option by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from ..places import HIDDEN, hide_password

# Marks, for `Field(json_schema_extra=...)`: the whole value, or the password within a URL.
SECRET: dict[str, Any] = {"secret": "whole"}
SECRET_URL: dict[str, Any] = {"secret": "url"}
# Keys of options of plugins and handlers, whose fields nobody can mark.
_SECRET_KEY = re.compile(r"(pass|secret|token|key|credential|authorization|dsn)(?!\w*_(file|path))", re.IGNORECASE)
# A shorter text stands in many others by chance.
_SHORTEST = 3


def mark_of(field: FieldInfo) -> str | None:
    """ "whole" or "url" for an option that is secret."""
    extra = field.json_schema_extra
    found = extra.get("secret") if isinstance(extra, dict) else None
    return found if isinstance(found, str) else None


def shown_value(field: FieldInfo, value: Any) -> Any:
    """The value as it may be shown: "***" for a secret, a URL without its password; any other as it is."""
    mark = mark_of(field)
    if mark is None or value is None:
        return value
    return hide_password(value) if mark == "url" and isinstance(value, str) else HIDDEN


def hide_options(text: str, options: Mapping[str, Any]) -> str:
    """An error text about options of a plugin or handler, without the values of those that are secret by their key."""
    for value in sorted(set(_secret_values(options)), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _secret_values(found: Any, *, is_secret: bool = False) -> Iterator[str]:
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _secret_values(value, is_secret=is_secret or bool(_SECRET_KEY.search(str(key))))
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _secret_values(value, is_secret=is_secret)
    elif isinstance(found, str):
        # Of a URL also the password alone.
        login = found.partition("://")[2].rpartition("@")[0]
        candidates = ([found] if is_secret else []) + ([login, login.partition(":")[2]] if login else [])
        yield from (one for one in candidates if len(one) >= _SHORTEST)
