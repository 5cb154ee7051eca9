"""How commands and content are read: the rules of sessions, and those of the device profile."""

from __future__ import annotations

from dataclasses import replace

from ..options import Options
from ..smtp.server import Rules


def session_rules(options: Options) -> Rules:
    """The rules of every session that has no profile."""
    return Rules(
        max_line_bytes=options.max_line_bytes,
        normalise_bare=options.bare_line_ends == "normalise",
        accept_bare_lf_commands=options.bare_lf_commands == "accept",
        is_strict=options.strict_envelope,
        local_domain=options.hostname if options.local_parts else "",
    )


def device_rules(options: Options) -> Rules:
    """The rules of sessions whose clients' mistakes are repaired."""
    return replace(
        session_rules(options),
        normalise_bare=True,
        accept_bare_lf_commands=True,
        is_strict=False,
        local_domain=options.hostname,
        is_device=True,
        is_development=options.capture,
    )
