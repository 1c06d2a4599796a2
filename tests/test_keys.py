"""Keys as the server knows them: hashed, named, and revoked by a line less in a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.keys import Keyring, digest_of, new_key, parse_key
from tasks.settings import Settings, SettingsError
from tests.stack import ROOT, Stack, wait_for
from tests.test_access import ask, bearer

ANNA, BERT = new_key(), new_key()


def line(name: str, key: str) -> str:
    return f"{name}:sha256:{digest_of(key)}"


def run_keys(*arguments: str, stdin: str = "") -> str:
    command = [sys.executable, "-m", "app", "keys", *arguments]
    return subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=True
    ).stdout


def test_a_new_key_fits_the_line_printed_with_it() -> None:
    shown = run_keys("new", "anna").splitlines()
    key, stored = (text.rpartition(" ")[2] for text in shown)
    keyring = Keyring(Settings(api_keys=stored))
    assert keyring.find(key).name == "anna"  # type: ignore[union-attr]
    assert keyring.find(stored) is None, "who reads the line cannot use it"
    assert len(key) > 40 and key != run_keys("new").splitlines()[0].rpartition(" ")[2]


def test_a_key_people_have_can_be_hashed_and_keeps_its_jobs() -> None:
    stored = run_keys("hash", "old", stdin="hunter2\n").strip().rpartition(" ")[2]
    before, after = Keyring(Settings(api_keys="hunter2")), Keyring(Settings(api_keys=stored))
    # The first 16 digits are how jobs made by earlier versions remember their owner.
    digest = "f52fbd32b2b3b86ff88ef6c490628285f482af15ddcb29541f94bcf526a3f6c7"
    for keyring in (before, after):
        assert keyring.find("hunter2").fingerprint == digest[:16]  # type: ignore[union-attr]
    assert before.plain() == ["SUPERTONIC_API_KEYS"] and after.plain() == []


@pytest.mark.parametrize("blank", [{"api_keys": " , "}, {"admin_key": " "}])
def test_a_setting_that_holds_no_key_does_not_open_the_server(blank: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="leave it empty"):
        Keyring(Settings(**blank))


def test_64_hex_digits_are_a_plain_key_unless_they_say_otherwise() -> None:
    digits = digest_of("x")
    assert parse_key(digits).is_plain and parse_key(digits).digest == digest_of(digits)
    assert parse_key(f"anna:sha256:{digits}").digest == digits


@pytest.mark.parametrize("entry", ["anna:sha256:12", "a b:sha256:" + "0" * 64, ":sha256:0"])
def test_a_hash_that_cannot_be_one_is_refused_without_repeating_it(entry: str) -> None:
    with pytest.raises(SettingsError, match="SUPERTONIC_API_KEYS: key 2: expected NAME") as error:
        Keyring(Settings(api_keys=f"good, {entry}"))
    assert entry.rpartition(":")[2] not in str(error.value).partition("expected")[0]


def test_the_admin_key_may_be_hashed_and_is_no_api_key() -> None:
    keyring = Keyring(Settings(api_keys=line("anna", ANNA), admin_key=line("admin", BERT)))
    assert keyring.is_admin(BERT) and not keyring.is_admin(ANNA)
    assert keyring.find(BERT) is None and keyring.has_admin


def write(path: Path, *lines: str) -> None:
    """As an editor does: a new file in the old one's place."""
    path.with_suffix(".new").write_text("\n".join(lines) + "\n")
    os.replace(path.with_suffix(".new"), path)


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write(path, "# who may speak", line("anna", ANNA) + "  # the phone", "", line("bert", BERT))
    keyring = Keyring(Settings(api_keys_file=str(path)))
    assert keyring.find(ANNA) and keyring.find(BERT)
    write(path, line("bert", BERT))
    assert keyring.find(ANNA) is None and keyring.find(BERT)
    assert not keyring.knows(digest_of(ANNA)[:16])


def test_a_bad_line_stops_the_start_but_later_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write(path, line("anna", ANNA), "bert:" + BERT)
    with pytest.raises(SettingsError, match="line 2 is not NAME:sha256") as error:
        Keyring(Settings(api_keys_file=str(path)))
    assert BERT not in str(error.value)
    write(path, line("anna", ANNA))
    keyring = Keyring(Settings(api_keys_file=str(path)))
    write(path, "bert:" + BERT, line("bert", BERT))
    assert keyring.find(ANNA) is None and keyring.find(BERT)


def test_a_file_that_is_away_keeps_its_last_keys_and_an_empty_one_has_none(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(SettingsError, match="SUPERTONIC_API_KEYS_FILE: cannot be read"):
        Keyring(Settings(api_keys_file=str(path)))
    write(path, line("anna", ANNA))
    keyring = Keyring(Settings(api_keys_file=str(path)))
    path.unlink()
    assert keyring.find(ANNA)
    path.touch()
    assert keyring.find(ANNA) is None and keyring.are_needed, "nobody, not everybody"


def test_a_revoked_key_is_refused_by_the_running_server(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write(path, line("anna", ANNA), line("bert", BERT))
    stack.env["SUPERTONIC_API_KEYS_FILE"] = str(path)
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    assert ask(stack, "GET", "/jobs", **bearer(ANNA)).status_code == 200
    write(path, line("bert", BERT))
    for _ in range(10):  # whichever process answers
        assert ask(stack, "GET", "/jobs", **bearer(ANNA)).status_code == 401
        assert ask(stack, "GET", "/jobs", **bearer(BERT)).status_code == 200
