"""Each line that ends in the word MISTAKE has one that a type checker finds; no other line has any. Never run."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pillarbox
from pillarbox import Eat, Handler, Item, MailServer, Plugin, Reject, Reply
from pillarbox.events import CmdMail, CmdRcpt, Custom, Event, MessageQueued, MessageReceived, SendFailed, SendSuccess


class Right(Plugin):
    def on_cmd_rcpt(self, server: MailServer, event: CmdRcpt) -> Reply | None:
        return Reply(550, "5.7.1", "Refused") if event.address == "x@y.example" else None

    async def on_message(self, server: MailServer, event: MessageReceived) -> None:
        event.content.set_header("Subject", event.session.helo)

    def on_cmd_mail(self, srv: Any, e: CmdMail) -> Eat:
        return Eat.NONE

    def on_tick(self, server: MailServer, event: Custom) -> None: ...


class Wrong(Plugin):
    def on_cmd_rcpt(self, server: MailServer, event: CmdRcpt) -> str:  # MISTAKE
        return event.address

    def on_cmd_mail(self, server: MailServer, event: CmdRcpt) -> None: ...  # MISTAKE

    def on_message(self, event: MessageReceived) -> None: ...  # MISTAKE

    def on_connection(self, server: MailServer, event: Event) -> None:
        print(event.peer)  # MISTAKE

    async def on_response(self, server: MailServer, event: Any) -> int:  # MISTAKE
        return 1


class Other:
    """An object of no class of ours."""

    def on_cmd_rcpt(self, server: MailServer, event: CmdRcpt) -> None: ...


def take(item: Item) -> None:
    raise Reject(f"no {item.uid}")


async def main() -> None:
    server = await MailServer.spawn(
        port=0,
        data_dir=Path("mail"),
        retry_first_s="5m",
        expire_s=datetime.timedelta(days=4),
        max_size_bytes="10MB",
        domains="example.org",
        trust=["127.0.0.0/8"],
        relay=None,
        store="memory",
        handlers=[Handler("^a@", take), {"match": "^b@", "callback": take}],
        plugins={"right": Right(), "other": Other()},
        authenticator=lambda user, password: user == password,
        sender_verify="rcpt",
    )
    MailServer(prot=2525)  # MISTAKE
    MailServer(port="abc")  # MISTAKE
    MailServer(store="redis")  # MISTAKE
    MailServer(direct="no")  # MISTAKE
    MailServer(domains=7)  # MISTAKE
    MailServer(plugins=[Right()])  # MISTAKE
    MailServer(handlers=[take])  # MISTAKE
    MailServer(workers=2)  # MISTAKE
    await MailServer.spawn(data_dir=3)  # MISTAKE
    MailServer.run(hostnam="mail.example.org")  # MISTAKE
    server.reload(relai=["smart.example.net"])  # MISTAKE
    await server.enqueue(reverse_path=None, recipients=["a@b.example"], content=b"Subject: x\r\n\r\n", uid="u1")
    await server.enqueue({"from": "a@b.example", "rcpt": ["c@d.example"], "msg": "x"})
    await server.enqueue(reverse_path=None, recipient=["a@b.example"], content="")  # MISTAKE
    await server.enqueue(reverse_path=None, recipients=["a@b.example"])  # MISTAKE
    await server.enqueue(reverse_path=None, recipients=["a@b.example"], content=7)  # MISTAKE
    server.enqueue(reverse_path=None, recipients=["a@b.example"], content="")  # MISTAKE
    for view in await server.mail_queue(state="deferred", limit=10):
        print(view.uid)
    await server.mail_queue(stat="deferred")  # MISTAKE
    await server.mail_queue(state="waiting")  # MISTAKE

    @server.handler(r"^a@", concurrency=3, time_out_s=20.0)
    def right(item: Item) -> None: ...

    @server.handler(r"^a@", concurency=3)  # MISTAKE
    def wrong(item: Item) -> None: ...

    def queued(event: MessageQueued) -> None:
        print(event.uid)

    def either(event: SendSuccess | SendFailed) -> None: ...

    tick = server.define_event("tick")
    server.register(queued, "message_queued")
    server.register(either, "send_success", "send_failed")
    server.register(print, "all")
    server.register(print, tick)
    server.register(queued, "message_qeued")  # MISTAKE
    server.register(queued, "send_success")  # MISTAKE
    async for failed in server.events("send_failed"):
        print(failed.stage, failed.next_attempt)
        print(failed.nothing)  # MISTAKE
    async for own in server.events(tick):
        print(own.args)
    server.events("send_sucess")  # MISTAKE
    server.plugin_add("right", Right())
    server.plugin_add("other", Other())
    server.plugin_add("number", 17)  # MISTAKE
    server.plugin_add("none", None)  # MISTAKE
    server.plugin_add(Right())  # MISTAKE
    pillarbox.connect(Path("mail")).enqueue(recipient="x")  # MISTAKE
    print(pillarbox.MialServer)  # MISTAKE
