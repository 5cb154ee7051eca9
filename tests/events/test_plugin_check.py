"""What enters the pipeline: objects with methods of events, and nothing that would never be called."""

from __future__ import annotations

import asyncio
import types
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MailServer, Plugin, PluginError, Reply
from pillarbox.errors import OptionError
from pillarbox.events.catalogue import CATALOGUE


def server(tmp_path: Path, **options: Any) -> MailServer:
    return MailServer(port=0, store="memory", data_dir=tmp_path / "d", control=False, **options)


def plugin(name: str, function: Any = None) -> Any:
    return type("P", (Plugin,), {name: function or (lambda self, server, event: None)})()


MISSPELT = {
    "on_cmd_rctp": "on_cmd_rcpt",
    "on_rcpt": "on_cmd_rcpt",
    "on_mail": "on_cmd_mail",
    "on_connect": "on_connection",
    "on_disconnect": "on_disconnected",
    "on_mesage": "on_message",
    "on_message_received": "on_message",
    "on_plugin_failed": "on_plugin_error",
    "on_messagequeued": "on_message_queued",
    "on_send_sucess": "on_send_success",
    "on_Message": "on_message",
    "on_responce": "on_response",
    "on_defualt": "on_default",
}


@pytest.mark.parametrize("name", MISSPELT)
def test_misspelt_method_of_a_plugin_is_refused_with_the_right_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(PluginError, match=f"{name} is not a method for any event; did you mean '{MISSPELT[name]}'"):
        server(tmp_path, plugins={"p": plugin(name)})
    running = server(tmp_path)
    with pytest.raises(PluginError, match="did you mean"):
        running.plugin_add("p", plugin(name))
    assert running.plugin_get("p") is None


def test_misspelt_method_of_a_replacement_is_refused_and_the_old_plugin_stays(tmp_path: Path) -> None:
    running = server(tmp_path)
    running.plugin_add("p", plugin("on_cmd_rcpt"))
    with pytest.raises(PluginError, match="did you mean"):
        running.pipeline().replace("p", "q", plugin("on_cmd_rctp"))
    assert next(iter(running.plugin_list())) == "p"


@pytest.mark.parametrize("wrong", [17, None, "plugin", b"x", 1.5, [], {}, (), object(), len, Path("x"), Reply(250)])
def test_object_that_is_not_a_plugin_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(PluginError, match="expected an object with methods on_<event>"):
        server(tmp_path, plugins={"p": wrong})
    with pytest.raises(PluginError, match="plugin 'p': invalid plugin"):
        server(tmp_path).plugin_add("p", wrong)


def test_class_in_place_of_an_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"expected an object, such as Plugin\(\)"):
        server(tmp_path, plugins={"p": Plugin})


def test_list_of_plugins_is_refused_with_the_form(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"option 'plugins': invalid value .*expected a table of plugins by name"):
        server(tmp_path, plugins=[Plugin()])


def test_method_with_the_wrong_arguments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"invalid method on_cmd_rcpt: expected on_cmd_rcpt\(server, event\)"):
        server(tmp_path, plugins={"p": plugin("on_cmd_rcpt", lambda self, event: None)})
    server(tmp_path, plugins={"p": plugin("on_cmd_rcpt", lambda self, *whatever: None)})


def test_method_for_an_event_of_the_program_is_taken(tmp_path: Path) -> None:
    seen: list[str] = []

    class Own(Plugin):
        def plugin_register(self, server: MailServer) -> bool:
            server.define_event("message_sent_on")
            return True

        def on_message_sent_on(self, server: MailServer, event: Any) -> None:
            seen.append(event.name)

        def on_tick(self, server: MailServer, event: Any) -> None:
            seen.append(event.name)

    async def main() -> None:
        async with server(tmp_path, plugins={"own": Own()}) as running:
            running.send_event("message_sent_on")
            running.define_event("tick")
            running.send_event("tick")

    asyncio.run(main())
    assert seen == ["message_sent_on", "tick"]


def test_method_near_an_event_is_taken_once_its_event_is_declared(tmp_path: Path) -> None:
    running = server(tmp_path)
    with pytest.raises(PluginError, match="declared first"):
        running.plugin_add("p", plugin("on_messages"))
    running.define_event("messages")
    running.plugin_add("p", plugin("on_messages"))


def test_every_event_of_the_catalogue_may_have_a_method(tmp_path: Path) -> None:
    running = server(tmp_path)
    for name in CATALOGUE:
        running.plugin_add(name, plugin(f"on_{name}"))
    module = types.ModuleType("hooks")
    module.on_cmd_rcpt = lambda server, event: None  # type: ignore[attr-defined]
    running.plugin_add("module", module)


def test_typed_methods_of_the_base_class_are_no_subscribers(tmp_path: Path) -> None:
    running = server(tmp_path)
    running.plugin_add("p", Plugin())
    assert not [name for name in dir(Plugin) if name.startswith("on_")]
    assert not running.pipeline().steps("cmd_rcpt")


def test_pipeline_shows_its_plugins_in_order(tmp_path: Path) -> None:
    running = server(tmp_path)
    running.plugin_add("one", plugin("on_data"))
    running.plugin_add("two", plugin("on_data"))
    assert repr(running.pipeline()) == "Pipeline(one=P, two=P)"
