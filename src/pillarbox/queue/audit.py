"""The log line of an operator's action that comes over the control socket: who asked, for what, how many it changed."""

from __future__ import annotations

import socket
import struct
from typing import Any

from ..log.kinds import OPERATOR
from .model import Action

_CHANGES = frozenset(action.value for action in Action)
_ACTIONS = _CHANGES | {"pause", "resume", "reload"}


def note_action(sock: Any, request: Any, answer: Any) -> None:
    """Writes the line, if the request was an action. `sock` is the accepted socket: the kernel knows whose it is."""
    verb = request.get("verb") if isinstance(request, dict) else None
    if verb not in _ACTIONS or not OPERATOR.is_enabled:
        return
    query = request.get("query") if isinstance(request.get("query"), dict) else {}
    uids = query.pop("uids", None) if query else None
    pid, uid = _peer(sock)
    OPERATOR.write(
        {
            "action": verb,
            "via": "socket",
            "uid": uid,
            "pid": pid,
            "count": len(answer) if isinstance(answer, list) else None,
            "next_hop": request.get("next_hop") or query.pop("next_hop", None),
            "queue_id": ",".join(map(str, uids[:10])) if isinstance(uids, list) and uids else None,
            "filter": " ".join(f"{name}={value}" for name, value in sorted(query.items()))[:300]
            or ("everything" if request.get("is_everything") and not uids else None),
        }
    )


def _peer(sock: Any) -> tuple[int | None, int | None]:
    """pid and uid of the process on the other end; None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if sock is None or option is None:
        return None, None
    try:
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    except OSError:
        return None, None
    return pid, uid
