"""The AUTH exchange of a session (RFC 4954): steps, credentials, limits on guessing, the `auth` event.

Whoever asks for the password's verdict may be plain or async; a plain callable that takes its time (a hash) runs in a
thread. Replies go back to the session.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from ..events.catalogue import Auth
from ..events.dispatch import Parked, Verdict
from ..smtp.reply import Reply
from ..smtp.sasl import Credentials, SaslFault, ServerMechanism, decode_base64, encode_base64, server_mechanism
from .accounts import Account, AnyAccount
from .limits import network_key

if TYPE_CHECKING:
    from .context import ServerContext
    from .session import SmtpSession

_log = logging.getLogger("pillarbox.auth")
_ACCEPTED = Reply(235, "2.7.0", "Authenticated")
# One text for a wrong name and a wrong password.
_REFUSED = Reply(535, "5.7.8", "Authentication credentials invalid")
_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")
_BAD_BASE64 = Reply(501, "5.5.2", "Not base64")
_TOO_LONG = Reply(500, "5.5.6", "Authentication exchange line is too long")
_BLOCKED = Reply(454, "4.7.0", "Too many failures: try again later")
_FAULT = Reply(454, "4.7.0", "Temporary authentication failure: try again later")


class Authentication:
    """One exchange. `session.auth_decided(reply)` ends each step."""

    def __init__(self, context: ServerContext, session: SmtpSession, mechanism: str) -> None:
        self._context = context
        self._session = session
        self._name = mechanism
        self._mechanism: ServerMechanism = server_mechanism(
            mechanism, takes_anything=isinstance(context.authenticate, AnyAccount)
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, initial: bytes | None) -> None:
        """The AUTH command itself, with its initial response as it was given (base64), or None."""
        if initial is None:
            self._step(None)
        else:
            self.line(initial)

    def line(self, line: bytes | None) -> None:
        """A line of the exchange; None when it was too long."""
        if line is None:
            self._session.auth_decided(_TOO_LONG)
        elif line == b"*":
            self._session.auth_decided(_CANCELLED)
        else:
            try:
                response = decode_base64(line)
            except SaslFault:
                self._session.auth_decided(_BAD_BASE64)
                return
            self._step(response)

    def _step(self, response: bytes | None) -> None:
        try:
            answer = self._mechanism.step(response)
        except SaslFault:
            self._failed("-")
            return
        if isinstance(answer, Credentials):
            self._check(answer)
        else:
            self._session.auth_decided(Reply(334, None, encode_base64(answer)))

    # -------------------------------------------------------------- the verdict

    def _check(self, credentials: Credentials) -> None:
        context = self._context
        now = context.clock.monotonic()
        peer = network_key(self._session.facts.peer.host)
        name = credentials.username[:255].lower()
        if context.guesses_by_peer.is_blocked(peer, now) or context.guesses_by_account.is_blocked(name, now):
            self._session.auth_decided(_BLOCKED)
            return
        task = asyncio.get_running_loop().create_task(self._verify(credentials, peer, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _verify(self, credentials: Credentials, peer: str, name: str) -> None:
        try:
            async with asyncio.timeout(self._context.options.client_time_out):
                account = await self._ask(credentials)
        except Exception:
            _log.exception("session %s: the authenticator failed", self._session.facts.client_id)
            self._session.auth_decided(_FAULT)
            return
        if account is None:
            now = self._context.clock.monotonic()
            self._context.guesses_by_peer.fail(peer, now)
            self._context.guesses_by_account.fail(name, now)
            self._failed(credentials.username)
            return
        self._context.guesses_by_account.succeed(name)
        self._tell(credentials.username, account)

    async def _ask(self, credentials: Credentials) -> Account | None:
        authenticate = self._context.authenticate
        assert authenticate is not None
        target = authenticate if inspect.isroutine(authenticate) else getattr(authenticate, "__call__", authenticate)  # noqa: B004
        if inspect.iscoroutinefunction(target):
            answer: Any = await authenticate(credentials.username, credentials.password)
        else:
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(None, authenticate, credentials.username, credentials.password)
            if inspect.isawaitable(answer):
                answer = await answer
        if isinstance(answer, Account):
            return answer
        if answer is True:
            return Account(credentials.username)
        if answer is False or answer is None:
            return None
        raise TypeError(f"the authenticator returned {type(answer).__name__}: bool or Account is wanted")

    def _failed(self, username: str) -> None:
        """A wrong guess costs time, the same for every reason."""
        session = self._session
        _log.warning(
            "session %s: authentication failed for %r from %s",
            session.facts.client_id,
            username,
            session.facts.peer.host,
            extra={
                "session": session.facts.client_id,
                "peer": session.facts.peer.host,
                "reason": "authentication failed",
            },
        )
        self._context.clock.call_later(self._context.guess_delay_s, lambda: self._tell(username, None))

    def _tell(self, username: str, account: Account | None) -> None:
        session, dispatcher = self._session, self._context.dispatcher

        def done(verdict: Verdict) -> None:
            self._finish(account, verdict)

        if not dispatcher.listens("auth"):
            done(None)
            return
        event = Auth(session.facts.client_id, session.facts, username, self._name, account is not None)
        verdict = dispatcher.dispatch(event, done)
        if not isinstance(verdict, Parked):
            done(verdict)

    def _finish(self, account: Account | None, verdict: Verdict) -> None:
        """A plugin may refuse what the authenticator let in, never the other way round."""
        if account is None:
            self._session.auth_decided(_REFUSED)
        elif isinstance(verdict, Reply) and not verdict.is_positive:
            self._session.auth_decided(_FAULT if verdict.code == 451 else verdict)
        else:
            self._session.auth_decided(_ACCEPTED, account)
