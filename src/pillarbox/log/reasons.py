"""The reason words of refusals and failed log-ins: log lines, the metric `pillarbox_refused_total` and fail2ban use them."""

from __future__ import annotations

from ..smtp.reply import Reply

# The word, and what it means. A label of a metric has one of these words or "other".
REASONS: dict[str, str] = {
    "relay-denied": "recipient in a foreign domain; the client is neither trusted nor logged in",
    "no-such-recipient": "recipient in one of `domains` that no handler, relay or mailbox takes",
    "no-recipients": "content for a transaction without a recipient",
    "auth-required": "the listener wants a log-in first",
    "tls-required": "the listener wants TLS first",
    "sender-not-allowed": "the account may not send as this reverse-path",
    "bad-credentials": "unknown account or wrong password",
    "auth-blocked": "too many failed log-ins of this peer or for this account",
    "auth-cancelled": "the client cancelled or broke the exchange",
    "auth-fault": "the authenticator failed",
    "dnsbl": "a DNS blocklist lists the client",
    "recipient-unverified": "`verify_recipients`: the relay could not be asked, or deferred the recipient",
    "sender-unverified": "the sender's domain or mailbox does not exist or does not answer",
    "talked-early": "the client sent before the greeting",
    "content-refused": "a plugin refused the content",
    "plugin": "a plugin or the program refused the command",
    "plugin-failed": "a plugin failed or took too long",
    "header-too-large": "header section over `max_header_bytes`",
    "mail-loop": "more Received fields than `max_received`",
    "bad-line-ends": "bare CR or LF in commands or content",
    "too-large": "message, line or command over its bound",
    "too-many-recipients": "over `max_recipients`",
    "too-many-errors": "over `max_errors`; the session is closed",
    "too-many-commands": "over `max_junk` commands without a message; the session is closed",
    "too-many-sessions": "over `max_sessions`",
    "too-many-sessions-of-peer": "over `max_sessions_per_peer`",
    "over-limit": "over a rate limit or another bound",
    "undeliverable": "a DSN whose recipient refused it, or could not be reached in time",
    "no-room": "less than `reserve_bytes` left on the disk",
    "queue-unavailable": "the queue cannot store mail now",
    "timeout": "the client was silent or too slow",
    "shutdown": "the server stops",
    "tls-failed": "TLS handshake failed",
    "proxy-failed": "no valid PROXY header",
    "syntax": "malformed command, parameter or address",
    "sequence": "command out of sequence",
    "not-offered": "command, parameter or extension that is not offered",
    "needs-smtputf8": "address with UTF-8 without SMTPUTF8",
    "protocol-abuse": "the client does not speak SMTP",
    "forbidden": "an admin request from another site, or a log-in link that was used or is too old",
    "wrong-host": "an admin request for a Host that is not ours",
    "internal-fault": "a fault of the server; the log has the details",
    "other": "a word that this table does not have",
}

_BY_CODE = {503: "sequence", 502: "not-offered", 504: "not-offered", 555: "not-offered", 552: "too-large"}
_BY_ENHANCED = {"5.6.7": "needs-smtputf8", "5.3.4": "too-large", "5.7.11": "tls-required", "4.3.1": "no-room"}


def reason_of_fault(reply: Reply) -> str:
    """The word for a refusal by the protocol itself, whose replies carry no word of their own."""
    return reply.reason or _BY_ENHANCED.get(reply.enhanced or "") or _BY_CODE.get(reply.code, "syntax")


def label(reason: str) -> str:
    """The word as a metric label: one of the table, or "other"."""
    return reason if reason in REASONS else "other"
