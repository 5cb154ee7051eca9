"""The supervisor: keeps the listening sockets and the worker processes that use them; moves no mail itself.

It forks a worker for each row of sockets, starts again what dies, stops all on SIGTERM and SIGINT, and on SIGUSR2 restarts
one worker after the other: by becoming a new process image first (new code, new options), with sockets and workers kept.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import os
import selectors
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from ..errors import PillarboxError
from ..log.kinds import OPERATOR
from ..places import Slot
from .handover import SIGNALS, Handover, Trial, become_new, hold_signals, let_signals
from .sockets import Row, close_all, rows_of
from .systemd import notify

_log = logging.getLogger("pillarbox.supervisor")
# Who dies sooner than that has not worked at all: it is started again after a pause that doubles.
WORKED_S = 10.0
PAUSE_FIRST_S = 0.5
PAUSE_LONGEST_S = 30.0
# What a worker needs beyond its grace to close everything.
CLOSING_S = 10.0
EX_CONFIG = 78

Ready = Callable[[dict[str, str]], object]
Work = Callable[[Slot, Ready, int], None]


@dataclass(slots=True)
class _Worker:
    """One slot's process. `pid` 0: none at the moment."""

    number: int
    pid: int = 0
    is_ready: bool = False
    began: float = 0.0
    failures: int = 0
    start_at: float | None = None
    kill_at: float | None = None
    pipe: int = -1
    lives: int = 0
    wants_reload: bool = False


class Supervisor:
    """`work(slot, ready, life)` runs a worker: calls `ready` (with what is to be told) once it listens.

    It leaves when `life` (a descriptor) ends.
    """

    def __init__(self, work: Work, rows: list[Row], count: int, *, tls: ssl.SSLContext | None, grace_s: float) -> None:
        self._work = work
        self._rows = rows
        self._count = count
        self._tls = tls
        self._grace_s = grace_s
        self._workers = [_Worker(number) for number in range(count)]
        # Of the process image before: those that no slot of this one has.
        self._leaving: list[_Worker] = []
        self._rolling: list[_Worker] = []
        self._life = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._wakes = socket.socketpair()
        self._signals: list[int] = []
        self._is_stopping = False
        self._was_ready = False
        # Until all have been ready once, a worker that fails ends everything: nobody is served yet.
        self._is_first_start = True
        self._trial: Trial | None = None
        self._failure = ""
        self._words: dict[str, str] = {}
        # Reads the configuration anew, for workers that are started from now on; False when it is broken.
        self.on_reload: Callable[[], bool] = lambda: True

    def take_over(self, pids: dict[int, int], life: tuple[int, int] | None) -> None:
        """The workers of the process image before, by slot: they go on until it is their turn to be replaced."""
        if life is not None:
            for number in self._life:
                os.close(number)
            self._life = life
        for number, pid in pids.items():
            worker = self._workers[number] if number < self._count else _Worker(number)
            worker.pid, worker.is_ready, worker.began = pid, True, time.monotonic()
            if number >= self._count:
                self._leaving.append(worker)
        self._rolling = [worker for worker in self._workers if worker.pid]
        self._is_first_start = False

    def change_tls(self, tls: ssl.SSLContext | None) -> None:
        """For workers that are started from now on."""
        self._tls = tls

    def run(self, on_ready: Ready) -> None:
        """Until everything has ended; `on_ready` gets what the workers told. PillarboxError when they could not start."""
        gc.collect()
        gc.freeze()
        for sock in self._wakes:
            sock.setblocking(False)
        signal.set_wakeup_fd(self._wakes[1].fileno())
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: self._signals.append(number))
        let_signals()
        self._selector.register(self._wakes[0], selectors.EVENT_READ)
        for worker in self._workers:
            if not worker.pid:
                self._start(worker)
        while True:
            self._reap()
            self._act()
            if not self._is_anybody_there():
                break
            if not self._was_ready and not self._rolling and all(worker.is_ready for worker in self._workers):
                self._was_ready = True
                self._is_first_start = False
                on_ready(self._words)
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj is self._wakes[0]:
                    with contextlib.suppress(BlockingIOError):
                        self._wakes[0].recv(4096)
                else:
                    self._listen_to(key.data)
            while self._signals:
                self._on_signal(self._signals.pop(0))
        close_all(self._rows)
        if self._failure:
            raise PillarboxError(self._failure)

    def _is_anybody_there(self) -> bool:
        return not self._is_stopping or any(worker.pid for worker in self._workers + self._leaving)

    def _patience(self) -> float | None:
        if self._trial is not None:
            # SIGCHLD tells of its end; this finds out when it takes too long.
            return 1.0
        times = [
            t for worker in self._workers + self._leaving for t in (worker.start_at, worker.kill_at) if t is not None
        ]
        return max(0.0, min(times) - time.monotonic()) if times else None

    # ------------------------------------------------------------------ signals

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            if self._is_stopping:
                _log.warning("asked again: ending the workers at once; what they have not finished stays in the queue")
                self._kill_all()
            self._stop()
        elif number == signal.SIGUSR2 and not self._is_stopping:
            self._try_command()
        elif number == signal.SIGHUP and self.on_reload():
            for worker in self._workers:
                if worker.pid and worker.is_ready:
                    os.kill(worker.pid, signal.SIGHUP)
                else:
                    # It began with what was in force before.
                    worker.wants_reload = bool(worker.pid)

    def _stop(self) -> None:
        self._is_stopping = True
        notify("STOPPING=1")
        # For good: who connects now is refused, and goes elsewhere, in place of waiting for nobody.
        close_all(self._rows)
        for worker in self._workers + self._leaving:
            worker.start_at = None
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        if worker.pid and worker.kill_at is None:
            # Sessions have their grace, then what is being delivered.
            worker.kill_at = time.monotonic() + 2 * self._grace_s + CLOSING_S
            os.kill(worker.pid, signal.SIGTERM)

    def _kill_all(self) -> None:
        for worker in self._workers + self._leaving:
            if worker.pid:
                worker.kill_at = time.monotonic()

    # ------------------------------------------------------------------ workers

    def _start(self, worker: _Worker) -> None:
        worker.start_at, worker.is_ready, worker.began = None, False, time.monotonic()
        sys.stdout.flush()
        try:
            reading, writing = os.pipe()
            # A signal that came before the child has handlers of its own would be lost in it.
            hold_signals()
            try:
                pid = os.fork()
            except OSError:
                os.close(reading)
                os.close(writing)
                raise
            if pid == 0:
                os.close(reading)
                self._be_worker(worker, writing)
        except OSError as error:
            worker.failures += 1
            worker.start_at = worker.began + _pause(worker.failures)
            _log.error("worker %d cannot be started: %s", worker.number, error)
            return
        finally:
            let_signals()
        worker.pid, worker.lives = pid, worker.lives + 1
        os.close(writing)
        worker.pipe = reading
        self._selector.register(reading, selectors.EVENT_READ, worker)

    def _be_worker(self, worker: _Worker, pipe: int) -> NoReturn:
        """In the child: nothing of the supervisor's stays, but the sockets of this slot."""
        code, word = 70, _Word(pipe)
        try:
            signal.set_wakeup_fd(-1)
            for default in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(default, signal.SIG_DFL)
            # Asked for the server as a whole: the supervisor sees to it.
            for ignored in (signal.SIGUSR2, signal.SIGHUP):
                signal.signal(ignored, signal.SIG_IGN)
            let_signals()
            self._selector.close()
            for sock in self._wakes:
                sock.close()
            os.close(self._life[1])
            sockets = rows_of(self._rows, worker.number, self._count)
            own = {sock.fileno() for _, sock in sockets}
            for _, sock in itertools.chain.from_iterable(self._rows):
                if sock.fileno() not in own:
                    sock.close()
            is_first = self._is_first_start and not worker.lives
            slot = Slot(worker.number, self._count, tuple(sockets), self._tls, is_first)
            self._work(slot, word.tell, self._life[0])
            code = 0
        except PillarboxError as error:
            text = error.args[1] if isinstance(error, OSError) and len(error.args) > 1 else str(error)
            if not word.tell({"error": text}):
                _log.error("worker %d: %s", worker.number, text)
            code = EX_CONFIG
        except KeyboardInterrupt:
            code = 0
        except BaseException:
            _log.exception("worker %d failed", worker.number)
        finally:
            logging.shutdown()
            os._exit(code)

    def _listen_to(self, worker: _Worker) -> None:
        """A word from a worker that starts: it is ready, or why it is not."""
        data = os.read(worker.pipe, 65536)
        self._selector.unregister(worker.pipe)
        os.close(worker.pipe)
        worker.pipe = -1
        if not data:
            return
        word = json.loads(data)
        if "error" not in word:
            worker.is_ready = True
            if worker.wants_reload:
                worker.wants_reload = False
                os.kill(worker.pid, signal.SIGHUP)
            self._words |= word
            if self._rolling and self._rolling[0] is worker:
                _log.info("worker %d is new (pid %d)", worker.number, worker.pid)
                self._rolling.pop(0)
        elif not self._is_first_start:
            _log.error("worker %d could not start: %s", worker.number, word["error"])
        else:
            # At the very start nobody is served yet: whoever started us is told.
            self._failure = self._failure or word["error"]
            self._stop()

    def _reap(self) -> None:
        for worker in self._workers + self._leaving:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._ended(worker, status)

    def _ended(self, worker: _Worker, status: int) -> None:
        if worker.pipe >= 0:
            self._listen_to(worker)
        was_asked, now = worker.kill_at is not None, time.monotonic()
        pid, worker.pid, worker.kill_at, worker.is_ready = worker.pid, 0, None, False
        if worker in self._leaving:
            self._leaving.remove(worker)
            return
        if self._is_stopping:
            return
        code = os.waitstatus_to_exitcode(status)
        if was_asked:
            worker.start_at = now
            return
        if self._is_first_start:
            self._failure = self._failure or f"worker {worker.number} ended at its start ({_how(code)}); see the log"
            self._stop()
            return
        worker.failures = 0 if now - worker.began >= WORKED_S else worker.failures + 1
        pause = _pause(worker.failures)
        _log.error("worker %d (pid %d) %s: starting it again in %.1f s", worker.number, pid, _how(code), pause)
        worker.start_at = now + pause

    def _act(self) -> None:
        """What is due."""
        now = time.monotonic()
        for worker in self._workers + self._leaving:
            if worker.kill_at is not None and now >= worker.kill_at and worker.pid:
                _log.error("worker %d (pid %d) does not end: killed", worker.number, worker.pid)
                worker.kill_at = now + CLOSING_S
                os.kill(worker.pid, signal.SIGKILL)
            if worker.start_at is not None and now >= worker.start_at:
                self._start(worker)
        if self._is_stopping:
            return
        fault = self._trial.fault() if self._trial is not None else None
        if fault is not None:
            self._trial = None
            self._become_new(fault)
        if self._rolling:
            first = self._rolling[0]
            if first.is_ready:
                self._end(first)
        else:
            for worker in self._leaving:
                self._end(worker)

    # ------------------------------------------------------------------ restart

    def _try_command(self) -> None:
        """Whether it could start is found out beside the work."""
        # A roll that does not get on, for the new code does not start, may be replaced by another.
        is_stuck = bool(self._rolling) and self._rolling[0].failures > 0
        if self._trial is not None or self._is_first_start or (self._rolling and not is_stuck):
            _log.warning("a start or restart is under way already")
            return
        try:
            self._trial = Trial()
        except OSError as error:
            _log.error("no restart, everything stays as it is: %s", error)

    def _become_new(self, fault: str) -> None:
        """The same command again in this very process: children stay."""
        if fault:
            _log.error("no restart, everything stays as it is: %s", fault)
            return
        hold_signals()
        if self._signals:
            # They come first; SIGTERM among them ends it all.
            let_signals()
            self._trial = Trial()
            return
        OPERATOR.write({"action": "restart", "via": "signal"})
        _log.info("restarting %d workers, one after the other", self._count)
        pids = {worker.number: worker.pid for worker in self._workers + self._leaving if worker.pid}
        signal.set_wakeup_fd(-1)
        become_new(Handover(self._rows, self._life, pids))


class _Word:
    """What a worker tells its supervisor, once."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, word: dict[str, str]) -> bool:
        """False when it was told already: the number may be another file's by now."""
        pipe, self._pipe = self._pipe, -1
        if pipe < 0:
            return False
        os.write(pipe, json.dumps(word).encode())
        os.close(pipe)
        return True


def _pause(failures: int) -> float:
    return min(PAUSE_FIRST_S * 2 ** min(failures - 1, 10), PAUSE_LONGEST_S) if failures else 0.0


def _how(code: int) -> str:
    return f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
