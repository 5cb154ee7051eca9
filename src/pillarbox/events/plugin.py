"""Plugin and Eat: how code takes part in what happens (docs/guides/write-a-plugin.md)."""

from __future__ import annotations

from enum import Enum


class Eat(Enum):
    """What a plugin's method may return, beside nothing and a Reply.

    NONE: go on. CLIENT: the remaining plugins see the event, subscribers do not (for `response`: nothing is sent).
    PLUGIN: the remaining plugins do not, subscribers do. ALL: nobody else sees it.
    """

    NONE = 0
    CLIENT = 1
    PLUGIN = 2
    ALL = 3

    __hash__ = object.__hash__


class Plugin:
    """A convenience: any object with methods `on_<event>(server, event)` will do.

    A method is plain or `async` and returns None, an `Eat`, or a `Reply`, which answers the command (or refuses the
    message, or the connection) and eats the event. `on_default` gets every event that has no method of its own.
    `plugin_register(server)` is called once when the plugin enters the pipeline (returning False refuses), and
    `plugin_unregister(server)` once when it leaves.

    `ignores_failures` True: an exception of this plugin is logged and the event goes on as if it had returned nothing;
    False (the default): the command is answered 451 4.3.0. `deadline_s` bounds an async method. `needs_task` True runs
    async methods in a task from their first line on, which `asyncio.timeout` and `asyncio.current_task` need; without,
    they begin inline, which costs less.
    """

    ignores_failures: bool = False
    deadline_s: float = 60.0
    needs_task: bool = False
