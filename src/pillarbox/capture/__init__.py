"""The capture inbox: a server that keeps every message for somebody to look at, and faults on purpose for its clients."""

from .faults import Fault, Faults, parse_fault
from .inbox import CAPTURED, Captured, Inbox

__all__ = ["CAPTURED", "Captured", "Fault", "Faults", "Inbox", "parse_fault"]
