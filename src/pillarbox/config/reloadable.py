"""Names of the options that a reload changes. All others are built into the running server and want a restart."""

from __future__ import annotations

RELOADABLE = frozenset(
    (
        "tls_cert", "tls_key", "domains", "trust", "authenticator", "auth_file", "origin", "retry_first_s", "retry_longest_s",
        "expire_s", "delay_notice_s", "history_s", "history_messages", "spool_above_bytes", "relay", "relay_auth",
        "relay_user", "relay_pass", "relay_tls", "relay_ca", "relay_auth_in_clear", "relay_auth_unverified",
        "time_out", "maxrelay",
        "maxrelay_per_next_hop", "rate_per_next_hop", "direct", "mx_port", "mx_tls", "mx_networks", "mx_cname",
        "ip_preference", "max_size_bytes",
        "max_recipients", "max_line_bytes", "max_header_bytes", "max_sessions", "max_sessions_per_peer",
        "max_connections_per_minute", "max_errors", "max_junk", "messages_per_client", "recipients_per_client",
        "messages_per_account", "recipients_per_account", "error_delay_s",
        "client_time_out", "min_rate_bytes_s", "bare_line_ends", "bare_lf_commands", "local_parts",
        "strict_envelope", "max_received", "handlers", "device_networks", "domains_via", "recipients",
        "allow_untrusted_routing", "postmaster", "return_content", "max_dsns_per_domain",
    )
)  # fmt: skip
