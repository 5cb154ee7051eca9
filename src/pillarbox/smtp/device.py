"""The device profile: repairs arguments of MAIL and RCPT that printers, scanners and old programs send.

Each repair gives the form of RFC 5321 section 4.1.2 and the words for the log. Only sessions of the profile come here,
and only with a line that the grammar has refused.
"""

from __future__ import annotations

import re

from . import address as a

NO_BRACKETS = "address without angle brackets"
SPACES = "spaces within a path"
DOTS = "local-part with a dot at its start, its end, or beside another"
EMPTY_ORCPT = "empty ORCPT"
NO_GREETING = "no EHLO or HELO before mail"
NO_NAME = "EHLO or HELO without a name, or in another charset than UTF-8"
LF_COMMANDS = "command lines ended by LF alone"
LF_CONTENT = "content lines ended by LF or CR alone"

_KEYWORD = re.compile(rb"((?i:FROM|TO))([ \t]*):[ \t]*(.*)\Z", re.S)
# What stands within the brackets may have a quoted string, which may have a ">".
_IN_BRACKETS = re.compile(rb'<((?:"(?:[^"\\]|\\.)*"|[^<>"])*)>(.*)\Z', re.S)
_BARE = re.compile(rb'((?:"(?:[^"\\]|\\.)*"|[^\s<>"])+)((?:[ \t].*)?)\Z', re.S)
_DOTTED = re.compile(rb"(?:" + a.ATOM + rb"|\.)+\Z")
_EMPTY_ORCPT = re.compile(rb"(?<![^ \t])ORCPT=(?:[A-Za-z0-9-]+;)?(?=[ \t]|\Z)", re.I)


def repair_path(argument: bytes) -> tuple[bytes, tuple[str, ...]] | None:
    """The argument of MAIL or RCPT in its standard form, and what was repaired; None where it cannot be read."""
    keyword = _KEYWORD.match(argument)
    if keyword is None:
        return None
    repairs: list[str] = []
    name, space, rest = keyword.groups()
    found = _IN_BRACKETS.match(rest)
    if found is None:
        found = _BARE.match(rest)
        if found is None:
            return None
        repairs.append(NO_BRACKETS)
    inner, parameters = found.groups()
    path = inner.strip(b" \t")
    if space or path != inner:
        repairs.append(SPACES)
    local_part, at, domain = path.rpartition(b"@")
    if at:
        local_part, domain = local_part.rstrip(b" \t"), domain.strip(b" \t")
        if len(local_part) + len(domain) + 1 != len(path):
            repairs.append(SPACES)
        if b"." in local_part and _DOTTED.match(local_part) and not _is_dot_string(local_part):
            # RFC 5321 section 4.1.2: as a quoted string it is the same local-part.
            local_part = b'"' + local_part + b'"'
            repairs.append(DOTS)
        path = local_part + b"@" + domain
    if parameters and parameters[:1] not in b" \t":
        return None
    return name + b":<" + path + b">" + parameters, tuple(dict.fromkeys(repairs))


def without_empty_orcpt(parameters: bytes) -> bytes:
    """The parameters of RCPT without an ORCPT that names no address."""
    return _EMPTY_ORCPT.sub(b"", parameters)


_DOT_STRING = re.compile(a.DOT_STRING + rb"\Z")


def _is_dot_string(local_part: bytes) -> bool:
    return _DOT_STRING.match(local_part) is not None
