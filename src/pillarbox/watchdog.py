"""Names who holds the event loop: while a plugin or handler computes, or waits without `await`, nobody else is served.

A thread looks twice a second whether the loop still turns, and where it stands when it does not. It changes nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from types import FrameType

from .clock import SystemClock, Timer

_log = logging.getLogger("pillarbox.loop")
# Held for so long it is told of, once.
HELD_S = 2.0
LOOK_S = 0.5
_OURS = os.path.dirname(os.path.abspath(__file__))
_MOST_FRAMES = 3


class LoopWatchdog:
    """One loop's. `start` from within it."""

    def __init__(self) -> None:
        self._beat = 0.0
        self._thread_id = 0
        self._timer: Timer | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.holds = 0

    def start(self) -> None:
        """Begins to look."""
        self._thread_id = threading.get_ident()
        self._turn()
        self._thread = threading.Thread(target=self._watch, name="pillarbox-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        # In real time, whatever clock the server has: so is who waits.
        self._beat = time.monotonic()
        self._timer = SystemClock().call_later(LOOK_S / 2, self._turn)

    def _watch(self) -> None:
        told = 0.0
        while not self._ended.wait(LOOK_S):
            beat = self._beat
            seconds = time.monotonic() - beat
            if seconds < HELD_S or beat == told:
                continue
            frame = sys._current_frames().get(self._thread_id)
            if frame is None:
                return
            told = beat
            self.holds += 1
            _log.error("the event loop is held for %.1f s now: nobody is served; by %s", seconds, _where(frame))


def _where(frame: FrameType) -> str:
    """The innermost calls outside this package, the last first; what is held within it, if there are none."""
    calls = list(traceback.extract_stack(frame))
    others = [call for call in calls if not call.filename.startswith(_OURS) and not call.filename.startswith("<")]
    # Behind our own last frame stands what we called.
    own = max((number for number, call in enumerate(calls) if call.filename.startswith(_OURS)), default=-1)
    called = [call for call in others if calls.index(call) > own] or others
    return " < ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in called[:_MOST_FRAMES])
