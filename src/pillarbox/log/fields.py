"""The fields of log lines: names, types and meaning. Text and JSON lines, and docs/reference/log.md, use the same names."""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """What a field holds. `is_address`: in text lines it stands in angle brackets."""

    text: str
    is_address: bool = False


FIELDS: dict[str, Field] = {
    "reason": Field("a reason word (see below); in lines without a kind, free text"),
    "stage": Field(
        "where it happened: connect, the command in small letters, content; of a delivery: what the next hop was asked"
    ),
    "session": Field("id of the session; unique over workers and restarts"),
    "queue_id": Field("id of the message"),
    "original": Field("of a DSN: id of the message that it reports on"),
    "dsn_id": Field("id of the DSN"),
    "action": Field("what the operator did; of a DSN: failed, delayed, delivered or relayed"),
    "via": Field("how it came: socket (command line), api, dashboard, signal"),
    "uid": Field("user id of the process on the control socket"),
    "pid": Field("process id"),
    "admin": Field("address of the client of the admin API"),
    "by": Field(
        "which credential acted at the admin API: token, read-token, metrics-token, a browser session's id, or open (dev)"
    ),
    "count": Field("number of messages that changed; in `repaired` the number of repairs"),
    "repairs": Field("what the device profile repaired, each with its number"),
    "peer": Field("address of the client"),
    "port": Field("port of the client"),
    "listener": Field("address that the client connected to"),
    "code": Field("reply code"),
    "dsn": Field("enhanced status code"),
    "mechanism": Field("SASL mechanism"),
    "tls": Field("TLS version and cipher; absent without TLS"),
    "size": Field("octets of the content"),
    "recipients": Field("number of recipients"),
    "relay": Field("host[address]:port that took or refused the message, or the handler"),
    "next_hop": Field("key of the next hop"),
    "delay": Field("seconds from acceptance to this outcome"),
    "delays": Field(
        "a/b/c/d: seconds in the queue before the attempt / waiting for a connection / connecting / sending"
    ),
    "attempt": Field("number of the attempt, from 1"),
    "due_in": Field("seconds until the next attempt"),
    "status": Field("outcome: sent, deferred, bounced or expired"),
    "seconds": Field("length of the session"),
    "commands": Field("commands of the session"),
    "errors": Field("refused commands of the session"),
    "version": Field("version of the server"),
    "workers": Field("number of worker processes"),
    "listeners": Field("addresses that the server listens on"),
    "data_dir": Field("data directory"),
    "queue": Field("the queue: its folder or database"),
    "source": Field("how the message came: smtp, enqueue, dsn or import"),
    "user": Field("account"),
    "helo": Field("name that the client gave in EHLO or HELO"),
    "from": Field("reverse-path", is_address=True),
    "to": Field("recipient; in `queued` the first ten", is_address=True),
    "orig_to": Field("recipient before rewriting (ORCPT)", is_address=True),
    "message_id": Field("Message-ID of the content"),
    "path": Field("path of an HTTP request"),
    "filter": Field("which messages the operator named"),
    "error": Field("what went wrong"),
    "reply": Field("reply text: ours in `refused`, the next hop's in deliveries"),
    "state": Field("state that the recipient has now"),
}
