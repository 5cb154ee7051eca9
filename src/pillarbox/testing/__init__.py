"""What tests of users need: a clock that is moved by hand, a server that says what a script tells it to."""

from .clock import ManualClock
from .scripted import ScriptedServer

__all__ = ["ManualClock", "ScriptedServer"]
