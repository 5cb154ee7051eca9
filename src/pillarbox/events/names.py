"""Names of events: the catalogue's, and those that a program declares. Checks them, and makes events of them."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import OptionError
from .catalogue import Custom
from .subscribers import ALL

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PREFIXES = ("smtpd_", "SMTPD_", "smtpc_", "SMTPC_")


class Names:
    """The names that one server knows."""

    def __init__(self, catalogue: Mapping[str, type[Any]]) -> None:
        self._catalogue = catalogue
        self._own: set[str] = set()

    def define(self, name: str) -> None:
        """Declares one of the program's own. OptionError for what cannot be a name, or is one of ours."""
        if not isinstance(name, str) or not _NAME.match(name):
            raise OptionError(f"event {name!r}: a name is letters, digits and underscores")
        (name,) = self.flat([name])
        if name in self._catalogue or name == ALL:
            raise OptionError(f"event {name!r} is one of the server's own: choose another name")
        self._own.add(name)

    def is_own(self, name: str) -> bool:
        """True for one that the program has declared."""
        return name in self._own

    @staticmethod
    def flat(names: Iterable[str | Iterable[str]]) -> list[str]:
        """Names, given as arguments or as lists, without the original's prefix."""
        flat: list[str] = []
        for name in names:
            if not isinstance(name, str) and not isinstance(name, Iterable):
                raise OptionError(f"{name!r} is no name of an event: give names, or lists of them")
            flat += [name] if isinstance(name, str) else list(name)
        return [next((name[len(p) :] for p in _PREFIXES if name.startswith(p)), name) for name in flat]

    def checked(self, names: Iterable[str | Iterable[str]]) -> list[str]:
        """The same, each of them known. OptionError names the nearest right one."""
        flat = self.flat(names)
        for name in flat:
            if name != ALL and name not in self._catalogue and name not in self._own:
                known = (*self._catalogue, *self._own)
                raise OptionError(self.near(f"there is no event {name!r}", name, known) + "; own ones: define_event")
        if not flat:
            raise OptionError("name at least one event, or 'all'")
        return flat

    @staticmethod
    def near(text: str, name: str, known: Iterable[str]) -> str:
        """`text`, and the nearest right name."""
        found = difflib.get_close_matches(name, list(known), 1)
        return text + (f"; did you mean {found[0]!r}?" if found else "")

    def make(self, name: str, args: tuple[Any, ...]) -> Any:
        """The event of that name. OptionError when a catalogued event gets the wrong fields."""
        (name,) = self.flat([name])
        cls = self._catalogue.get(name)
        if cls is None:
            # Sending declares it.
            self.define(name)
            return Custom(name, args)
        try:
            return cls(*args)
        except TypeError:
            fields = ", ".join(field.name for field in dataclasses.fields(cls))
            raise OptionError(f"event {name!r} has the fields {fields}; {len(args)} values were given") from None
