"""The plugin template of the original's document: where a plugin enters, what it may say, where it leaves.

A plugin is any object; what it does not need it leaves out. Run it with `python examples/plugin_template.py`.
"""

from __future__ import annotations

from typing import Any

from pillarbox import Eat, MailServer


class Template:
    """Says that it saw a connection, and lets everything else go on."""

    def __init__(self) -> None:
        self.connections = 0

    def plugin_register(self, server: MailServer) -> bool:
        """Called once, when the plugin enters the pipeline. False refuses.

        Without the line below the plugin would get every event that it has a method for.
        """
        return server.plugin_register(self, "SMTPD", "connection", "cmd_noop")

    def plugin_unregister(self, server: MailServer) -> None:
        """Called once, when it leaves, at shutdown too."""

    def on_connection(self, server: MailServer, event: Any) -> Eat:
        """A client connected. `event` has client_id, peer and local, and may be changed."""
        self.connections += 1
        # NONE: go on. CLIENT: no subscriber sees it. PLUGIN: no further plugin. ALL: nobody. A Reply answers.
        return Eat.NONE

    def on_default(self, server: MailServer, event: Any) -> Eat:
        """What has no method of its own; here, by what was registered for, that is cmd_noop."""
        print("Default called for", event.name)
        return Eat.NONE


if __name__ == "__main__":
    MailServer.run(port=2525, data_dir="./mail", direct=False, plugins={"template": Template()})
