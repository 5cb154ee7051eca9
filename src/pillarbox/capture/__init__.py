"""The capture inbox: a server that keeps every message for somebody to look at, and faults on purpose for its clients."""

from ..queue.model import CAPTURED
from .faults import Fault, Faults, parse_fault
from .inbox import Captured, Inbox

__all__ = ["CAPTURED", "Captured", "Fault", "Faults", "Inbox", "parse_fault"]
