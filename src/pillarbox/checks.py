"""The checks that options put into the pipeline: DNS blocklists, sender and recipient verification. Must not know sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .clock import Clock
from .delivery.client import ClientSettings
from .delivery.probe import Prober
from .delivery.route import RELAY, Router
from .dns import Resolver
from .options import Options, parse_networks
from .plugins.dnsbl import DnsblPlugin
from .plugins.recipient_verify import RecipientVerifyPlugin
from .plugins.sender_verify import SenderVerifyPlugin
from .plugins.simple import RelayRule


@dataclass(frozen=True, slots=True)
class CheckPlugins:
    """Makes the plugins. Each method returns None when the options do not ask for its plugin."""

    options: Options
    clock: Clock
    resolver: Resolver
    post: Callable[[Any], None]
    rule: RelayRule
    router: Router
    relay_client: Callable[[], ClientSettings]

    def dnsbl(self) -> DnsblPlugin | None:
        """Asks DNS blocklists about each client."""
        options = self.options
        if not options.dnsbl_enable:
            return None
        allow = parse_networks(options.dnsbl_allow)
        return DnsblPlugin(self.resolver, self.clock, options.dnsbl, allow, options.dnsbl_time_out, self.post)

    def sender_verify(self) -> SenderVerifyPlugin | None:
        """Checks that the domain of the reverse-path takes mail."""
        wanted = self.options.sender_verify
        return SenderVerifyPlugin(self.resolver, wanted, self.post) if wanted else None

    def recipient_verify(self) -> RecipientVerifyPlugin | None:
        """Asks the relay whether it takes a recipient of an own domain."""
        if not self.options.verify_recipients:
            return None
        prober = Prober(self.router.relay_targets, self.relay_client, self.clock)
        is_relayed = self._is_relayed
        return RecipientVerifyPlugin(self.rule, prober.verify, is_relayed)

    def _is_relayed(self, address: str) -> bool:
        return self.router.next_hop(address).startswith(RELAY)

    def all(self) -> list[tuple[str, Any]]:
        """Alias and plugin, in pipeline order."""
        made = (
            ("dnsbl", self.dnsbl()),
            ("sender_verify", self.sender_verify()),
            ("recipient_verify", self.recipient_verify()),
        )
        return [(alias, plugin) for alias, plugin in made if plugin is not None]
