"""`pillarbox serve`: the server until SIGTERM or SIGINT, in this process or in several, and a line once it listens."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from .. import __version__
from ..app import MailServer
from ..config.reloadable import RELOADABLE
from ..config.usual import find_file
from ..errors import OptionError, PillarboxError, StoreLockedError
from ..log.kinds import OPERATOR, STOPPED
from ..options import Options, parse_options
from ..places import Slot
from ..queue.whole import is_paused
from ..server.limits import raise_descriptor_limit
from ..server.tls import server_context
from .config import Config, DaemonOptions, Setting, admin_address, load
from .giveway import give_way
from .handover import Handover, Trial, become_new, hold_signals, is_check, let_signals, received
from .loading import resolve, without_code
from .logs import configure_logs
from .pid import claim
from .privileges import become, find_identity
from .ready import say_ready
from .sockets import Row, bind_all, close_all, rows_of
from .supervisor import Ready, Supervisor
from .systemd import activated_sockets, as_listen, notify

_log = logging.getLogger("pillarbox.daemon")
SWITCH_S = 0.0003
# `pillarbox queue` has a shard's lock for a moment while its worker is not there.
LOCKED_S = 3.0
DEFAULT_LISTEN = "127.0.0.1:2525"


def count_workers(wanted: int | str) -> int:
    """The number of workers; "auto" is one for each processor that this process may use."""
    if wanted == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(wanted)


def read_config(file: str | None, flags: Mapping[str, Any]) -> Config:
    """The configuration as it is now. ConfigError with all faults."""
    config = load(find_file(file, os.environ), os.environ, flags)
    if not {"listen", "address", "port"} & set(config.settings):
        # Port 25 wants root and a decision; the command is for a first look, too.
        config.options["listen"] = [DEFAULT_LISTEN]
        config.settings["listen"] = Setting([DEFAULT_LISTEN], "default of the command")
    return config


class Side(Protocol):
    """What runs beside a server and looks at it: the admin API."""

    url: str
    moved_from: str

    @property
    def is_open(self) -> bool: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def login_url(self) -> str: ...


MakeSide = Callable[[MailServer, tuple[str, int] | None, Sequence[str]], Side]


def serve(file: str | None, flags: Mapping[str, Any], make_side: MakeSide | None = None) -> None:
    """Blocks until the server has been shut down. `flags` by option name. Raises PillarboxError for what is in its way."""
    config = read_config(file, flags)
    daemon, activated = config.daemon, activated_sockets()
    if activated:
        # The service manager has bound them: where the server listens is not for it to say.
        for name in ("address", "port"):
            config.options.pop(name, None)
        config.options["listen"] = as_listen(activated)
    options = parse_options(without_code(config))
    count = count_workers(daemon.workers)
    _open_log(daemon)
    raise_descriptor_limit(options.max_sessions, options.maxrelay)
    for warning in config.warnings:
        _log.warning("configuration: %s", warning)
    # The queue is nobody else's business.
    os.umask(0o077)
    if count > 1 and not options.keeps_mail:
        raise OptionError(f"workers {count}: option 'store' {options.store!r} is of one process; use sqlite")
    if count > 1 and options.capture:
        raise OptionError(f"workers {count}: option 'capture' is of one process; use workers 1")
    if is_check():
        MailServer(**resolve(config))
        return
    left = received()
    rows = _rows(left, activated, options, count)
    if daemon.user is not None:
        become(find_identity(daemon.user), options.data_dir)
    elif os.geteuid() == 0:
        _log.warning(
            "serving as root: name a user for the option `user`, which the server becomes once its ports are bound"
        )
    # Code of others is imported by the user that serves, never by root on its way there.
    try:
        given = resolve(config)
        parse_options(given)
    except OptionError:
        if left is None:
            close_all(rows)
        raise
    pid_file = _claim(options, rows, is_first=left is None)
    if left is not None:
        # Not the server starts, a new image of it: what was paused or resumed meanwhile counts.
        given.pop("paused", None)
    # The file that was found at the start is the one that is read again: gone, it is missed.
    running = _Running(given, config, lambda: read_config(config.path or file, flags), pid_file, make_side)
    if count == 1 and not (left and left.pids):
        _Alone(running, rows).serve()
    else:
        _supervise(running, options, count, rows, left)
    STOPPED.write({"version": __version__, "pid": os.getpid(), "data_dir": str(options.data_dir)})
    if pid_file is not None:
        os.close(pid_file)


def _open_log(daemon: DaemonOptions) -> None:
    """The log, whose file belongs to the user that the server becomes. OptionError when it cannot be written."""
    as_json = None if daemon.log_format == "auto" else daemon.log_format == "json"
    try:
        handler = configure_logs(daemon.log_level, as_json=as_json, path=daemon.log_file)
        if daemon.log_file is not None and daemon.user is not None and os.geteuid() == 0:
            identity = find_identity(daemon.user)
            handler.give_to(identity.uid, identity.gid)
    except OSError as error:
        raise OptionError(f"option 'log_file': cannot write {daemon.log_file}: {error.strerror or error}") from None


def _rows(left: Handover | None, activated: list[tuple[str, socket.socket]], options: Options, count: int) -> list[Row]:
    """The listening sockets: those of the process image before, those of the service manager, or new ones."""
    if left is not None:
        return left.rows
    if activated:
        for _, sock in activated:
            sock.setblocking(False)
        return [activated]
    return bind_all(options, count)


def _claim(options: Options, rows: list[Row], *, is_first: bool) -> int | None:
    """server.pid; whoever has it already keeps it, and what was bound here is given up."""
    if not options.keeps_mail:
        return None
    try:
        return claim(options.data_dir)
    except BaseException:
        if is_first:
            close_all(rows)
        raise


class _Running:
    """What a process serves by, and how it is read anew."""

    def __init__(
        self,
        given: dict[str, Any],
        config: Config,
        read: Callable[[], Config],
        pid_file: int | None,
        make_side: MakeSide | None,
    ) -> None:
        self._make_side = make_side
        self._side: Side | None = None
        self.pid_file = pid_file
        # The supervisor logs the operator's actions, once for all workers.
        self.is_worker = False
        self.given = given
        self.config = config
        self._read = read
        self.grace_s = config.daemon.grace_s
        self.data_dir = parse_options(given).data_dir
        self.last: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._reloads_again = self._was_asked = False
        self._latest = config

    async def start_side(self, server: MailServer) -> dict[str, str]:
        """The admin API, where it is wanted: its URL and one to log in by."""
        address = admin_address(self.config.daemon.admin)
        if address == "off" or self._make_side is None:
            return {}
        os.makedirs(server.options.data_dir, mode=0o700, exist_ok=True)
        self._side = self._make_side(server, address, self.config.daemon.admin_hosts)
        await self._side.start()
        shown = {"admin": self._side.url, "moved_from": self._side.moved_from}
        if sys.stdout.isatty():
            # Elsewhere it is kept: a link that logs in is no matter for a journal.
            shown["login"] = self._side.login_url()
        return shown

    async def stop_side(self, server: MailServer) -> None:
        """Ends it."""
        if self._side is not None:
            await self._side.stop()

    def refresh(self, new_tls: Callable[[ssl.SSLContext | None], None]) -> bool:
        """In the supervisor: what workers that are started from now on begin with. False, and the log says why: a fault."""
        try:
            config = self._read()
            wanted = {**resolve(config, with_plugins=False), "plugins": self.given.get("plugins", {})}
            options = parse_options(wanted)
            tls = server_context(options.tls_cert, options.tls_key) if options.tls_cert else None
            given = {name: value for name, value in self.given.items() if name not in RELOADABLE}
            given |= {name: value for name, value in wanted.items() if name in RELOADABLE}
            parse_options(given)
        except Exception as error:
            _say_not_reloaded(error)
            return False
        self.given = given
        new_tls(tls)
        OPERATOR.write({"action": "reload", "via": "signal"})
        return True

    def reload(self, server: MailServer) -> None:
        """SIGHUP: what can change changes for new sessions; with a fault everything stays, and the log says which."""
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload(server))
        else:
            self._reloads_again = True

    async def _reload(self, server: MailServer) -> None:
        try:
            if self._was_asked:
                # This worker has reloaded when it was asked by the control socket, and the supervisor passes it on.
                self._was_asked = False
                return
            if not self.is_worker:
                OPERATOR.write({"action": "reload", "via": "signal"})
            await self._apply(server)
        except Exception as error:
            _say_not_reloaded(error)
        finally:
            if self._reloads_again:
                self._reloads_again = False
                self._reloading = asyncio.get_running_loop().create_task(self._reload(server))

    async def _apply(self, server: MailServer) -> dict[str, Any]:
        """Reads and applies the configuration. Returns the names that changed, and those that only a restart changes."""
        # Reading and judging a long file takes its time, in which mail goes on.
        config, given = await asyncio.to_thread(self._read_all)
        before = server.options
        names = server.reload(**{**given, "plugins": self.given.get("plugins", {})})
        fields = (name for name in type(before).model_fields if name != "handlers")
        changed = [name for name in fields if getattr(before, name) != getattr(server.options, name)]
        if config.entries("handlers") != self._latest.entries("handlers"):
            changed.append("handlers")
        if config.entries("plugins") != self.config.entries("plugins"):
            names.append("plugins")
        names += [
            name for name in type(config.daemon).model_fields if _differs(config.daemon, self.config.daemon, name)
        ]
        self._latest = config
        _log.info(
            "reloaded: %s; certificates and accounts are read again, in force for new sessions and connections",
            ", ".join(changed) or "no option changed",
        )
        if names:
            # Only what was taken: the rest is reported again next time.
            _log.warning("only a restart changes %s: `pillarbox reload --restart`", ", ".join(sorted(names)))
        return {"pid": self.pid, "changed": changed, "restart": sorted(names)}

    def answer(self, server: MailServer) -> None:
        """From now on `pillarbox reload` is answered by the control socket."""

        async def reload() -> dict[str, Any]:
            done = await self._apply(server)
            if self.is_worker:
                self._was_asked = True
                # The supervisor tells the other workers, and logs it once for all.
                os.kill(self.pid, signal.SIGHUP)
            return {**done, "is_logged": self.is_worker}

        async def restart() -> dict[str, Any]:
            os.kill(self.pid, signal.SIGUSR2)
            return {"pid": self.pid, "is_logged": True}

        server.answer_control("reload", reload)
        server.answer_control("restart", restart)

    @property
    def pid(self) -> int:
        """The process that is the server."""
        return os.getppid() if self.is_worker else os.getpid()

    def _read_all(self) -> tuple[Config, dict[str, Any]]:
        config = self._read()
        return config, resolve(config, with_plugins=False)


def _say_not_reloaded(error: Exception) -> None:
    text = str(error) if isinstance(error, PillarboxError) else f"{type(error).__name__}: {error}"
    for line in text.splitlines() or [""]:
        _log.error("not reloaded, everything stays as it was: %s", line)


def _differs(one: DaemonOptions, other: DaemonOptions, name: str) -> bool:
    return name != "relay_pass_file" and getattr(one, name) != getattr(other, name)


class _Alone:
    """One process. SIGUSR2: it finishes what it has, and becomes a new one; who connects meanwhile waits in the socket."""

    def __init__(self, running: _Running, rows: list[Row]) -> None:
        self._running = running
        self._rows = rows
        self._wants_restart = self._is_over = False
        self._trial: Trial | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def serve(self) -> None:
        """Blocks."""
        running = self._running

        def run() -> None:
            MailServer.run(
                on_ready=self._announce,
                on_closing=running.stop_side,
                grace_s=running.grace_s,
                slot=Slot(sockets=tuple(rows_of(self._rows, 0, 1))),
                **running.given,
            )

        _with_lock(run)
        hold_signals()
        if self._wants_restart:
            become_new(Handover(self._rows))
        let_signals()
        close_all(self._rows)

    async def _announce(self, server: MailServer) -> None:
        side = await self._running.start_side(server)
        _settle_in()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._running.reload, server)
        self._running.answer(server)
        loop.add_signal_handler(signal.SIGUSR2, self._begin, self._restart, server)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin, self._end, server)
        let_signals()
        say_ready(server.getsocknames(), server.options, 1, side)

    def _begin(self, action: Callable[[MailServer], Coroutine[Any, Any, None]], server: MailServer) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(action(server)))

    async def _restart(self, server: MailServer) -> None:
        if self._trial is not None or self._is_over:
            return
        fault: str | None
        try:
            self._trial = trial = Trial()
            fault = await _outcome(trial)
        except OSError as error:
            fault = str(error)
        self._trial = None
        if fault:
            _log.error("no restart, everything stays as it is: %s", fault)
        elif not self._is_over:
            OPERATOR.write({"action": "restart", "via": "signal"})
            _log.info("restarting")
            self._wants_restart = True
            await self._close(server)

    async def _end(self, server: MailServer) -> None:
        notify("STOPPING=1")
        # For good: who connects now is refused, in place of waiting for nobody.
        self._wants_restart, self._is_over = False, True
        close_all(self._rows)
        await self._close(server)

    async def _close(self, server: MailServer) -> None:
        await self._running.stop_side(server)
        await server.shutdown(grace_s=self._running.grace_s)


async def _outcome(trial: Trial) -> str:
    # The trial is a process: its end comes when it comes.
    while (fault := trial.fault()) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return fault


def _supervise(running: _Running, options: Options, count: int, rows: list[Row], left: Handover | None) -> None:
    """Several processes."""
    tls = server_context(options.tls_cert, options.tls_key) if options.tls_cert else None

    def work(slot: Slot, ready: Ready, life: int) -> None:
        _work(running, slot, ready, life)

    supervisor = Supervisor(work, rows, count, tls=tls, grace_s=running.grace_s)
    supervisor.on_reload = lambda: running.refresh(supervisor.change_tls)
    if left is not None:
        supervisor.take_over(left.pids, left.life)
    names = [_name(sock.getsockname()) for _, sock in rows[0]]
    supervisor.run(lambda words: say_ready(names, options, count, words))


def _name(name: Any) -> tuple[str, int]:
    return (name, 0) if isinstance(name, str) else (str(name[0]), int(name[1]))


def _work(running: _Running, slot: Slot, ready: Ready, life: int) -> None:
    """One worker's life, in its own process."""
    running.is_worker = True
    if running.pid_file is not None:
        # The lock says which process is the server: that is the supervisor, over its restarts too.
        os.close(running.pid_file)
    if slot.count > 1:
        # Two workers, 20 sessions, new connections: 5 to 10 % more messages. One alone gains nothing.
        give_way()

    async def announce(server: MailServer) -> None:
        # One is enough: it looks at all of them.
        side = await running.start_side(server) if slot.number == 0 else {}
        _settle_in()
        # The supervisor is gone when its end of this is closed: then nobody keeps our sockets, nor starts us again.
        loop = asyncio.get_running_loop()
        loop.add_reader(life, _left_alone, running, server, life)
        loop.add_signal_handler(signal.SIGHUP, running.reload, server)
        running.answer(server)
        # The listeners have copies: when those and the supervisor's are closed, nobody waits in vain.
        for _, sock in slot.sockets or ():
            sock.close()
        ready(side)

    # What is paused is the queue as a whole, this worker's part included, if there was none before. Only who starts the
    # server says otherwise, not who comes in place of a worker.
    given = running.given
    given["paused"] = (given.get("paused", False) and slot.is_first) or is_paused(str(running.data_dir))
    _with_lock(
        lambda: MailServer.run(
            on_ready=announce, on_closing=running.stop_side, grace_s=running.grace_s, slot=slot, **given
        )
    )


def _with_lock(run: Callable[[], None]) -> None:
    """`pillarbox queue` and others have the lock for a moment while nobody else has it: that is waited for."""
    deadline = time.monotonic() + LOCKED_S
    while True:
        try:
            run()
        except StoreLockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _left_alone(running: _Running, server: MailServer, life: int) -> None:
    loop = asyncio.get_running_loop()
    loop.remove_reader(life)
    running.last = loop.create_task(server.shutdown(grace_s=running.grace_s))


def _settle_in() -> None:
    # What exists now lives as long as the server: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # The queue's writer shares the interpreter's lock with the loop: by default it may wait 5 ms for its turn, which is
    # longer than a commit takes. Measured with 20 sessions: a tenth more messages.
    sys.setswitchinterval(SWITCH_S)
