"""Faults of TLS towards the next hop: certificate, name, versions, what goes in clear."""

from __future__ import annotations

from tests.mutants.model import fault

_POLICY = "delivery/tlspolicy.py"
_CLIENT = "delivery/client.py"
_TESTS = "tests/delivery/test_tls_policy.py"

FAULTS = (
    fault(
        "verify takes a certificate of any name",
        _POLICY,
        "        context.minimum_version = max(VERSIONS[oldest], ssl.TLSVersion.TLSv1_2)\n        return context\n",
        "        context.minimum_version = max(VERSIONS[oldest], ssl.TLSVersion.TLSv1_2)\n"
        "        context.check_hostname = False\n        return context\n",
        f"{_TESTS}::test_certificate_of_the_next_hop_is_verified_under_verify_only",
    ),
    fault(
        "verify takes a certificate of any authority",
        _POLICY,
        "        context.minimum_version = max(VERSIONS[oldest], ssl.TLSVersion.TLSv1_2)\n        return context\n",
        "        context.minimum_version = max(VERSIONS[oldest], ssl.TLSVersion.TLSv1_2)\n"
        "        context.check_hostname = False\n        context.verify_mode = ssl.CERT_NONE\n        return context\n",
        f"{_TESTS}::test_certificate_of_the_next_hop_is_verified_under_verify_only",
    ),
    fault(
        "encrypt is as strict as verify",
        _POLICY,
        "    if policy is TlsPolicy.VERIFY:\n",
        "    if policy.is_required:\n",
        f"{_TESTS}::test_certificate_of_the_next_hop_is_verified_under_verify_only",
    ),
    fault(
        "verify takes old TLS",
        _POLICY,
        "max(VERSIONS[oldest], ssl.TLSVersion.TLSv1_2)",
        "VERSIONS[oldest]",
        f"{_TESTS}::test_oldest_version_of_tls_is_the_options_and_at_least_1_2_under_verify",
    ),
    fault(
        "the oldest version of TLS is ignored",
        _POLICY,
        "        context.minimum_version = VERSIONS[oldest]\n",
        '        context.minimum_version = VERSIONS["1.0"]\n',
        f"{_TESTS}::test_server_with_old_tls_only_gets_no_tls_session",
    ),
    fault(
        "the system's authorities are trusted beside relay_ca",
        _POLICY,
        "            context.load_verify_locations(ca_file)\n",
        "            context.load_verify_locations(ca_file)\n            context.load_default_certs()\n",
        f"{_TESTS}::test_verify_without_a_ca_file_takes_the_systems_authorities_only",
    ),
    fault(
        "one TLS session for all names",
        _POLICY,
        "            session = self._sessions().get(server_hostname)\n",
        "            session = next(iter(self._sessions().values()), None)\n",
        f"{_TESTS}::test_session_of_one_name_is_not_resumed_for_another",
    ),
    fault(
        "the name is that of the address",
        _CLIENT,
        "                server_hostname=self.target.host,\n",
        '                server_hostname=self.target.address or "localhost",\n',
        f"{_TESTS}::test_verify_wants_the_name_of_the_host_and_not_of_its_address",
    ),
    fault(
        "TLS that is required and not offered is left out",
        _CLIENT,
        "        if settings.policy.is_required and not smtp.is_tls:\n",
        "        if settings.policy is TlsPolicy.VERIFY and not smtp.is_tls:\n",
        f"{_TESTS}::test_stripped_starttls_stops_mail_where_tls_is_required",
    ),
    fault(
        "AUTH in clear",
        _CLIENT,
        "        if not smtp.is_tls and not self._settings.may_auth_in_clear:\n",
        "        if self.is_fallback and not self._settings.may_auth_in_clear:\n",
        f"{_TESTS}::test_stripped_starttls_stops_mail_where_tls_is_required",
    ),
    fault(
        "AUTH in clear after a broken handshake",
        _CLIENT,
        "        is_optional = settings.policy is TlsPolicy.MAY and settings.credentials is None\n",
        "        is_optional = settings.policy is TlsPolicy.MAY\n",
        f"{_TESTS}::test_password_does_not_follow_a_broken_handshake_into_clear",
    ),
    fault(
        "relay_tls is not heard",
        "parts.py",
        "context = client_context(policy, options.relay_ca, options.outgoing_tls_oldest) if options.relay else None",
        "context = client_context(TlsPolicy.MAY, options.relay_ca, options.outgoing_tls_oldest) if options.relay else None",
        f"{_TESTS}::test_relay_tls_decides_about_mail_as_documented",
    ),
    fault(
        "plaintext behind the 220 is taken for a reply within TLS",
        "smtp/client.py",
        "        if reply.code == 220:\n            self._enter(ClientState.HANDSHAKE)\n",
        "        if reply.code == 220:\n            self._expected.append((Expect.IGNORED, None, 0))\n            self._enter(ClientState.HANDSHAKE)\n",
        f"{_TESTS}::test_plaintext_behind_the_220_of_starttls_is_never_taken_for_a_reply_within_tls",
    ),
    fault(
        "extensions offered in clear are believed within TLS",
        "smtp/client.py",
        "        self.is_tls = True\n        self.extensions = {}\n        if greeted:\n",
        "        self.is_tls = True\n        if not greeted:\n",
        f"{_TESTS}::test_extensions_offered_in_clear_are_forgotten_within_tls",
    ),
    fault(
        "a password without verification by default",
        "parts.py",
        '(options.relay_tls or ("verify" if options.relay_user else "may"))',
        '(options.relay_tls or ("encrypt" if options.relay_user else "may"))',
        f"{_TESTS}::test_policy_towards_the_smart_host_is_verify_where_a_password_goes",
    ),
    fault(
        "mx_tls is not heard",
        "parts.py",
        "        policy = TlsPolicy(options.mx_tls)\n",
        "        policy = TlsPolicy.MAY\n",
        f"{_TESTS}::test_mx_tls_decides_about_mail_to_an_mx",
    ),
)
