"""The AUTH exchange of a session (RFC 4954): steps, credentials, limits on guessing, the `auth` event.

The authenticator may be plain or async; a plain one, which hashes, runs in the threads for hashes. Replies go back to the
session.
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
from .guesses import Try, Wait
from .hashing import HashLineFull
from .refusals import note_login

if TYPE_CHECKING:
    from .context import ServerContext
    from .session import SmtpSession

_log = logging.getLogger("pillarbox.auth")
_ACCEPTED = Reply(235, "2.7.0", "Authenticated")
# One text for a wrong name and a wrong password.
_REFUSED = Reply(535, "5.7.8", "Authentication credentials invalid", reason="bad-credentials")
_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled", reason="auth-cancelled")
_BAD_BASE64 = Reply(501, "5.5.2", "Not base64", reason="auth-cancelled")
_TOO_LONG = Reply(500, "5.5.6", "Authentication exchange line is too long", reason="auth-cancelled")
_BLOCKED = Reply(454, "4.7.0", "Too many failures: try again later", reason="auth-blocked")
_ASK_AGAIN_S = 0.1  # between two questions whether the tries before this one have their verdicts
_BUSY = Reply(454, "4.7.0", "Too many log-ins at the same time: try again later", reason="over-limit")
_FAULT = Reply(454, "4.7.0", "Temporary authentication failure: try again later", reason="auth-fault")


def log_in(session: SmtpSession, account: Account) -> None:
    """235 has left: the session is the account's."""
    session.facts.username = account.name
    session.facts.senders = session.context.default_senders(account)
    note_login(session, session.login, account.name)
    session.account, session.login = None, ""


class Authentication:
    """One exchange. `session.auth_decided(reply)` ends each step."""

    def __init__(self, context: ServerContext, session: SmtpSession, mechanism: str) -> None:
        self._context = context
        self._session = session
        self.mechanism = mechanism
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
            self._refuse(_TOO_LONG)
        elif line == b"*":
            self._refuse(_CANCELLED)
        else:
            try:
                response = decode_base64(line)
            except SaslFault:
                self._refuse(_BAD_BASE64)
                return
            self._step(response)

    def _refuse(self, reply: Reply, username: str | None = None) -> None:
        """The exchange ends without a verdict on a password."""
        note_login(self._session, self.mechanism, username, failure=reply.reason)
        self._session.auth_decided(reply)

    def _step(self, response: bytes | None) -> None:
        try:
            answer = self._mechanism.step(response)
        except SaslFault:
            self._failed(None, self._context.clock.monotonic())
            return
        if isinstance(answer, Credentials):
            self._check(answer)
        else:
            self._session.auth_decided(Reply(334, None, encode_base64(answer)))

    # -------------------------------------------------------------- the verdict

    def _check(self, credentials: Credentials) -> None:
        context, facts = self._context, self._session.facts
        attempt = context.guesses.begin(credentials.username[:255].lower(), facts.peer.host, context.clock.monotonic())
        if attempt is Wait.BLOCKED:
            self._refuse(_BLOCKED, credentials.username)
        elif attempt is Wait.BUSY:
            if not self._session.is_lost:
                context.clock.call_later(_ASK_AGAIN_S, lambda: self._check(credentials))
        elif attempt.delay_s:
            context.clock.call_later(attempt.delay_s, lambda: self._begin_verdict(credentials, attempt))
        else:
            self._begin_verdict(credentials, attempt)

    def _begin_verdict(self, credentials: Credentials, attempt: Try) -> None:
        if self._session.is_lost:
            self._context.guesses.take_back(attempt)
            return
        task = asyncio.get_running_loop().create_task(self._verify(credentials, attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _verify(self, credentials: Credentials, attempt: Try) -> None:
        context, began = self._context, self._context.clock.monotonic()
        try:
            async with asyncio.timeout(context.options.client_time_out):
                account = await self._ask(credentials, attempt)
        except HashLineFull:
            context.guesses.take_back(attempt)
            self._refuse(_BUSY, credentials.username)
            return
        except (Exception, SystemExit, KeyboardInterrupt):
            context.guesses.take_back(attempt)
            _log.exception("session %s: the authenticator failed", self._session.facts.client_id)
            self._refuse(_FAULT, credentials.username)
            return
        if account is None:
            context.guesses.fail(attempt, context.clock.monotonic())
            self._failed(credentials.username, began)
            return
        context.guesses.succeed(attempt, context.clock.monotonic())
        self._tell(credentials.username, account)

    async def _ask(self, credentials: Credentials, attempt: Try) -> Account | None:
        authenticate = self._context.authenticate
        assert authenticate is not None
        target = authenticate if inspect.isroutine(authenticate) else getattr(authenticate, "__call__", authenticate)  # noqa: B004
        if inspect.iscoroutinefunction(target):
            answer: Any = await authenticate(credentials.username, credentials.password)
        else:
            answer = await self._context.hashing.run(
                authenticate, credentials.username, credentials.password, goes_first=attempt.is_known
            )
            if inspect.isawaitable(answer):
                answer = await answer
        if isinstance(answer, Account):
            return answer
        if answer is True:
            return Account(credentials.username)
        if answer is False or answer is None:
            return None
        raise TypeError(f"the authenticator returned {type(answer).__name__}: bool or Account is wanted")

    def _failed(self, username: str | None, began: float) -> None:
        """A wrong guess costs a second from the beginning of its verdict, whatever the reason and however long a hash takes."""
        note_login(self._session, self.mechanism, username, failure=_REFUSED.reason)
        clock = self._context.clock
        delay_s = max(0.0, self._context.guess_delay_s - (clock.monotonic() - began))
        clock.call_later(delay_s, lambda: self._tell(username or "-", None))

    def _tell(self, username: str, account: Account | None) -> None:
        session, dispatcher = self._session, self._context.dispatcher

        def done(verdict: Verdict) -> None:
            self._finish(account, verdict)

        if not dispatcher.listens("auth"):
            done(None)
            return
        event = Auth(session.facts.client_id, session.facts, username, self.mechanism, account is not None)
        verdict = dispatcher.dispatch(event, done)
        if not isinstance(verdict, Parked):
            done(verdict)

    def _finish(self, account: Account | None, verdict: Verdict) -> None:
        """A plugin may refuse what the authenticator let in, never the other way round."""
        if account is None:
            self._session.auth_decided(_REFUSED)
        elif isinstance(verdict, Reply) and not verdict.is_positive:
            note_login(self._session, self.mechanism, account.name, failure=verdict.reason or "plugin")
            self._session.auth_decided(_FAULT if verdict.code == 451 else verdict)
        else:
            self._session.auth_decided(_ACCEPTED, account)
