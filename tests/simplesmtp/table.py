"""Every feature of POE::Component::Server::SimpleSMTP, its Python form here, and the test that proves it.

docs/coming-from-simplesmtp.md is made from this table; test_table.py checks that no row is missing and that each test is there.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One feature: what the original has, what ours looks like, and `file::test` within tests/simplesmtp."""

    name: str
    original: str
    ours: str
    test: str


def _rows(file: str, prefix: str, *rows: tuple[str, str, str]) -> list[Row]:
    return [Row(name, was, ours, f"{file}.py::{prefix}{name.split(',')[0]}") for name, was, ours in rows]


def _named(file: str, *rows: tuple[str, str, str, str]) -> list[Row]:
    return [Row(name, was, ours, f"{file}.py::{test}") for name, was, ours, test in rows]


OPTIONS = _rows(
    "test_options",
    "test_option_",
    ("alias", "name of the session", '`alias="post-office"`; `MailServer.find("post-office")`'),
    ("address", "one IPv4 address", '`address=["127.0.0.1", "::1", "unix:/run/smtp.sock"]`; loopback unless told otherwise'),
    ("port", "25", "`port=25`; `port=0` takes a free one, `getsockname()` tells it"),
    ("options", "trace flags of the POE session", '`options={"trace": True}`: each line and event in the log, secrets left out'),
    ("hostname", "in 220, EHLO, Received", '`hostname="mail.example.org"`, checked; default: the machine\'s name'),
    ("version", "in the 220", '`version="Acme 1.0"`; `""` hides it'),
    ("relay", "one smart host", '`relay=["smtps://a.example", "b.example:587"]`, tried in order; none: direct to the MX'),
    ("relay_auth", "PLAIN", '`relay_auth="SCRAM-SHA-256"`, `"PLAIN"`, `"LOGIN"`; default: the best that is offered'),
    ("relay_user", "sent in clear", "`relay_user=`, `relay_pass=`: over verified TLS, unless `relay_auth_in_clear=True`"),
    ("relay_pass", "sent in clear", "as above; never in a log or a `repr`"),
    ("time_out", "300 s for sending", "`time_out=60`: ceiling of each step; `None`: RFC 5321 section 4.5.3.2"),
    ("maxrelay", "5, not held", "`maxrelay=100`, `maxrelay_per_next_hop=20`, both held"),
    ("domains", "exact; empty: open relay", '`domains=["example.org", ".example.net"]`, IDN too; empty: strangers may send nowhere'),
    ("origin", "strips Received, one line of it", "`origin=True`: strips all of them, folded parts too, and adds none"),
    ("simple", "false: the program answers", "`simple=False`; framing, bounds and TLS still hold"),
    ("handle_connects", "false: no 220", "`handle_connects=False`; `send_to_client(id, \"220 hello\")`"),
    ("handlers", "list of match, session, event", '`handlers=[{"match": r"@app$", "callback": f}]`, `Handler(...)`, `@server.handler(...)`'),
    ("dnsbl_enable", "asks one list", "`dnsbl_enable=True`; fails open, and says so"),
    ("dnsbl", "zen.spamhaus.org", '`dnsbl={"zen.spamhaus.org": 1.0, "bl.example": 0.5}`, `dnsbl_allow=["192.0.2.0/24"]`'),
    ("client_time_out", "300 s, then silence", "`client_time_out=300`: 421 4.4.2, then closed"),
    ("resolver", "a DNS component", "`resolver=obj` with `async resolve(name, kind)`; or `nameservers=[\"127.0.0.1:5353\"]`"),
    ("sender_verify", "MX only, can race DATA", '`sender_verify=True` (at MAIL) or `"rcpt"`; MX, A, AAAA, null MX; one reply'),
)  # fmt: skip

METHODS = _rows(
    "test_methods",
    "test_method_",
    ("session_id", "POE session id", "`server.session_id()`"),
    ("shutdown", "drops clients at once", "`await server.shutdown(grace_s=30)`: 421 to who idles, others finish"),
    ("send_event", "through the pipeline", '`server.send_event("mine", 1)`; `send_event_threadsafe` from other threads'),
    ("send_to_client", "a line of text", '`server.send_to_client(id, "250 OK")`, `Reply(...)`, bytes; `"250-..."` lines add up'),
    ("data_mode", "lines, or a file handle", "`server.data_mode(id)`, `server.data_mode(id, file)`"),
    ("getsockname", "the listener's", "`server.getsockname()`, `server.getsocknames()`"),
    ("get_handlers", "a copy", "`server.get_handlers()`"),
    ("set_handlers", "replaces", "`server.set_handlers([...])`, live, all or nothing"),
    ("mail_queue", "all items", '`await server.mail_queue(limit=1000, state="deferred")`; `queued_content(uid)`'),
    ("pause_queue", "running sends finish", "`await server.pause_queue()`; holds over a restart"),
    ("resume_queue", "goes on", "`await server.resume_queue()`"),
    ("paused", "a flag", "`server.paused()`"),
    ("cancel_message", "1 for anything", "`await server.cancel_message(uid)`: True if it was there"),
    ("start_listener", "after a failure", "`await server.start_listener()`; an error when it listens already"),
    ("enqueue", "from, rcpt, msg, ts, uid", '`await server.enqueue({"from": ..., "rcpt": [...], "msg": ...})`, or our keywords; the uid'),
    ("register", "event names or all", '`server.register(f, "message_queued")`; `async for event in server.events(...)`'),
    ("unregister", "event names or all", "`server.unregister(f)`"),
    ("pipeline", "the pipeline object", "`server.pipeline()`: push, pop, shift, unshift, insert_*, replace, remove, get, bump_*"),
    ("plugin_add", "number of plugins", '`server.plugin_add("alias", plugin)`; PluginError when it cannot'),
    ("plugin_del", "alias or object", '`server.plugin_del("alias")`'),
    ("plugin_get", "alias or object", '`server.plugin_get("alias")`, or None'),
    ("plugin_list", "hash by alias", "`server.plugin_list()`: a dict in order"),
    ("plugin_order", "objects in order", "`server.plugin_order()`"),
    ("plugin_register", "from plugin_register", '`server.plugin_register(self, "SMTPD", "cmd_rcpt")`'),
    ("plugin_unregister", "undef if missing", '`server.plugin_unregister(self, "SMTPD", "cmd_rcpt")`: the names not found'),
)  # fmt: skip

INPUT_EVENTS = _rows(
    "test_methods",
    "test_input_",
    ("register", "input event", '`server.post("register", f, "cmd_noop")`, from any thread'),
    ("unregister", "input event", '`server.post("unregister", f)`'),
    ("shutdown", "input event", '`server.post("shutdown")`'),
    ("send_event", "input event", '`server.post("send_event", "mine", 1)`'),
    ("send_to_client", "input event", '`server.post("send_to_client", id, "250 OK")`'),
    ("start_listener", "input event", '`server.post("start_listener")`'),
)

EVENTS = _named(
    "test_events",
    ("registered", "the component", "`event.server`", "test_event_registered"),
    ("listener_failed", "operation, errno, text", "`operation`, `errno`, `strerror`, `address`", "test_event_listener_failed"),
    ("connection", "id and four address parts", "`client_id`, `peer`, `local`, `tls`, `proxied`", "test_event_connection"),
    ("disconnected", "id", "`client_id`, `reason`", "test_event_disconnected"),
    ("cmd_*", "id, the rest of the line; QUIT hidden", "`client_id`, `args`, `address`, `parameters`; QUIT too", "test_event_cmd"),
    ("message", "inner", "`message`: `envelope` and `content` may be changed or refused", "test_event_message"),
    ("data", "id, lines", "`client_id`, `lines` (bytes)", "test_event_data"),
    ("data_fh", "id; depends on a race", "`client_id`, `file`, `size_bytes`", "test_event_data_fh"),
    ("dnsbl", "id, reply, answers", "`client_id`, `reply`, `result`, `reason`, `zone`, `codes`", "test_event_dnsbl"),
    ("fverify", "id, reply, error", "`client_id`, `reply`, `error`, `domain`", "test_event_fverify"),
    ("message_queued", "id, from, rcpt, uid, lines, subject", "the same as fields, and `size_bytes`", "test_event_message_queued"),
    ("send_success", "uid", "`uid`, `recipients`, `next_hop`, `reply`, `attempt`", "test_event_send_success"),
    ("send_failed", "uid, error", "`uid`, `recipients`, `next_hop`, `stage`, `reply`, `is_permanent`, `next_attempt`", "test_event_send_failed"),
    ("plugin_add", "alias, object", "`alias`, `plugin`", "test_event_plugin_add"),
    ("plugin_del", "alias, object", "`alias`, `plugin`", "test_event_plugin_del"),
    ("plugin_error", "three shapes", "`alias`, `plugin`, `event_name`, `exception`", "test_event_plugin_error"),
    ("handler events", "item: uid, from, rcpt, msg, ts", "`Item`: `uid`, `reverse_path`, `recipients`, `content`, `received_at`, `attempt`, `open()`, `parsed()`", "test_event_handler"),
    ("response", "id, text; may be changed", "`client_id`, `reply`; may be replaced", "test_event_response"),
)  # fmt: skip

PLUGINS = _named(
    "test_events",
    ("types", "SMTPD, SMTPC", "`event.kind`: `Kind.SMTPD`, `Kind.SMTPC`", "test_plugin_types"),
    ("arguments", "references, may be changed", "fields are mutable, and seen by all that follow", "test_plugin_arguments_may_be_changed"),
    ("eat codes", "SMTPD_EAT_*", "`Eat.NONE`, `Eat.CLIENT`, `Eat.PLUGIN`, `Eat.ALL`, or a `Reply`", "test_plugin_eat_codes"),
    ("order", "simple mode eats commands first", "plugins first, the built-in behaviour is the last plugin", "test_plugins_come_before_the_built_in_behaviour"),
    ("entry and exit", "plugin_register, plugin_unregister", "the same, optional, once each", "test_plugin_entry_and_exit"),
    ("_default", "what has no method", "`on_default(server, event)`", "test_plugin_default"),
    ("a plugin that dies", "takes the server along", "a failure policy; the session lives", "test_plugin_that_fails"),
)  # fmt: skip

SIMPLE_MODE = _named(
    "test_simple_mode",
    ("220", "hostname version ready", "`220 <hostname> ESMTP <version>`", "test_simple_220"),
    ("EHLO", "no extension", "PIPELINING, SIZE, 8BITMIME, SMTPUTF8, CHUNKING, DSN, STARTTLS, AUTH, LIMITS", "test_simple_ehlo"),
    ("HELP, empty line", "the client hangs", "214; 500", "test_simple_help_and_empty_line"),
    ("MAIL", "`<>` refused", "null reverse-path; parameters by table", "test_simple_mail"),
    ("out of order", "503", "503 5.5.1", "test_simple_out_of_order"),
    ("content", "memory, bare LF, no limit", "memory or file, bounded; bare CR and LF refused", "test_simple_content"),
    ("Message-ID, Received", "added", "Received always; Message-ID and Date for submissions", "test_simple_message_id_and_received"),
    ("250", "before anything is kept", "after the fsync", "test_simple_250"),
    ("delivery", "one host, 5yz drops all, no bounce", "all hosts, per recipient, DSN, handlers always", "test_simple_delivery"),
    ("idle client", "dropped without a word", "421 4.4.2", "test_simple_idle_client"),
    ("queue on disk", "to do", "done", "test_simple_queue_on_disk"),
    ("lines", "CRLF only", "the same", "test_simple_lines"),
    ("pause, handlers", "running deliveries end", "the same; a handler is called once, with its recipients", "test_simple_pause_and_handlers"),
)  # fmt: skip

FAULTS = _named(
    "test_faults",
    ("B1", "one input buffer for all", "sessions share nothing", "test_fault_b1_sessions_share_nothing"),
    ("B2", "undots before it looks for the end", "the end first", "test_fault_b2_the_end_first_then_undot"),
    ("B3", "no reply to MAIL without argument", "501 5.5.4", "test_fault_b3_commands_without_argument"),
    ("B4", "the last line is lost", "octets in, octets out", "test_fault_b4_octets_in_octets_out"),
    ("B5", "odd addresses end the process", "refused", "test_fault_b5_odd_addresses_do_not_end_the_process"),
    ("B6", "a long line ends the process", "bounded", "test_fault_b6_an_endless_line_is_bounded"),
    ("B7", "out of descriptors: deaf", "accepting goes on", "test_fault_b7_out_of_descriptors"),
    ("B8", "DNSBL: wrong name, error codes are listings", "RFC 5782", "test_fault_b8_dnsbl"),
    ("B9", "the second MX is never tried", "all, in order", "test_fault_b9_every_mx_is_tried"),
    ("B10", "handlers skipped, called too often, shared item", "once, with their own", "test_fault_b10_handlers"),
    ("B11, B12", "timers between messages, maxrelay not held", "work-conserving, held", "test_fault_b11_b12_work_conserving_and_bounded"),
    ("B13", "data_fh by luck", "exactly once", "test_fault_b13_data_fh_exactly_once"),
    ("B14", "anything is an address", "RFC 5321 grammar", "test_fault_b14_addresses_are_judged"),
    ("B15, B17", "accepting slows down", "flat", "test_fault_b15_b17_accepting_stays_flat"),
    ("B16", "a failing plugin loops", "contained", "test_fault_b16_a_plugin_that_fails_on_everything"),
    ("B17b", "retries speed up", "back-off", "test_fault_b17b_retries_slow_down"),
    ("B18", "open relay", "closed", "test_fault_b18_no_open_relay"),
    ("B19", "half-close loses replies", "they are sent", "test_fault_b19_half_close"),
    ("B20", "dots in replies and commands", "untouched", "test_fault_b20_dots_in_replies_and_commands"),
    ("B21", "quadratic time", "linear", "test_fault_b21_linear_time"),
    ("B22, B23", "250 too early, no bounce", "kept first; DSN", "test_fault_b22_b23_kept_first_then_250"),
    ("B24, B25, B26", "`<>`, HELP, EHLO, postmaster", "RFC 5321", "test_fault_b24_b25_b26_rfc_5321"),
    ("B27", "sender verification races", "awaited", "test_fault_b27_sender_verification_never_races"),
    ("B28, B38", "HELO, no TLS, duplicates, AUTH in clear", "done right", "test_fault_b28_b38_the_sending_side"),
    ("B29", "look-ups stop the server", "asynchronous", "test_fault_b29_look_ups_stop_nobody"),
    ("B31", "header section not told from body", "header section only", "test_fault_b31_the_header_section_alone"),
    ("B32, B33", "the pipeline gets corrupted", "all or nothing", "test_fault_b32_b33_pipeline_operations_are_whole"),
    ("B34", "handler before message_queued", "in order", "test_fault_b34_in_order"),
    ("B35", "one shutdown breaks another server", "independent", "test_fault_b35_servers_are_independent"),
    ("B36, B37", "wrong answers and arguments", "true", "test_fault_b36_b37_true_answers"),
    ("B39", "commands behind QUIT run", "ignored", "test_fault_b39_commands_behind_quit"),
)  # fmt: skip

_DIALOGUES = (
    "basic", "dnsbl", "time_out", "data", "data_with_file_handle", "handler", "enqueue", "domains", "message_id", "origin",
    "pause", "cancel", "transparency",
)  # fmt: skip
DIALOGUES = _rows(
    "test_dialogues",
    "test_dialogue_",
    *((name, "a test script", "a dialogue as a text file") for name in _DIALOGUES),
)

SECTIONS: dict[str, list[Row]] = {
    "Options of `MailServer.spawn`": OPTIONS,
    "Methods": METHODS,
    "Input events": INPUT_EVENTS,
    "Events": EVENTS,
    "Plugins": PLUGINS,
    "Simple mode": SIMPLE_MODE,
    "Faults of the original, mended": FAULTS,
    "Dialogues": DIALOGUES,
}
