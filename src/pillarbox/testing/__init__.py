"""What tests of users need: a clock that is moved by hand, a server that says what a script tells it to, names from dicts."""

from .clock import ManualClock
from .resolver import DictResolver
from .scripted import ScriptedServer

__all__ = ["DictResolver", "ManualClock", "ScriptedServer"]
