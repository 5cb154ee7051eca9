"""`pillarbox admin`: a link to the dashboard of the running server."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Annotated

import typer

from ..errors import StoreError
from ..places import default_data_dir

_FILE = "admin.json"


def admin(
    data_dir: Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Folder of its queue.")] = None,
) -> None:
    """Print a link that logs a browser into the dashboard, once, within ten minutes."""
    folder = data_dir or default_data_dir()
    path = os.path.join(folder, _FILE)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        url, token = found["url"], found["token"]
    except FileNotFoundError:
        url = token = ""
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None
    if not url:
        raise StoreError(
            f"no server with an admin API runs on {folder}: start `pillarbox serve`, or see --admin and --data-dir"
        )
    request = urllib.request.Request(f"{url}/api/logins", method="POST", headers={"Authorization": f"Bearer {token}"})
    # Straight there: a proxy of the environment has no business with it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            print(json.load(answer)["url"])
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise StoreError(f"the server at {url} does not answer: {error}") from None
