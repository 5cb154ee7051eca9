"""Watches a Pillarbox as an operator's tools do: a page of /metrics a second, and an open event stream. Ends with its parent."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit


def main(folder: str) -> None:
    """Until it is killed."""
    path = Path(folder) / "admin.json"
    while not path.exists() or not json.loads(path.read_text())["url"]:
        time.sleep(0.05)
    found = json.loads(path.read_text())
    place, headers = urlsplit(found["url"]).netloc, {"Authorization": f"Bearer {found['token']}"}

    def read_events() -> None:
        connection = http.client.HTTPConnection(place)
        connection.request("GET", "/api/events", headers=headers)
        answer = connection.getresponse()
        while answer.read1(65536):
            pass

    threading.Thread(target=read_events, daemon=True).start()
    while True:
        connection = http.client.HTTPConnection(place)
        connection.request("GET", "/metrics", headers=headers)
        connection.getresponse().read()
        connection.close()
        time.sleep(1.0)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (OSError, http.client.HTTPException):
        # The server has ended.
        pass
