"""From a parsed command to its event: one row for each verb of the COMMANDS table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..events import catalogue as e
from ..smtp.command import COMMANDS, Command

# What a command adds to the junk of its session.
JUNK_OF = {row.verb: row.junk for row in COMMANDS.values()}

EVENT_NAMES = {row.verb: row.event for row in COMMANDS.values()}

# Plugins may change an event's parameters; the command may be other sessions', too.
EVENTS: dict[str, Callable[[e.Session, Command], Any]] = {
    "EHLO": lambda s, c: e.CmdEhlo(s.client_id, s, c.args, c.address or ""),
    "HELO": lambda s, c: e.CmdHelo(s.client_id, s, c.args, c.address or ""),
    "MAIL": lambda s, c: e.CmdMail(s.client_id, s, c.args, c.address, {**c.parameters}),
    "RCPT": lambda s, c: e.CmdRcpt(s.client_id, s, c.args, c.address or "", {**c.parameters}),
    "DATA": lambda s, c: e.CmdData(s.client_id, s, c.args),
    "BDAT": lambda s, c: e.CmdBdat(s.client_id, s, c.args, c.size_bytes, c.is_last),
    "RSET": lambda s, c: e.CmdRset(s.client_id, s, c.args),
    "NOOP": lambda s, c: e.CmdNoop(s.client_id, s, c.args),
    "VRFY": lambda s, c: e.CmdVrfy(s.client_id, s, c.args),
    "EXPN": lambda s, c: e.CmdExpn(s.client_id, s, c.args),
    "HELP": lambda s, c: e.CmdHelp(s.client_id, s, c.args),
    "QUIT": lambda s, c: e.CmdQuit(s.client_id, s, c.args),
    "STARTTLS": lambda s, c: e.CmdStarttls(s.client_id, s, c.args),
    "LHLO": lambda s, c: e.CmdLhlo(s.client_id, s, c.args, c.address or ""),
    "XCLIENT": lambda s, c: e.CmdXclient(s.client_id, s, c.args, c.verb),
    "XFORWARD": lambda s, c: e.CmdXclient(s.client_id, s, c.args, c.verb),
    "AUTH": lambda s, c: e.CmdAuth(s.client_id, s, c.mechanism, c.mechanism),
}
