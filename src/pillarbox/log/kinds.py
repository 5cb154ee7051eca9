"""Every kind of log line with fields: when it is written, at which level, by which logger, with which fields.

docs/reference/log.md is generated from this table. Fields that a peer chooses stand last in each row.
"""

from __future__ import annotations

from logging import DEBUG, INFO, WARNING

from .record import Kind

_SESSION, _AUTH, _DELIVERY, _ADMIN = "pillarbox.session", "pillarbox.auth", "pillarbox.delivery", "pillarbox.admin"

CONNECTED = Kind("connected", _SESSION, DEBUG, "a client connected", "session peer port listener tls")
DISCONNECTED = Kind(
    "disconnected", _SESSION, DEBUG, "a session ended", "session peer seconds commands errors user helo error"
)
REFUSED = Kind(
    "refused",
    _SESSION,
    INFO,
    "a session, command or message was refused",
    "reason stage session peer code dsn tls size user helo from to reply",
)
CLOSED = Kind(
    "closed",
    _SESSION,
    INFO,
    "the server ended a session: too many errors, silence, abuse, shutdown",
    "reason session peer code user helo error",
)
TLS_FAILED = Kind("tls-failed", _SESSION, INFO, "a TLS handshake with a client failed", "reason session peer error")
REPAIRED = Kind(
    "repaired",
    _SESSION,
    INFO,
    "a session of the device profile ended in which the server repaired what the client sent",
    "session peer count repairs user helo",
)
LOGGED_IN = Kind("logged-in", _AUTH, INFO, "a client logged in", "session peer mechanism tls user helo")
LOGIN_FAILED = Kind(
    "login-failed", _AUTH, WARNING, "a log-in failed or was blocked", "reason session peer mechanism tls user helo"
)
QUEUED = Kind(
    "queued",
    _SESSION,
    INFO,
    "a message was stored, and got its 250",
    "queue_id source original session peer size recipients tls user helo from to message_id",
)
_OUTCOME = "queue_id status relay next_hop delay delays dsn tls size attempt due_in stage from to orig_to reply"
DELIVERED = Kind("delivered", _DELIVERY, INFO, "a recipient's copy was delivered", _OUTCOME)
DEFERRED = Kind("deferred", _DELIVERY, WARNING, "a recipient's copy was not delivered and is tried again", _OUTCOME)
BOUNCED = Kind("bounced", _DELIVERY, WARNING, "a recipient's copy was refused for good", _OUTCOME)
EXPIRED = Kind("expired", _DELIVERY, WARNING, "a recipient's copy was given up after `expire_s`", _OUTCOME)
HELD = Kind("held", _DELIVERY, WARNING, "a recipient's copy waits for the operator", _OUTCOME)
OUTCOMES = {kind.name: kind for kind in (DELIVERED, DEFERRED, BOUNCED, EXPIRED, HELD)}
DSN_QUEUED = Kind("dsn-queued", _DELIVERY, INFO, "a DSN on a message was queued", "queue_id dsn_id action to")
DSN_UNSENT = Kind(
    "dsn-unsent",
    _DELIVERY,
    WARNING,
    "a DSN was not made (over `max_dsns_per_domain`), or could not be delivered",
    "reason queue_id action to",
)
OPERATOR = Kind(
    "operator",
    _ADMIN,
    INFO,
    "an operator paused, resumed, held, released, retried, cancelled or deleted, reloaded, restarted or logged in",
    "action via uid pid admin by count next_hop queue_id filter",
)
ADMIN_REFUSED = Kind(
    "admin-refused", _ADMIN, WARNING, "a request to the admin API or dashboard was refused", "reason admin by code path"
)
STARTED = Kind(
    "started", "pillarbox.daemon", INFO, "the server listens", "version pid workers listeners data_dir queue"
)
STOPPED = Kind("stopped", "pillarbox.daemon", INFO, "the server has ended", "version pid data_dir")
KINDS = tuple(kind for kind in tuple(globals().values()) if isinstance(kind, Kind))
