"""What is wrong with the settings, said before any process runs on them.

Each process refuses what it cannot use. `make run` asks here first, so that nothing is started in
vain, and `make doctor` shows what this module prints when it is run: one verdict per line.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from redis.connection import parse_url

from app.fields import check_language
from app.keys import Keyring
from app.lexicons import Lexicons
from app.limits import parse_rules
from app.origins import Origins
from supertonic.doctor import Level, Verdict, fail, ok
from tasks.logs import check_logging
from tasks.places import Place, PlaceAway
from tasks.redact import redact
from tasks.settings import Settings, SettingsError
from tasks.webhooks import Webhooks

MODELS = ("auto", "tiny", "supertonic-2")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
BROKERS = ("redis://", "rediss://", "unix://", "amqp://", "amqps://")


def check_settings(settings: Settings) -> None:
    """
    Raises:
        SettingsError: one process or another would refuse them, but only after its start.
    """
    check_urls(settings)
    check_model(settings)
    keyring = Keyring(settings)
    Origins(settings, keyring)
    parse_rules(settings.rate_limit)
    Webhooks(settings)
    check_language(settings)
    Lexicons(settings)
    check_logging(settings)


def check_urls(settings: Settings) -> None:
    """
    Raises:
        SettingsError: Redis or the broker is named by something that is no URL of one.
    """
    # Neither the value nor what is said of it is shown: they may hold a password.
    try:
        parse_url(settings.redis_url)  # type: ignore[no-untyped-call]
    except ValueError:
        raise SettingsError(
            "SUPERTONIC_REDIS_URL: expected redis://:PASSWORD@HOST:6379/0, rediss:// or unix://; "
            "in the password %2F stands for /, %40 for @ and so on"
        ) from None
    if settings.broker_url and not settings.broker_url.startswith(BROKERS):
        raise SettingsError(f"SUPERTONIC_BROKER_URL: must begin with one of {', '.join(BROKERS)}")


def check_model(settings: Settings) -> None:
    """
    Raises:
        SettingsError: no worker could load such a model, or on such a device.
    """
    if DEVICE.fullmatch(settings.device) is None:
        raise SettingsError(
            f"SUPERTONIC_DEVICE={settings.device!r}: expected auto, cpu, cuda or cuda:N"
        )
    if settings.precision not in PRECISIONS:
        raise SettingsError(
            f"SUPERTONIC_PRECISION={settings.precision!r}: expected one of {', '.join(PRECISIONS)}"
        )
    if settings.model not in MODELS and not (settings.model and Path(settings.model).is_dir()):
        raise SettingsError(
            f"SUPERTONIC_MODEL={settings.model!r}: expected one of {', '.join(MODELS)}, "
            "or a directory that exists"
        )
    # With auto, weights are fetched into it; that must not fill a directory of a misspelt name.
    may_be_made = settings.model == "auto" and settings.model_dir == Settings.model_dir
    is_used = settings.model in ("auto", "supertonic-2")
    if is_used and not may_be_made and not Path(settings.model_dir).is_dir():
        raise SettingsError(
            f"SUPERTONIC_MODEL_DIR={settings.model_dir!r}: there is no such directory; "
            "`make model` makes it and fetches the weights"
        )


def examine() -> Iterator[Verdict]:
    """The settings in the environment, and the places for sound that they name."""
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        yield fail(str(error))
        return
    try:
        check_settings(settings)
        yield ok("the settings are such as the service starts with")
    except SettingsError as error:
        yield fail(str(error))
    yield _data_dir(Path(settings.data_dir).resolve())
    if settings.jobs_url:
        yield _jobs_url(settings.jobs_url)


def _data_dir(path: Path) -> Verdict:
    # The service makes what is missing.
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"supertonic")
    except OSError as error:
        return fail(f"SUPERTONIC_DATA_DIR={path}: {there} cannot be written ({error.strerror})")
    return ok(f"{path} can be written")


def _jobs_url(url: str) -> Verdict:
    try:
        Place(url).check()
    except (SettingsError, PlaceAway) as error:
        return fail(redact(str(error)))
    return ok(redact(f"{url} can be written"))


def main() -> int:
    """Print the verdicts; EX_CONFIG when one of them is a failure."""
    failed = False
    for verdict in examine():
        print(verdict, flush=True)
        failed = failed or verdict.level is Level.FAIL
    return os.EX_CONFIG if failed else 0


if __name__ == "__main__":
    sys.exit(main())
