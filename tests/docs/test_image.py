"""The Docker image without Docker: each step of the Dockerfile, its command and its health check run in a scratch root."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.scratch_root import ScratchRoot, missing, scratch_root
from tests.docs.test_pages import _prepare, wheels  # noqa: F401


def instructions(text: str) -> list[tuple[str, str]]:
    """(NAME, argument) of each instruction, lines joined, without comments."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
    return [(name, argument.strip()) for name, argument in re.findall(r"^([A-Z]+)\s+(.*)$", text, re.M)]


def build(root: ScratchRoot) -> dict[str, list[str]]:
    """Runs the steps as root, in one file system; returns the last ENTRYPOINT, CMD and HEALTHCHECK, and the user."""
    last: dict[str, list[str]] = {}
    for name, argument in instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        if name == "COPY" and not argument.startswith("--from"):
            *sources, target = argument.split()
            for source in sources:
                assert re.search(rf"^!{source.rstrip('/')}$|^!{source.split('/')[0]}$|^!{'/'.join(source.split('/')[:2])}$",
                                 (ROOT / ".dockerignore").read_text(), re.M), f".dockerignore leaves {source} out"  # fmt: skip
            is_folder = target.endswith("/")
            root.run(
                f"mkdir -p {target if is_folder else os.path.dirname(target)}; rm -rf {target}"
                if not is_folder
                else f"mkdir -p {target}"
            )
            root.run(f"cp -r {' '.join(sources)} {target}")
        elif name == "RUN":
            # The image's Python is called so; --no-cache-dir and the extra need no index here.
            root.run(f"sh -ec {shlex.quote(argument.replace('python -m venv', 'python3 -m venv'))}")
        elif name == "ENV":
            root.run(f"export {argument}")
        elif name in ("ENTRYPOINT", "CMD"):
            last[name] = json.loads(argument)
        elif name == "HEALTHCHECK":
            last[name] = json.loads(argument[argument.index("[") :])
        elif name == "USER":
            last[name] = [argument]
    return last


@pytest.fixture
def root(tmp_path: Path, wheels: Path) -> ScratchRoot:  # type: ignore[misc]  # noqa: F811
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with scratch_root(tmp_path) as made:
        _prepare(made, ROOT / "docs" / "guides" / "run-with-docker.md", wheels)
        made.run("chmod 755 /root; echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start")
        yield made  # type: ignore[misc]


def serve(root: ScratchRoot, image: dict[str, list[str]]) -> None:
    """Starts the image's command as its user, and waits until its health check passes."""
    words = shlex.join([*image["ENTRYPOINT"], *image["CMD"]])
    user = image["USER"][0]
    root.run(
        f"setpriv --reuid {user} --regid {user} --init-groups --bounding-set=-all --no-new-privs {words} >/tmp/log 2>&1 &"
    )
    root.run(
        "for _ in $(seq 900); do grep -q 'ready on' /tmp/log && break; sleep 0.1; done; grep 'ready on' /tmp/log || { cat /tmp/log; false; }"
    )
    root.run(shlex.join(["python3", *image["HEALTHCHECK"][1:]]))


def test_image_accepts_mail_on_port_25_and_keeps_it_in_its_volume(root: ScratchRoot) -> None:
    image = build(root)
    serve(root, image)
    root.run("pillarbox send --server 127.0.0.1:25 --to you@example.net")
    # As `docker exec` does: the image's environment finds the queue.
    assert "you@example.net" in root.run(f"setpriv --reuid {image['USER'][0]} --clear-groups pillarbox queue list")
    root.run("test -e /var/lib/pillarbox/queue-0.db")


def test_mounted_configuration_replaces_every_setting_of_the_image(root: ScratchRoot) -> None:
    image = build(root)
    root.run(
        'printf \'listen = ["0.0.0.0:25", "0.0.0.0:2587"]\\nadmin = "127.0.0.1:8025"\\n\' >/etc/pillarbox/pillarbox.toml'
    )
    root.run(f"chown {image['USER'][0]} /etc/pillarbox/pillarbox.toml; chmod 0600 /etc/pillarbox/pillarbox.toml")
    serve(root, image)
    listeners = root.run("ss -Hltn")
    assert ":25 " in listeners and ":2587 " in listeners and "127.0.0.1:8025" in listeners
