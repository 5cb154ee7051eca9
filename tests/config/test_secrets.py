"""Secret options: one mark at the field keeps them out of config show, the API, error texts and the ready line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pillarbox.config.secrets import hide_options, mark_of, shown_value
from pillarbox.daemon.config import ConfigError, known_keys, load, shown
from pillarbox.daemon.loading import resolve
from pillarbox.errors import OptionError
from pillarbox.options import Options, parse_options
from pillarbox.places import hide_password
from pillarbox.webhook import Webhook
from tests.conftest import free_port
from tests.daemon import Daemon
from tests.test_admin import Client

SECRET = "s3cret-that-nobody-sees"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"postgresql://u:{SECRET}@db.test/mail", "postgresql://***@db.test/mail"),
        (f"postgresql://u:{SECRET}://x@db.test/mail", "postgresql://***@db.test/mail"),
        (f"postgresql://u:a@{SECRET}@db.test/mail", "postgresql://***@db.test/mail"),
        (f"postgresql://db.test/mail?password={SECRET}&sslmode=require", "postgresql://db.test/mail?password=***&sslmode=require"),
        (f"postgresql:///mail?user=u&PASSWORD={SECRET}", "postgresql:///mail?user=u&PASSWORD=***"),
        (f"postgresql:///mail?sslpassword={SECRET}", "postgresql:///mail?sslpassword=***"),
        (f"host=db.test password={SECRET} user=u", "host=db.test password=*** user=u"),
        (f"host=db.test password='{SECRET} x' user=u", "host=db.test password=*** user=u"),
        (f"{SECRET}@smart.test:25", "***@smart.test:25"),
        ("smtp://smart.test:25", "smtp://smart.test:25"),
        ("postgresql://db.test/mail?passfile=/etc/p&sslmode=require", "postgresql://db.test/mail?passfile=/etc/p&sslmode=require"),
    ],
)  # fmt: skip
def test_password_is_hidden_wherever_it_stands_in_a_url(text: str, hidden: str) -> None:
    assert hide_password(text) == hidden


def test_every_option_named_like_a_secret_is_marked() -> None:
    marked = {name: mark_of(field) for name, field in known_keys().items() if mark_of(field)}
    assert marked == {"queue": "url", "relay_pass": "whole"}
    # A new option with such a name needs the mark, or a reason here.
    named = {name for name in known_keys() if any(word in name for word in ("pass", "secret", "token", "password"))}
    assert named - set(marked) == {"relay_pass_file"}
    fields = Options.model_fields
    assert shown_value(fields["relay_pass"], SECRET) == "***" and shown_value(fields["relay_pass"], None) is None
    assert shown_value(fields["hostname"], "x.test") == "x.test"


@pytest.mark.parametrize(
    "given",
    [
        {"relay_pass": SECRET},
        {"relay_pass": [SECRET], "relay": "smart.test", "relay_user": "u"},
        {"queue": SECRET},
        {"queue": f"mysql://u:{SECRET}@db.test/x"},
        {"queue": {"url": SECRET}},
        {"relay": f"smtp://u:{SECRET}@smart.test"},
        {"relay": [f"u:{SECRET}@smart.test", 5]},
        {"listen": f"smtp://u:{SECRET}@127.0.0.1:25"},
    ],
)
def test_error_texts_tell_no_secret(given: dict[str, object]) -> None:
    with pytest.raises(OptionError) as of_program:
        parse_options(given)
    assert SECRET not in str(of_program.value)
    with pytest.raises(ConfigError) as of_daemon:
        load(None, {}, given)
    assert SECRET not in str(of_daemon.value)


@pytest.mark.parametrize(
    "options",
    [
        f'{{ url = "http://u:{SECRET}@app.test/" }}',
        f'{{ url = "http://app.test/", secret = "whsec_{SECRET}!" }}',
        f'{{ url = "nonsense", secret = "{SECRET}" }}',
        f'{{ url = "http://app.test/", kind = "x", headers = {{ Authorization = "Bearer {SECRET}" }} }}',
        f'"{SECRET}"',
    ],
)
def test_errors_about_a_handler_tell_no_secret_of_its_options(options: str, tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text(f'[[handlers]]\nmatch = "@x"\nuse = "pillarbox.webhook:Webhook"\noptions = {options}\n')
    with pytest.raises(ConfigError) as caught:
        resolve(load(str(file), {}, {}))
    assert SECRET not in str(caught.value)


def test_errors_of_a_plugin_are_searched_for_its_secrets() -> None:
    options = {"api_token": SECRET, "nested": [{"password": "other-one"}], "dsn": "x://u:third@h", "name": "box"}
    text = f"bad {SECRET}, other-one, third, box"
    assert hide_options(text, options) == "bad ***, ***, ***, box"
    with pytest.raises(OptionError) as caught:
        Webhook(f"ftp://u:{SECRET}@app.test/")
    assert SECRET not in str(caught.value)


def test_config_show_shows_that_a_secret_is_set_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "pillarbox.toml"
    file.write_text(
        f'relay = "smart.test"\nrelay_user = "u"\nrelay_pass = "{SECRET}"\nqueue = "postgresql://u:{SECRET}@db.test/x"\n'
    )
    file.chmod(0o600)
    rows = {name: (value, source) for name, value, source in shown(load(str(file), {}, {}))}
    assert rows["relay_pass"] == ("***", f"{file}:3")
    assert rows["queue"][0] == "postgresql://***@db.test/x"
    assert not any(SECRET in str(value) for value, _ in rows.values())
    assert shown(load(None, {}, {})) and SECRET not in repr(load(str(file), {}, {}).daemon)


def test_api_shows_options_without_secrets(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    arguments = ("--relay=127.0.0.1:1", "--relay-user=u", f"--relay-pass-file={secret}", "--relay-tls=verify")
    with Daemon(tmp_path, *arguments, "--paused", f"--admin=127.0.0.1:{free_port()}") as daemon:
        found = Client(daemon).get("/api/options")
        assert found["relay_user"] == "u" and "relay_pass" not in found
        assert SECRET not in json.dumps(found) and SECRET not in daemon.ready
        assert SECRET not in daemon.log.read_text()
