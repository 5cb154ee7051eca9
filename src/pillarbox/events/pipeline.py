"""The pipeline: plugins in order, changed at any time, compiled into one tuple of bound methods per event.

Every operation is all or nothing, and an event that is being dispatched goes on with the plugins it began with. Must not
know sessions or SMTP beyond `Reply`.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import PluginError
from .catalogue import CATALOGUE
from .check import check_methods, check_shape

_log = logging.getLogger("pillarbox.plugins")
SIMPLE = "simple"
ALL_NAMES = frozenset(CATALOGUE)
# What stands at the end whatever is pushed: the built-in behaviour, or the greeting that is left of it.
PINNED = frozenset((SIMPLE, "greeting"))


class Step(NamedTuple):
    """One plugin's method for one event."""

    alias: str
    plugin: Any
    method: Callable[[Any, Any], Any]
    # Its coroutines do not begin without a task around them.
    needs_task: bool = False


def _step(alias: str, plugin: Any, method: Callable[[Any, Any], Any]) -> Step:
    return Step(alias, plugin, method, bool(getattr(plugin, "needs_task", False)))


class Pipeline:
    """Plugins by alias, in order. The built-in behaviour, alias `simple`, is pinned to the end.

    `push` and friends take (alias, plugin); a plugin is named by its alias or by itself. `server` is passed to the
    plugins' own `plugin_register` and `plugin_unregister`.
    """

    def __init__(
        self,
        server: Any = None,
        changed: Callable[[str, str, Any], None] | None = None,
        compiled: Callable[[], None] | None = None,
        is_own: Callable[[str], bool] | None = None,
    ) -> None:
        """`is_own` is True for the name of an event that the program has declared."""
        self._is_own = is_own or (lambda name: False)
        self._server = server
        self._changed = changed or (lambda event, alias, plugin: None)
        self._compiled = compiled or (lambda: None)
        self._entries: list[tuple[str, Any]] = []
        self._table: dict[str, tuple[Step, ...]] = {}
        # What plugins asked for themselves, by their identity; one that asked for nothing gets all it has methods for.
        self._wanted: dict[int, set[tuple[str, str]]] = {}
        self._coming: list[Any] = []

    # ------------------------------------------------------------------ looking

    def order(self) -> list[Any]:
        """The plugins, in order."""
        return [plugin for _, plugin in self._entries]

    def list(self) -> dict[str, Any]:
        """The plugins by alias, in order."""
        return dict(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(f'{alias}={type(plugin).__name__}' for alias, plugin in self._entries)})"

    def _find(self, which: Any) -> int:
        for index, (alias, plugin) in enumerate(self._entries):
            if plugin is which or (isinstance(which, str) and alias == which):
                return index
        return -1

    def _index(self, which: Any) -> int:
        index = self._find(which)
        if index < 0:
            known = ", ".join(alias for alias, _ in self._entries) or "none"
            raise PluginError(f"no plugin {which!r} in the pipeline; there are: {known}")
        return index

    def get(self, which: Any) -> Any | None:
        """The plugin of that alias (or itself), or None."""
        index = self._find(which)
        return None if index < 0 else self._entries[index][1]

    def get_index(self, which: Any) -> int:
        """Its place, from 0. PluginError when it is not there."""
        return self._index(which)

    def alias_of(self, plugin: Any) -> str:
        """Its alias. PluginError when it is not there."""
        return self._entries[self._index(plugin)][0]

    # ----------------------------------------------------------------- changing

    def push(self, alias: str, plugin: Any) -> int:
        """Adds it at the end, before `simple`; the number of plugins."""
        return self._insert(self._end(), alias, plugin)

    def unshift(self, alias: str, plugin: Any) -> int:
        """Adds it at the front; the number of plugins."""
        return self._insert(0, alias, plugin)

    def insert_before(self, which: Any, alias: str, plugin: Any) -> int:
        """Adds it before another; the number of plugins."""
        return self._insert(self._index(which), alias, plugin)

    def insert_after(self, which: Any, alias: str, plugin: Any) -> int:
        """Adds it behind another; the number of plugins."""
        return self._insert(min(self._index(which) + 1, self._end()), alias, plugin)

    def pop(self) -> Any | None:
        """Removes and returns the last one before `simple`, None when there is none."""
        end = self._end()
        return self._remove(end - 1) if end else None

    def shift(self) -> Any | None:
        """Removes and returns the first one (never `simple`), None when there is none."""
        return self._remove(0) if self._end() else None

    def remove(self, which: Any) -> Any:
        """Removes and returns it; `simple` too, then the program answers by itself."""
        return self._remove(self._index(which))

    def replace(self, which: Any, alias: str, plugin: Any) -> Any:
        """Puts another in its place; returns the one that was there. When the new one refuses, the old one stays."""
        old_alias, old = self._entries[self._index(which)]
        self._check_new(alias, plugin, apart_from=old)
        with self._entering(alias, plugin):
            # Entering may have changed the pipeline: the place is looked up again.
            index = self._index(old)
            self._check_new(alias, plugin, apart_from=old)
            self._entries[index] = (alias, plugin)
        self._compile()
        self._leave(old_alias, old)
        self._changed("plugin_add", alias, plugin)
        return old

    def bump_up(self, which: Any, steps: int = 1) -> int:
        """Moves it towards the front; its new place."""
        return self._move(which, -steps)

    def bump_down(self, which: Any, steps: int = 1) -> int:
        """Moves it towards the end (never behind `simple`); its new place."""
        return self._move(which, steps)

    def _end(self) -> int:
        pinned = bool(self._entries) and self._entries[-1][0] in PINNED
        return len(self._entries) - 1 if pinned else len(self._entries)

    def _check_new(self, alias: str, plugin: Any, *, apart_from: Any = None) -> None:
        """PluginError when the alias is no name or taken, or the plugin is there already."""
        if not isinstance(alias, str) or not alias:
            raise PluginError(f"alias {alias!r}: give the plugin a name")
        for known, other in self._entries:
            if other is apart_from and other is not None:
                continue
            if known == alias:
                raise PluginError(
                    f"a plugin {alias!r} is in the pipeline already: remove it first, or use another alias"
                )
            if other is plugin:
                raise PluginError(f"this plugin is in the pipeline already, as {known!r}")

    def _insert(self, index: int, alias: str, plugin: Any) -> int:
        self._check_new(alias, plugin)
        anchor = self._entries[index][1] if index < len(self._entries) else None
        with self._entering(alias, plugin):
            self._check_new(alias, plugin)
            at = self._find(anchor) if anchor is not None else -1
            if alias in PINNED:
                self._entries.append((alias, plugin))
            else:
                self._entries.insert(at if at >= 0 else self._end(), (alias, plugin))
        self._compile()
        self._changed("plugin_add", alias, plugin)
        return len(self._entries)

    def _remove(self, index: int) -> Any:
        alias, plugin = self._entries.pop(index)
        self._compile()
        self._leave(alias, plugin)
        return plugin

    def _move(self, which: Any, steps: int) -> int:
        index = self._index(which)
        if not isinstance(steps, int):
            raise PluginError(f"{steps!r} is no number of places: give 1, 2, ...")
        entry = self._entries[index]
        if entry[0] in PINNED:
            return index
        del self._entries[index]
        target = max(0, min(index + steps, self._end()))
        self._entries.insert(target, entry)
        self._compile()
        return target

    @contextlib.contextmanager
    def _entering(self, alias: str, plugin: Any) -> Iterator[None]:
        """Registers the plugin, then lets the caller put it in; whatever goes wrong leaves no trace of it."""
        if any(coming is plugin for coming in self._coming):
            raise PluginError(f"plugin {alias!r} is entering the pipeline already")
        check_shape(alias, plugin)
        self._coming.append(plugin)
        try:
            self._register(alias, plugin)
            try:
                # Behind the registration, in which a plugin may declare events of its own.
                check_methods(alias, plugin, self._is_own)
                yield
            except PluginError:
                self._call_unregister(alias, plugin)
                raise
        except PluginError:
            self._wanted.pop(id(plugin), None)
            raise
        finally:
            self._coming.pop()

    def _register(self, alias: str, plugin: Any) -> None:
        register = getattr(plugin, "plugin_register", None)
        if register is None:
            return
        try:
            answer = register(self._server)
        except PluginError as error:
            raise PluginError(f"plugin {alias!r} failed to register: {error}") from error
        except Exception as error:
            raise PluginError(f"plugin {alias!r} failed to register: {error!r}") from error
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise PluginError(f"plugin {alias!r}: plugin_register is async: make it a plain method")
        if answer is False:
            raise PluginError(f"plugin {alias!r} refused to register")

    def _call_unregister(self, alias: str, plugin: Any) -> None:
        unregister = getattr(plugin, "plugin_unregister", None)
        if unregister is not None:
            try:
                unregister(self._server)
            except Exception:
                _log.exception("plugin %r failed to unregister", alias)

    def _leave(self, alias: str, plugin: Any) -> None:
        self._call_unregister(alias, plugin)
        self._wanted.pop(id(plugin), None)
        self._changed("plugin_del", alias, plugin)

    def clear(self) -> None:
        """Removes all, in order; at shutdown."""
        while self._entries:
            self._remove(0)

    # --------------------------------------------------------- what plugins want

    def want(self, plugin: Any, kind: str, names: Iterable[str]) -> None:
        """The plugin gets these events of a kind (SMTPD, SMTPC), and none that it has not asked for; `all` for every one."""
        self._wanted.setdefault(id(plugin), set()).update((kind, name) for name in names)
        if self._find(plugin) >= 0:
            self._compile()

    def unwant(self, plugin: Any, kind: str, names: Iterable[str]) -> builtins.list[str]:
        """It gets them no longer; the names that it had not asked for."""
        wanted = self._wanted.get(id(plugin))
        if wanted is None:
            # It has asked for nothing, so it gets all that it has methods for: from now on, all but these.
            methods = {name[3:] for name in dir(plugin) if name.startswith("on_")}
            known = ALL_NAMES if "default" in methods else methods & ALL_NAMES
            wanted = {("SMTPC" if name == "response" else "SMTPD", name) for name in known}
            self._wanted[id(plugin)] = wanted
        missing = [name for name in names if (kind, name) not in wanted]
        wanted.difference_update((kind, name) for name in names)
        if self._find(plugin) >= 0:
            self._compile()
        return missing

    def _wants(self, plugin: Any, name: str) -> bool:
        wanted = self._wanted.get(id(plugin))
        if wanted is None:
            return True
        kind = "SMTPC" if name == "response" else "SMTPD"
        return (kind, name) in wanted or (kind, "all") in wanted

    # ---------------------------------------------------------------- compiling

    def _compile(self) -> None:
        names: set[str] = set()
        for _, plugin in self._entries:
            names.update(name[3:] for name in dir(plugin) if name.startswith("on_") and name != "on_default")
        names.update(name for wanted in self._wanted.values() for _, name in wanted)
        table = {name: self._steps(name) for name in names}
        self._default = tuple(
            _step(alias, plugin, plugin.on_default) for alias, plugin in self._entries if hasattr(plugin, "on_default")
        )
        self._table = table
        self._compiled()

    _default: tuple[Step, ...] = ()

    def _steps(self, name: str) -> tuple[Step, ...]:
        steps = []
        for alias, plugin in self._entries:
            method = getattr(plugin, f"on_{name}", None) or getattr(plugin, "on_default", None)
            if method is not None and self._wants(plugin, name):
                steps.append(_step(alias, plugin, method))
        return tuple(steps)

    def steps(self, name: str) -> tuple[Step, ...]:
        """The methods that this event goes through, in order."""
        steps = self._table.get(name)
        if steps is None:
            steps = self._default
            if steps and self._wanted:
                steps = tuple(step for step in steps if self._wants(step.plugin, name))
        return steps
