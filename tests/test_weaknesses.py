"""Every weakness that a review of the whole server found has a test: this table names it, and fails where one is gone."""

from __future__ import annotations

import ast
import functools

import pytest

from tests.conftest import ROOT

TESTS = ROOT / "tests"
# (weakness, tests as file::function)
WEAKNESSES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("replies of servers are kept, logged and bounced whole", (
        "smtp/test_reply_reader.py::test_reply_reader_beyond_a_bound_is_a_fault",
        "delivery/test_course.py::test_texts_of_peers_are_bounded_in_queue_and_history",
    )),
    2: ("TLS handshakes are not counted", (
        "server/test_admission.py::test_silent_tls_connections_count_before_their_handshake",
        "server/test_admission.py::test_silent_handshakes_never_take_more_than_half_of_the_places",
    )),
    3: ("tarpits hold all outgoing connections", (
        "delivery/test_pool.py::test_tarpits_do_not_delay_mail_for_a_healthy_next_hop",
        "delivery/test_pool.py::test_pool_bounds_connections_to_one_address",
    )),
    4: ("refused sessions fill the places of others", (
        "server/test_admission.py::test_admission_over_the_bound_of_a_peer_refuses_and_counts_nothing",
        "server/test_admission.py::test_connections_over_the_bound_hear_421_are_closed_and_leave_no_session",
    )),
    5: ("strangers lock accounts", ("server/test_guesses.py::test_no_stranger_locks_an_account",)),
    6: ("guesses at the same time pass the limit", (
        "server/test_guesses.py::test_tries_at_the_same_time_cannot_pass_the_limit_together",
        "server/test_guesses.py::test_guesses_at_the_same_time_do_not_hold_other_log_ins_up",
    )),
    7: ("half requests keep the operator out", ("admin/test_places.py::test_half_a_request_ends_at_its_deadline",)),
    8: ("the dashboard's cookie goes to every port, for ever", (
        "admin/test_logins.py::test_server_on_another_port_is_sent_no_cookie",
        "admin/test_logins.py::test_cookie_opens_nothing_outside_its_own_path",
        "admin/test_logins.py::test_session_ends_after_twelve_hours_or_when_it_is_ended",
        "admin/test_logins.py::test_restart_ends_every_session",
        "admin/test_logins.py::test_taken_usual_port_is_told_loudly",
    )),
    9: ("web pages search the inbox by timing", (
        "test_inbox_by_http.py::test_request_of_another_site_is_refused_also_for_reading",
    )),
    10: ("a log-in link in the log", (
        "admin/test_logins.py::test_log_in_link_is_not_written_where_stdout_is_no_terminal",
    )),
    11: ("secrets in the API", (
        "config/test_secrets.py::test_api_shows_options_without_secrets",
        "config/test_secrets.py::test_every_option_named_like_a_secret_is_marked",
        "config/test_secrets.py::test_error_texts_tell_no_secret",
    )),
    12: ("a data directory that another user prepared", (
        "config/test_files.py::test_data_directory_of_another_user_is_refused",
        "config/test_files.py::test_token_of_a_file_that_is_not_ours_alone_is_not_believed",
    )),
    13: ("root at work in the folder of another user", (
        "test_as_owner.py::test_links_in_the_folder_lead_root_nowhere",
        "test_as_owner.py::test_reload_signals_no_process_that_the_owner_could_not",
        "test_as_owner.py::test_shards_that_come_and_go_end_a_command",
    )),
    14: ("addresses read more loosely than the application does", (
        "test_strict_addresses.py::test_django_backend_is_as_strict_as_djangos_own",
    )),
    15: ("unsigned envelope of a webhook", ("test_webhook.py::test_signature_covers_envelope_and_url",)),
    16: ("claims in our own name survive", (
        "server/test_header_section.py::test_claim_in_our_name_is_removed_however_it_is_spelt",
        "server/test_header_section.py::test_line_that_is_no_field_ends_the_section_for_every_reader",
    )),
    17: ("escape sequences reach the terminal", (
        "test_terminal.py::test_command_prints_no_control_characters_of_peers",
        "test_terminal.py::test_send_escapes_the_reply_of_a_server",
    )),
    18: ("questions in SQL change the queue", (
        "queue/test_postgres_connections.py::test_question_in_sql_changes_nothing",
        "queue/test_look.py::test_nothing_can_be_changed",
    )),
    19: ("a password for a server that is not verified", (
        "simplesmtp/test_options.py::test_relay_user_without_a_verified_certificate_is_refused",
    )),
    20: ("DSNs carry spam to the forged sender", (
        "delivery/test_backscatter.py::test_dsn_returns_content_to_trusted_senders_only",
        "delivery/test_backscatter.py::test_dsns_for_strangers_are_bounded_by_domain_and_hour",
    )),
    21: ("routes that the sender chose", (
        "server/test_own_recipients.py::test_route_in_the_local_part_of_a_stranger_is_refused",
    )),
    22: ("special addresses that an MX may point to", (
        "delivery/test_mx_addresses.py::test_mx_may_not_point_to_special_address",
    )),
    23: ("Origin of another port", ("admin/test_logins.py::test_origin_must_be_the_host_of_the_request",)),
    24: ("the accounts file is taken from the server", (
        "config/test_files.py::test_accounts_file_keeps_owner_and_mode",
        "config/test_files.py::test_accounts_that_are_added_at_the_same_time_are_all_there",
    )),
    25: ("secrets that every user may read", (
        "config/test_files.py::test_file_option_with_an_exposed_secret_is_warned_about",
        "config/test_files.py::test_password_within_an_exposed_configuration_is_a_fault",
    )),
    26: ("messages cannot be read under the unit's sandbox", (
        "test_hardening.py::test_server_works_under_the_filters_of_the_unit",
    )),
    27: ("plugins are imported by root", (
        "config/test_files.py::test_plugin_is_imported_by_the_user_that_serves",
    )),
    28: ("abuse and log-ins leave no log line", (
        "test_log_lines.py::test_refused_command_leaves_one_line",
        "test_log_lines.py::test_log_ins_leave_one_line_each",
        "test_log_lines.py::test_daemon_logs_start_admin_actions_reload_and_stop",
    )),
    29: ("deleted mail stays on the disk", (
        "queue/test_damage.py::test_deleted_mail_is_gone_from_the_disk_without_history",
    )),
}  # fmt: skip


@functools.cache
def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("number", range(1, 30))
def test_weakness_has_tests_that_exist(number: int) -> None:
    text, tests = WEAKNESSES[number]
    assert text and tests
    for one in tests:
        file, _, name = one.partition("::")
        assert name in functions(file), f"{text}: {one} is gone; name the test that took its place"


def test_threat_model_names_files_that_exist() -> None:
    import re

    text = (ROOT / "docs" / "explanation" / "threat-model.md").read_text()
    for cell in re.findall(r"\| ([^|]*`(?:tests|test_)[^|]*) \|\n", text):
        folder = ""
        for word in re.findall(r"`([^`]+)`", cell):
            folder = word.rpartition("/")[0] or folder
            assert (ROOT / (word if "/" in word else f"{folder}/{word}")).exists(), word
