"""The admin API of a running server, for commands: where it is and its token stand in admin.json."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ..errors import StoreError
from .place import server_folder

_FILE = "admin.json"


def find(data_dir: str | None) -> tuple[str, str]:
    """(url, token). StoreError says why there is none."""
    folder = server_folder(data_dir)
    path = os.path.join(folder, _FILE)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        url, token = str(found["url"]), str(found["token"])
    except FileNotFoundError:
        url = token = ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None
    if not url:
        raise StoreError(
            f"no server with an admin API runs on {folder}: start `pillarbox serve`, or see --admin and --data-dir"
        )
    return url, token


def ask(url: str, token: str, method: str, path: str, *, timeout_s: float = 30.0) -> http.client.HTTPResponse:
    """One request; StoreError for what is not 2yz. Straight there: a proxy of the environment has no business with it."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
    except OSError as error:
        raise StoreError(f"the server at {url} does not answer: {error}") from None
    if answer.status >= 300:
        text = answer.read(10_000).decode("utf-8", "replace")
        try:
            text = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            pass
        raise StoreError(f"the server at {url} says {answer.status}: {text}")
    return answer


def events(url: str, token: str, path: str) -> Iterator[dict[str, Any]]:
    """Server-sent events, as they come; ends with the connection."""
    answer = ask(url, token, "GET", path, timeout_s=60.0)
    try:
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    except (OSError, http.client.HTTPException):
        return
