"""Pillarbox without the pipeline's slots: what the places where a plugin might stand cost while none does.

The places are cut out of the source text before it is compiled, so that not even their tests run. Each cut has to be
found: when the code has changed, this fails and says where.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

_WIRETAP = "        if self._context.wiretap is not None:\n            self._context.wiretap(self, {})\n"
# What stands in a module, and what is left of it.
CUTS: dict[str, list[tuple[str, str]]] = {
    "pillarbox.server.session": [
        (_WIRETAP.format("command"), ""),
        (_WIRETAP.format("end"), ""),
        (
            "        direct = self._dispatcher.direct[EVENT_NAMES[command.verb]]\n"
            "        if direct is not None:\n"
            "            # Nobody but the built-in behaviour listens: no event, no walk.\n"
            "            self._answer_directly(command, direct if direct.__class__ is Reply else direct(self.facts, command))  "
            "# type: ignore\n            return\n",
            # The table of built-in answers is no slot.
            "        direct = self._dispatcher.direct[EVENT_NAMES[command.verb]]\n"
            "        self._answer_directly(command, direct if direct.__class__ is Reply else direct(self.facts, command))\n"
            "        return\n",
        ),
        (
            "        elif command.error is not None or not self._dispatcher.has_direct or not self._answer_at_once(command):\n",
            "        elif command.error is not None or not self._answer_at_once(command):\n",
        ),
        (
            "        if greeting is not None:\n            # Only the 220",
            "        if True:\n            # Only the 220",
        ),
        (
            '        if dispatcher.heard["response"]:\n            self._waiting = True\n            command = self._command\n',
            "        if False:\n            self._waiting = True\n            command = self._command\n",
        ),
        (
            '        if self._dispatcher.listens("disconnected"):\n'
            "            self._dispatcher.post(e.Disconnected(facts.client_id, facts, self.reason))\n",
            "",
        ),
    ],
    "pillarbox.server.atonce": [
        ("        if direct is None:\n            return False\n", ""),
    ],
    "pillarbox.server.intake": [
        ("\n            and context.wiretap is None\n", "\n"),
        (
            '        dispatcher = self._context.dispatcher\n        if not dispatcher.heard["message"]:\n'
            "            self._accept(envelope, content, scan)\n            return\n",
            "        self._accept(envelope, content, scan)\n        return\n        dispatcher = self._context.dispatcher\n",
        ),
        ('    if dispatcher.heard["message_queued"]:\n', "    if False:\n"),
    ],
}


def without_slots(name: str, source: str) -> str:
    """The module's text without its slots. LookupError names a cut that is not found once."""
    for what, instead in CUTS[name]:
        if source.count(what) != 1:
            raise LookupError(f"{name} has changed: mend bench/bare_server.py, which cuts out of it:\n{what}")
        source = source.replace(what, instead)
    return source


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(without_slots(fullname, self.get_data(path).decode()), path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in CUTS:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        if found is None or found.origin is None:
            return None
        return importlib.util.spec_from_file_location(fullname, found.origin, loader=_Loader(fullname, found.origin))


def main() -> None:
    """`pillarbox`, with the arguments of its command line."""
    sys.meta_path.insert(0, _Finder())
    from pillarbox.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
