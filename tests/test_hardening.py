"""The systemd unit's sandbox: what systemd says of it, and that the server works under it; floors of dependencies."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT, free_port, tool
from tests.daemon import Daemon, wait_until
from tests.test_admin import Client
from tests.test_workers import send

UNITS = ROOT / "contrib" / "systemd"


def with_drop_in(text: str, drop_in: str) -> str:
    """The unit as systemd reads it with a drop-in behind it."""
    head, _, install = text.partition("[Install]")
    return f"{head}\n{drop_in.partition('[Service]')[2]}\n[Install]{install}"


@pytest.mark.parametrize(("is_activated", "exposure"), [(False, 15), (True, 12)])
def test_unit_leaves_little_exposed(is_activated: bool, exposure: int, tmp_path: Path) -> None:
    text = (UNITS / "pillarbox.service").read_text()
    if is_activated:
        text = with_drop_in(text, (UNITS / "socket-activation.conf").read_text())
    (tmp_path / "pillarbox.service").write_text(text)
    words = ["security", "--offline=true", f"--threshold={exposure}", "--no-pager", str(tmp_path / "pillarbox.service")]
    done = subprocess.run([tool("systemd-analyze"), *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_unit_with_the_drop_in_is_valid(tmp_path: Path) -> None:
    text = with_drop_in((UNITS / "pillarbox.service").read_text(), (UNITS / "socket-activation.conf").read_text())
    text = text.replace("/opt/pillarbox/bin/pillarbox", "/bin/true").replace("=pillarbox\n", "=root\n")
    (tmp_path / "pillarbox.service").write_text(text)
    words = ["verify", "--recursive-errors=no", str(tmp_path / "pillarbox.service")]
    done = subprocess.run([tool("systemd-analyze"), *words], capture_output=True, text=True, timeout=60)
    assert not [line for line in done.stderr.splitlines() if "pillarbox" in line]


# Installs what the unit's filters refuse, and becomes the command: memory that is written and executed, priorities and limits.
DENY = """
import ctypes, os, struct, sys
numbers = {
    "x86_64": (9, (10, 329), (141, 160, 144, 203, 251)),
    "aarch64": (222, (226, 288), (140, 164, 119, 122, 30)),
}
# mmap; mprotect, pkey_mprotect; of @resources: setpriority, setrlimit, sched_setscheduler, sched_setaffinity, ioprio_set
mmap, protect, resources = numbers[os.uname().machine]
allow, deny, read_protection = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001), (0x20, 0, 0, 32)
rows = [(0x20, 0, 0, 0), (0x15, 0, 5, mmap), read_protection, (0x54, 0, 0, 6), (0x15, 0, 1, 6), deny, allow]
for number in protect:
    rows += [(0x15, 0, 4, number), read_protection, (0x45, 0, 1, 4), deny, allow]
for number in resources:
    rows += [(0x15, 0, 1, number), deny]
code = b"".join(struct.pack("HBBI", *one) for one in [*rows, allow])
buffer = ctypes.create_string_buffer(code, len(code))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_server_works_under_the_filters_of_the_unit(tmp_path: Path) -> None:
    """Mail by SMTP with TLS, the queue, the dashboard and the reader of messages; the database library loads."""
    import ssl

    import trustme

    leaf = trustme.CA().issue_cert("mx.test", "127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    flags = (f"--tls-cert={tmp_path}/cert.pem", f"--tls-key={tmp_path}/key.pem", f"--admin=127.0.0.1:{free_port()}")
    wrap = (sys.executable, "-c", DENY)
    with Daemon(tmp_path, *flags, "--paused", wrap=wrap) as daemon:
        import smtplib

        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            client.starttls(context=ssl._create_unverified_context())
            client.sendmail("a@b.test", ["c@d.test"], b"Subject: x\r\nContent-Type: text/html\r\n\r\n<p>hello</p>\r\n")
        send(daemon.port, "e@f.test")
        admin = Client(daemon)
        rows = wait_until(lambda: len(found := admin.get("/api/messages")) == 2 and found)
        assert "<p>hello</p>" in admin.get(f"/api/messages/{rows[0]['uid']}/parsed")["html"]
        assert admin.ask("GET", "/")[0] == 200
    script = (
        "import mmap, os\ntry:\n    os.nice(1)\nexcept PermissionError:\n    pass\nelse:\n    raise SystemExit('nice')\n"
        "try:\n    mmap.mmap(-1, 4096, prot=7)\nexcept PermissionError:\n"
        "    import psycopg, psycopg.pq, uvloop, apsw, orjson, regex, pydantic\n    print('denied, and loaded', psycopg.pq.__impl__)\n"
    )
    done = subprocess.run([*wrap, sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("denied, and loaded"), done.stderr


# ------------------------------------------------------------------------------------- dependencies

# The oldest version without a known hole that matters here, and the hole.
FLOORS = {
    # CVE-2023-29483: a forged answer ends a look-up. The mend of 2.6.0 cannot be used.
    "dnspython": "2.6.1",
    # CVE-2025-62727: a Range header costs quadratic time in StaticFiles.
    "starlette": "0.49.1",
    # CVE-2024-56201, CVE-2024-56326, CVE-2025-27516: ways out of the sandbox.
    "jinja2": "3.1.6",
    # CVE-2025-43859: chunked bodies are read leniently, which lets requests be smuggled. Used by uvicorn.
    "h11": "0.16.0",
    # CVE-2024-27454: a deeply nested document ends the process.
    "orjson": "3.9.15",
    # CVE-2024-3772: a regular expression for addresses takes quadratic time.
    "pydantic": "2.4.0",
}


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {one.name.lower(): one for one in map(Requirement, project["dependencies"])}


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_declared_floor_lets_no_known_hole_in(name: str) -> None:
    requirement = declared()[name]
    floors = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==", "~=", ">")]
    assert floors and max(floors) >= Version(FLOORS[name]), f"{requirement}: expected >={FLOORS[name]}"


def test_every_dependency_has_a_floor_that_the_installed_version_meets() -> None:
    for name, requirement in declared().items():
        assert any(one.operator == ">=" for one in requirement.specifier), f"{name} has no floor"
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(importlib.metadata.version(name), prereleases=True)


def test_security_policy_names_a_private_way_and_times() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    assert "Report a vulnerability" in text and re.search(r"\d+ days", text) and "Supported versions" in text
    assert not re.search(r"[\w.]+@[\w.]+", text), "no address that nobody reads"
