"""Faults of the admin side: who is let in, cookies, tokens, secrets that are shown."""

from __future__ import annotations

from tests.mutants.model import fault

_LOGINS, _TOKENS, _SECRETS = "tests/admin/test_logins.py", "tests/admin/test_tokens.py", "tests/config/test_secrets.py"

FAULTS = (
    fault(
        "admin side answers any Host",
        "admin/access.py",
        "        if not has_bearer and not self._is_host_ours(host, scope):\n",
        "        if False:\n",
        "tests/test_admin.py::test_row_131_another_host_is_refused",
    ),
    fault(
        "a wrong token passes the Host check where none is asked for",
        "admin/access.py",
        "has_bearer = caller is not None and caller.has_token",
        'has_bearer = caller is not None and (caller.has_token or "authorization" in headers)',
        f"{_LOGINS}::test_wrong_token_does_not_pass_the_host_check_where_none_is_asked_for",
    ),
    fault(
        "any of our names is taken for Origin",
        "admin/access.py",
        "        return site == _without_port(host, scheme) and self._is_host_ours(host, scope)\n",
        "        return self._is_host_ours(site, scope)\n",
        f"{_LOGINS}::test_origin_must_be_the_host_of_the_request",
    ),
    fault(
        "the cookie goes to every path",
        "admin/access.py",
        '            path=f"{session.root}/",\n',
        '            path="/",\n',
        f"{_LOGINS}::test_server_on_another_port_is_sent_no_cookie",
    ),
    fault(
        "a change by cookie wants no Origin",
        "admin/access.py",
        "        if caller.session is not None and is_change and not has_origin:\n",
        "        if False:\n",
        "tests/test_admin.py::test_a_login_works_once_and_its_cookie_changes_nothing_from_elsewhere",
    ),
    fault(
        "the read token changes things",
        "admin/access.py",
        "        if caller.right is Right.READ and is_change:\n",
        "        if False:\n",
        f"{_TOKENS}::test_read_token_reads_and_changes_nothing",
    ),
    fault(
        "the metrics token reads everything",
        "admin/access.py",
        "(path not in _OF_METRICS or is_change)",
        "is_change",
        f"{_TOKENS}::test_metrics_token_opens_metrics_and_readyz_alone",
    ),
    fault(
        "a page of another site may read",
        "admin/access.py",
        '        return headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and path != "/login"\n',
        "        return False\n",
        "tests/test_inbox_by_http.py::test_request_of_another_site_is_refused_also_for_reading",
    ),
    fault(
        "a session is found by its path alone",
        "admin/logins.py",
        "        return session if any(fits) else None\n",
        "        return session\n",
        f"{_LOGINS}::test_session_is_found_by_its_own_path_and_cookie_alone",
    ),
    fault(
        "a log-in link works twice",
        "admin/logins.py",
        "self._codes.pop(code, 0.0)",
        "self._codes.get(code, 0.0)",
        f"{_LOGINS}::test_code_begins_one_session_within_ten_minutes",
    ),
    fault(
        "sessions never end",
        "admin/logins.py",
        "for one in self._sessions.values() if one.ends_s <= now]:",
        "for one in self._sessions.values() if one.ends_s <= 0]:",
        f"{_LOGINS}::test_session_ends_after_twelve_hours_or_when_it_is_ended",
    ),
    fault(
        "log-out leaves unused links",
        "admin/logins.py",
        "            self._codes.clear()\n",
        "            pass\n",
        f"{_LOGINS}::test_session_ends_after_twelve_hours_or_when_it_is_ended",
    ),
    fault(
        "a session's path stands in the log",
        "admin/audit.py",
        'method, (_, path) = scope["method"], split_prefix(scope["path"])',
        'method, path = scope["method"], scope["path"]',
        f"{_LOGINS}::test_log_names_the_session_or_token_and_no_path_that_lets_in",
    ),
    fault(
        "tokens are written for every user",
        "admin/tokens.py",
        "os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)",
        "os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)",
        f"{_TOKENS}::test_tokens_are_private_whatever_the_umask",
    ),
    fault(
        "a token file that others may read is believed",
        "admin/tokens.py",
        "            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:\n",
        "            if False:\n",
        f"{_TOKENS}::test_token_file_of_other_users_is_not_believed",
    ),
    fault(
        "a log-in link is printed to a pipe",
        "daemon/serve.py",
        "        if sys.stdout.isatty():\n",
        "        if True:\n",
        f"{_LOGINS}::test_log_in_link_is_not_written_where_stdout_is_no_terminal",
    ),
    fault(
        "the relay password loses its mark",
        "options.py",
        "None, repr=False, json_schema_extra=SECRET, description",
        "None, repr=False, description",
        f"{_SECRETS}",
    ),
    fault(
        "the password in a URL is shown",
        "config/secrets.py",
        '    return hide_password(value) if mark == "url" and isinstance(value, str) else HIDDEN\n',
        '    return value if mark == "url" and isinstance(value, str) else HIDDEN\n',
        f"{_SECRETS}::test_config_show_shows_that_a_secret_is_set_and_no_more",
    ),
    fault(
        "an error text shows a secret",
        "config/faults.py",
        "    value = HIDDEN if mark_of(field) is not None else _shown(name, given)\n",
        "    value = _shown(name, given)\n",
        f"{_SECRETS}::test_error_texts_tell_no_secret",
    ),
)
