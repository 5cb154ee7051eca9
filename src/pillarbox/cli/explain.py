"""`pillarbox explain`: why mail would be refused or wait, or why a queued message is still here."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any

import typer

from ..config.usual import usual_folder
from ..errors import OptionError, StoreError
from ..queue.shards import has_queue
from ..queue.whole import ask_queue
from .place import server_folder
from .terminal import json_text


def explain(
    what: Annotated[str, typer.Argument(metavar="RCPT|UID", help="A recipient's address, or a queue id.")],
    sender: Annotated[
        str | None, typer.Option("--from", metavar="SENDER", help="The reverse-path; <> for the null one.")
    ] = None,
    peer: Annotated[
        str | None, typer.Option("--peer", metavar="IP", help="The client's address. [default: 127.0.0.1]")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="NAME", help="As if it had logged in under that name.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Connect to the next hop, up to where mail would begin.")
    ] = False,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="pillarbox.toml of a server that does not run.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Folder of the queue.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Dry run: each rule's verdict in order, DNS, route, TLS, limits, and the reply; or a queued message's story."""
    request = {"recipient": what, "sender": sender, "peer": peer, "user": user, "probe": probe}
    is_uid = "@" not in what
    if is_uid:
        request = {"uid": what}
    try:
        found = _ask(request, config, data_dir)
    except ValueError as error:
        raise OptionError(str(error)) from None
    if found is None:
        raise StoreError(f"no message {what}: `pillarbox queue list --all` shows what there is; a recipient has an @")
    if as_json:
        print(json_text(found))
    else:
        from .tables import print_explained

        print_explained(found)


def _ask(request: dict[str, Any], config: str | None, data_dir: str | None) -> Any:
    """Of the running server; else of one made here by the same configuration, which is not started."""
    from ..daemon.serve import read_config

    flags = {"data_dir": data_dir} if data_dir is not None else {}
    folder = data_dir
    if folder is None:
        folder = str(read_config(config, flags).options.get("data_dir") or usual_folder())
    folder = server_folder(folder)
    if not os.path.isdir(folder) or not has_queue(folder):
        return asyncio.run(_dry(request, config, flags, None))
    status = ask_queue(folder, {"verb": "status"})
    if status["running"]:
        return ask_queue(folder, {**request, "verb": "explain"})
    row = ask_queue(folder, {"verb": "show", "uid": request["uid"]}) if "uid" in request else None
    if "uid" in request and row is None:
        return None
    return asyncio.run(_dry(request, config, {**flags, "data_dir": folder}, row, status=status))


async def _dry(
    request: dict[str, Any],
    config: str | None,
    flags: dict[str, Any],
    row: dict[str, Any] | None,
    *,
    status: dict[str, Any] | None = None,
) -> Any:
    from ..app import MailServer
    from ..daemon.loading import resolve
    from ..daemon.serve import read_config
    from ..explain import Explainer

    server = MailServer(**resolve(read_config(config, flags)))
    if status is not None:
        server._parts.scheduler.is_paused = status["paused"]
        server._parts.lanes.paused |= set(status["paused_next_hops"])
    explainer = Explainer(server._parts)
    try:
        if row is not None:
            return await explainer.message(row, is_running=False)
        return None if "uid" in request else await explainer.explain(request)
    finally:
        await server._parts.resolver.close()
