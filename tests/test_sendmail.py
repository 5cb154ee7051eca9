"""The sendmail command as programs call it; messages out to mbox and Maildir and in again."""

from __future__ import annotations

import mailbox
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pillarbox.cli.addresslist import parse_addresses
from pillarbox.cli.sendmail import SendmailError, named_recipients, parse_call
from tests.conftest import free_port, tool
from tests.daemon import Daemon, pillarbox


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Daemon(tmp_path_factory.mktemp("sendmail"), "--paused") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sendmail, mailq and newaliases, linked to the command as an administrator would."""
    folder = tmp_path_factory.mktemp("sbin")
    command = Path(sys.executable).parent / "pillarbox"
    for name in ("sendmail", "mailq", "newaliases"):
        (folder / name).symlink_to(command)
    return folder


def call(
    programs: Path, daemon: Daemon | None, *arguments: str, text: bytes = b"", name: str = "sendmail"
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PILLARBOX_SENDMAIL": f"127.0.0.1:{daemon.port if daemon else free_port()}"}
    if daemon is not None:
        environment["XDG_STATE_HOME"] = "/nonexistent"
    return subprocess.run([programs / name, *arguments], input=text, capture_output=True, timeout=60, env=environment)


def taken(daemon: Daemon, subject: str) -> tuple[dict[str, Any], str]:
    """The one message with that subject: its row, and its content."""
    rows = [row for row in daemon.queue() if row["subject"] == subject]
    assert len(rows) == 1, rows
    octets = pillarbox("queue", "export", "-", rows[0]["uid"], f"--data-dir={daemon.data}").stdout
    return rows[0], octets


def addresses(row: dict[str, Any]) -> list[str]:
    return [r["address"] for r in row["recipients"]]


def test_recipients_from_headers(server: Daemon, programs: Path) -> None:
    text = b"From: Me <me@b.test>\nTo: One <one@d.test>,\n two@d.test\nCc: three@d.test\nBcc: four@d.test\nSubject: t\n\nx\n"
    done = call(programs, server, "-t", "-i", "-f", "bounce@b.test", "extra@d.test", text=text)
    assert done.returncode == 0, done.stderr
    row, octets = taken(server, "t")
    assert addresses(row) == ["extra@d.test", "one@d.test", "two@d.test", "three@d.test", "four@d.test"]
    assert row["reverse_path"] == "bounce@b.test"
    assert "Bcc" not in octets and "From: Me <me@b.test>" in octets and "\nDate: " in octets


def test_the_form_that_cron_and_php_use(server: Daemon, programs: Path) -> None:
    text = b"To: root\nSubject: cron\n\nline\n.\nnot the end with -oi\n"
    done = call(programs, server, "-FCronDaemon", "-i", "-odi", "-oem", "-oi", "-fcron@b.test", "c@d.test", text=text)
    assert done.returncode == 0, done.stderr
    row, octets = taken(server, "cron")
    assert addresses(row) == ["c@d.test"] and "From: CronDaemon <cron@b.test>" in octets
    assert octets.rstrip().endswith("not the end with -oi")


def test_a_dot_ends_it_without_i(server: Daemon, programs: Path) -> None:
    done = call(programs, server, "-f<>", "c@d.test", text=b"Subject: dot\n\nbefore\n.\nafter\n")
    assert done.returncode == 0, done.stderr
    row, octets = taken(server, "dot")
    assert row["reverse_path"] is None and "after" not in octets and "before" in octets


def test_text_without_headers_and_8_bit(server: Daemon, programs: Path) -> None:
    done = call(programs, server, "-i", "-F", "Jürgen", "c@d.test", text="Grüße, nur Text\n".encode())
    assert done.returncode == 0, done.stderr
    row, octets = taken(server, "")
    head, _, body = octets.partition("\n\n")
    assert "Grüße" in body and "From: =?utf-8?" in head


def test_dsn_options_and_several_addresses_in_a_word(server: Daemon, programs: Path) -> None:
    done = call(
        programs,
        server,
        "-N",
        "success,delay",
        "-R",
        "hdrs",
        "-V",
        "id 1",
        "a@d.test, B <b@d.test>",
        text=b"Subject: dsn\n\nx\n",
    )
    assert done.returncode == 0, done.stderr
    row, _ = taken(server, "dsn")
    assert addresses(row) == ["a@d.test", "b@d.test"] and row["recipients"][0]["notify"] == ["SUCCESS", "DELAY"]


def test_smtp_on_stdin_by_swaks(server: Daemon, programs: Path) -> None:
    swaks = tool("swaks")
    environment = {**os.environ, "PILLARBOX_SENDMAIL": server.address}
    arguments = ["--to", "c@d.test", "--from", "a@b.test", "--header", "Subject: piped"]
    done = subprocess.run(
        [swaks, "--pipe", f"{programs / 'sendmail'} -bs", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    taken(server, "piped")
    script = b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nQUIT\r\n"
    done2 = call(programs, server, "-bs", text=script)
    assert done2.stdout.count(b"250 2.1") == 2 and done2.stdout.splitlines()[-1].startswith(b"221")


DIALOGUE = (
    "EHLO x.test",
    "MAIL FROM:<a@b.test>",
    "RCPT TO:<c@d.test>",
    "DATA",
    "Subject: {}",
    "",
    "hello",
    "..",
    "x\r.",
    ".",
    "QUIT",
    "",
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("source", ["pipe", "file"])
def test_dialogue_that_comes_as_a_whole_is_held_command_by_command(
    server: Daemon, programs: Path, tmp_path: Path, end: str, source: str
) -> None:
    subject = f"whole-{source}-{len(end)}"
    text = end.join(DIALOGUE).format(subject).encode()
    (tmp_path / "dialogue").write_bytes(text)
    with (tmp_path / "dialogue").open("rb") as file:
        given: dict[str, Any] = {"stdin": file} if source == "file" else {"input": text}
        environment = {**os.environ, "PILLARBOX_SENDMAIL": server.address}
        done = subprocess.run([programs / "sendmail", "-bs"], capture_output=True, timeout=60, env=environment, **given)
    assert done.returncode == 0 and done.stdout.endswith(b"\r\n") and b"STARTTLS" not in done.stdout, done
    _, octets = taken(server, subject)
    assert octets.rstrip().endswith("hello\n.\nx.")


def test_dialogue_without_its_end_delivers_nothing(server: Daemon, programs: Path) -> None:
    before = len(server.queue())
    text = "\n".join(DIALOGUE[:-3]).encode()
    assert call(programs, server, "-bs", text=text).returncode == 65
    assert len(server.queue()) == before


def test_refused_data_does_not_make_commands_of_its_content(server: Daemon, programs: Path) -> None:
    before = len(server.queue())
    evil = ("MAIL FROM:<a@b.test>", "RCPT TO:<evil@d.test>", "DATA", "Subject: smuggled", "", ".", "QUIT", "")
    text = "\n".join(("EHLO x.test", "DATA", *evil)).encode()
    done = call(programs, server, "-bs", text=text)
    assert done.returncode == 69 and len(server.queue()) == before
    assert b"250 2.1.0" not in done.stdout


@pytest.mark.parametrize(("line", "code"), [("RCPT TO:<bad@@d.test>", 69), ("NOOP", 0), ("NONSENSE", 69)])
def test_exit_code_is_that_of_the_worst_reply(server: Daemon, programs: Path, line: str, code: int) -> None:
    done = call(programs, server, "-bs", text=f"EHLO x.test\nMAIL FROM:<a@b.test>\n{line}\nRSET\n".encode())
    assert done.returncode == code


def test_chunks_of_bdat_are_passed_as_they_are(server: Daemon, programs: Path) -> None:
    text = "\r\n".join(
        (
            "EHLO x.test",
            "MAIL FROM:<a@b.test>",
            "RCPT TO:<c@d.test>",
            "BDAT 21 LAST",
            "Subject: bdat",
            "",
            "xx",
            "QUIT",
            "",
        )
    )
    assert call(programs, server, "-bs", text=text.encode()).returncode == 0
    taken(server, "bdat")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("John (Sales, EU) <j@d.test>", ["j@d.test"]),
        ("<a@d.test>,,<b@d.test>", ["a@d.test", "b@d.test"]),
        (",b@d.test,", ["b@d.test"]),
        ("root (super user)", ["root"]),
        ("a@d.test (Name (x, y) \\) z)", ["a@d.test"]),
        ("Team: a@d.test, b@d.test;, c@d.test", ["a@d.test", "b@d.test", "c@d.test"]),
        ("undisclosed-recipients:;", []),
        ("", []),
        ('"Doe, John; <x>" <j@d.test>, k@d.test', ["j@d.test", "k@d.test"]),
        ('"a, b"@d.test', ['"a, b"@d.test']),
        ('<"a>b"@d.test>', ['"a>b"@d.test']),
        ("J. R. Smith <j@d.test>", ["j@d.test"]),
        ("=?utf-8?q?Gr=C3=BCn=2C?= <a@d.test>", ["a@d.test"]),
        ("Grün <grün@d.test>", ["grün@d.test"]),
        ("user@[127.0.0.1], <u@[IPv6:::1]>", ["user@[127.0.0.1]", "u@[IPv6:::1]"]),
        ("<@r.test,@s.test:a@d.test>", ["a@d.test"]),
        ("a @ d.test, b@d . test", ["a@d.test", "b@d.test"]),
        ("John <john>", ["john"]),
    ],
)
def test_address_list_of_a_header_field_is_read(text: str, found: list[str]) -> None:
    assert parse_addresses(text) == found
    folded = text.replace(", ", ",\r\n\t").encode()
    assert named_recipients(b"Subject: x\r\nBcc : " + folded + b"\r\nX-Last: 1\r\n\r\nTo: no@d.test\r\n") == found


@pytest.mark.parametrize(
    "text",
    [
        "John Doe",
        "a@d.test b@d.test",
        "<a@d.test> x",
        "<a@d.test> <b@d.test>",
        "a b@d.test",
        '"open',
        "(open",
        "<a",
        "<>",
        "@d.test",
        "a@",
    ],
)
def test_address_list_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="invalid address"):
        parse_addresses(text)
    with pytest.raises(SendmailError):
        named_recipients(f"To: good@d.test, {text}\n\n".encode())


def test_what_goes_wrong(server: Daemon, programs: Path) -> None:
    for arguments, code, words in (
        ((), 64, b"nobody to send to"),
        (("-t",), 64, b"nobody to send to"),
        (("-Z",), 64, b"option -Z not recognized"),
        (("-bd",), 64, b"pillarbox serve"),
        (("-N", "sometimes", "c@d.test"), 64, b"give never"),
        (("-R", "half", "c@d.test"), 64, b"full or hdrs"),
        (("not an address",), 65, b"cannot be read"),
    ):
        done = call(programs, server, *arguments, text=b"Subject: wrong\n\nx\n")
        assert done.returncode == code and words in done.stderr, (arguments, done.stderr)
        assert done.stderr.count(b"\n") == 1
    done = call(programs, None, "c@d.test", text=b"x\n")
    assert done.returncode == 75 and b"PILLARBOX_SENDMAIL" in done.stderr
    assert not [row for row in server.queue() if row["subject"] == "wrong"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-f", "a@b.test>\r\nRCPT TO:<evil@d.test", "c@d.test"),
        ("c@d.test>\nRCPT TO:<evil@d.test",),
        ("-V", "x\r\nRSET", "c@d.test"),
        ("-F", "X\nBcc: evil@d.test", "c@d.test"),
    ],
)
def test_row_135_a_line_end_in_an_argument_opens_nothing(
    server: Daemon, programs: Path, arguments: tuple[str, ...]
) -> None:
    before = {row["uid"] for row in server.queue()}
    done = call(programs, server, *arguments, text=b"Subject: injected\n\nx\n")
    new = [row for row in server.queue() if row["uid"] not in before]
    assert all("evil" not in str(r["address"]) for row in new for r in row["recipients"])
    assert done.returncode in (0, 64, 65, 69)
    if new:
        octets = pillarbox("queue", "export", "-", new[0]["uid"], f"--data-dir={server.data}").stdout
        assert "\nBcc:" not in octets


def test_other_names(server: Daemon, programs: Path) -> None:
    assert call(programs, server, name="newaliases").returncode == 0
    assert call(programs, server, "-bi").returncode == 0 and call(programs, server, "-I").returncode == 0
    environment = {**os.environ, "XDG_STATE_HOME": "/nonexistent", "HOME": "/nonexistent"}
    done = subprocess.run([programs / "mailq"], capture_output=True, timeout=60, env=environment)
    assert done.returncode in (0, 1)
    assert parse_call(["-q30m"]).flushes and parse_call(["-q"]).flushes and parse_call([], "mailq").mode == "p"
    with pytest.raises(SendmailError):
        parse_call(["-f"])
    assert named_recipients(b"Resent-To: new@d.test\r\nTo: old@d.test\r\n\r\nx") == ["new@d.test"]


# ------------------------------------------------------------------ mbox and Maildir


@pytest.mark.parametrize("kind", ["mbox", "maildir"])
@pytest.mark.parametrize("is_running", [True, False])
def test_out_and_in_again(tmp_path: Path, kind: str, is_running: bool, programs: Path) -> None:
    box = tmp_path / "box"
    with Daemon(tmp_path, "--paused", "--workers=2") as source:
        texts = [
            b"Subject: plain\n\nFrom here on\n>From there\nend\n",
            b"Subject: big\n\n" + b"x" * 70 + b"\n" + b"0123456789\n" * 30_000,
            "Subject: utf\n\nGrüße\n".encode(),
            b"X-Envelope-To: forged@d.test\nSubject: forged\n\nno end of line",
        ]
        for text in texts:
            assert call(programs, source, "-i", "-f", "a@b.test", "one@d.test", "two@d.test", text=text).returncode == 0
        assert call(programs, source, "-i", "-f<>", "three@d.test", text=b"Subject: null\n\nx\n").returncode == 0
        before = {row["subject"]: row for row in source.queue()}
        done = pillarbox("queue", "export", str(box), f"--format={kind}", f"--data-dir={source.data}")
        assert "5 messages exported" in done.stderr
        some = pillarbox("queue", "export", "-", "--to=three@", f"--data-dir={source.data}")
        assert "1 message exported" in some.stderr and "X-Envelope-To: three@d.test" in some.stdout
        if kind == "mbox":
            again = pillarbox("queue", "export", str(box), f"--data-dir={source.data}", ok=False)
            assert again.returncode == 2 and "File exists" in again.stderr
            assert len(mailbox.mbox(str(box))) == 5
        else:
            assert len(mailbox.Maildir(str(box))) == 5
    target = tmp_path / "target"
    arguments = ("queue", "import", str(box), f"--format={kind}", f"--data-dir={target / 'data'}")
    if is_running:
        with Daemon(target, "--paused"):
            done = pillarbox(*arguments)
    else:
        done = pillarbox(*arguments)
    assert "5 messages imported" in done.stderr and len(done.stdout.split()) == 5
    with Daemon(target, "--paused") as second:
        after = {row["subject"]: row for row in second.queue()}
        assert after.keys() == before.keys()
        for subject, row in after.items():
            assert (
                addresses(row) == addresses(before[subject]) and row["reverse_path"] == before[subject]["reverse_path"]
            )
            octets = [
                pillarbox("queue", "export", "-", row["uid"], f"--data-dir={folder}")
                .stdout.partition("\n\n")[2]
                .rstrip("\n")
                for folder, row in ((second.data, row), (tmp_path / "data", before[subject]))
            ]
            assert octets[0] == octets[1]


def test_import_takes_all_or_none(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.write_bytes(
        b"From x Mon Nov 23 02:00:00 2026\nX-Envelope-To: good@d.test\nSubject: one\n\nx\n\n"
        b"From x Mon Nov 23 02:00:00 2026\nX-Envelope-To: not an address\nSubject: two\n\nx\n\n"
    )
    folder = f"--data-dir={tmp_path / 'data'}"
    done = pillarbox("queue", "import", str(box), folder, ok=False)
    assert done.returncode == 2 and "message 2" in done.stderr and "nothing was imported" in done.stderr
    box.write_bytes(
        b"From x Mon Nov 23 02:00:00 2026\nTo: Some <a@d.test>, b@d.test\nBcc: c@d.test\nSubject: s\n\nx\n\n"
    )
    done = pillarbox("queue", "import", str(box), folder, ok=False)
    assert done.returncode == 2 and "names no recipient" in done.stderr and "--headers" in done.stderr
    assert "1 message imported" in pillarbox("queue", "import", str(box), "--headers", folder).stderr
    assert (
        "1 message imported"
        in pillarbox("queue", "import", str(box), "--to=z@d.test", "--from=me@b.test", folder).stderr
    )
    for source, kind, words in (
        ("none", "mbox", "there is no"),
        (".", "mbox", "--format maildir"),
        (".", "maildir", "no Maildir"),
    ):
        where = str(tmp_path) if source == "." else str(tmp_path / source)
        done = pillarbox("queue", "import", where, f"--format={kind}", folder, ok=False)
        assert done.returncode == 2 and words in done.stderr
    assert pillarbox("queue", "export", "x", "--format=pst", folder, ok=False).returncode == 2
