"""Settings come from SUPERTONIC_ variables, and a wrong one stops the program with a reason."""

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest

from tasks.logs import check_logging
from tasks.settings import PREFIX, Settings, SettingsError
from tests.stack import ROOT

NUMBERS = [f for f in fields(Settings) if f.type in (int, float)]
BOUNDED = [f for f in NUMBERS if f.metadata["least"] is not None]


def name_of(field: object) -> str:
    return str(field.name)  # type: ignore[attr-defined]


def test_without_variables_the_documented_defaults_hold() -> None:
    settings = Settings.from_env({"PATH": "/bin", "HOME": "/root"})
    assert settings == Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8002)
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert (settings.model, settings.model_dir) == ("auto", "models/supertonic-2")
    assert (settings.max_batch, settings.max_wait_ms) == (32, 5.0)
    assert (settings.first_chunk_chars, settings.max_text_chars) == (60, 50_000)
    assert settings.api_keys == "" and settings.admin_key == ""


def test_every_setting_is_read_from_a_variable_of_its_name() -> None:
    wanted = {f.name: f.type(f.default + 3) for f in NUMBERS}
    wanted |= {f.name: f"{f.default} ELSE" for f in fields(Settings) if f.type is str}
    environ = {PREFIX + name.upper(): str(value) for name, value in wanted.items()}
    assert len(wanted) == len(fields(Settings)), "every setting is text or a number"
    assert Settings.from_env(environ) == Settings(**wanted)


def test_every_setting_says_what_it_is_for() -> None:
    assert all(f.metadata["help"] for f in fields(Settings))


@pytest.mark.parametrize("name", ["SUPERTONIC_PROT", "SUPERTONIC_", "SUPERTONIC_port"])
def test_an_unknown_variable_is_refused_and_the_known_ones_are_listed(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not a setting.*SUPERTONIC_PORT"):
        Settings.from_env({name: "1"})


@pytest.mark.parametrize("field", NUMBERS, ids=name_of)
@pytest.mark.parametrize("text", ["many", "1,5", "0x10"])
def test_what_is_not_a_number_is_refused_with_an_example(field: object, text: str) -> None:
    name = PREFIX + name_of(field).upper()
    default = field.default  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match=f"^{name}='{text}': expected a .*number.*{default}"):
        Settings.from_env({name: text})


@pytest.mark.parametrize("field", NUMBERS, ids=name_of)
@pytest.mark.parametrize("text", ["", " "])
def test_a_number_left_blank_counts_as_unset(field: object, text: str) -> None:
    assert Settings.from_env({PREFIX + name_of(field).upper(): text}) == Settings()


@pytest.mark.parametrize("text", ["debug", "Debug", "DEBUG"])
def test_the_log_level_may_be_written_in_any_case(text: str) -> None:
    settings = Settings.from_env({"SUPERTONIC_LOG_LEVEL": text})
    check_logging(settings)
    assert settings.log_level == "DEBUG"


@pytest.mark.parametrize("field", BOUNDED, ids=name_of)
def test_a_number_below_the_least_or_not_a_number_is_refused(field: object) -> None:
    name, least = PREFIX + name_of(field).upper(), field.metadata["least"]  # type: ignore[attr-defined]
    is_whole = field.type is int  # type: ignore[attr-defined]
    for text in (str(least - 1), "-9"):
        with pytest.raises(SettingsError, match=f"^{name}='{text}': expected at least {least}"):
            Settings.from_env({name: text})
    for text in [] if is_whole else ["nan", "inf", "-inf"]:
        with pytest.raises(SettingsError, match=f"^{name}='{text}': expected a finite number"):
            Settings.from_env({name: text})
    most = field.metadata["most"]  # type: ignore[attr-defined]
    if most is not None:
        with pytest.raises(SettingsError, match=f"^{name}='{most + 1}': expected at most {most}"):
            Settings.from_env({name: str(most + 1)})
    assert getattr(Settings.from_env({name: str(least)}), name_of(field)) == least


def test_a_whole_number_with_a_fraction_is_refused() -> None:
    with pytest.raises(SettingsError, match="SUPERTONIC_PORT='80.5': expected a whole number"):
        Settings.from_env({"SUPERTONIC_PORT": "80.5"})


def test_secrets_are_not_shown_with_the_settings() -> None:
    secret = re.compile(r"key(s|_file)?$|secret|url$")
    texts = [field.name for field in fields(Settings) if isinstance(field.default, str)]
    named = {name: f"scheme://:hidden-{name}@host/0" for name in texts if secret.search(name)}
    assert {"api_keys", "admin_key", "webhook_secret", "redis_url"} <= named.keys()
    shown = repr(Settings(**named))
    assert re.findall(r"hidden-(\w+)", shown) == [] and "port=8002" in shown


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_a_process_with_a_wrong_variable_ends_with_the_reason() -> None:
    command = [sys.executable, "-c", "import celeryconfig"]
    environ = {"SUPERTONIC_MAX_BACTH": "4", "PATH": "/bin"}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "SUPERTONIC_MAX_BACTH is not a setting" in ended.stderr.splitlines()[-1]


def test_a_language_nobody_speaks_is_refused_with_those_there_are() -> None:
    from app import create_app

    with pytest.raises(SettingsError, match="SUPERTONIC_LANGUAGE='de': expected one of en, ko"):
        create_app(Settings(language="de"))
