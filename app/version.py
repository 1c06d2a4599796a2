"""Which version of the server this is."""

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    try:
        return version("supertonic-server")
    except PackageNotFoundError:
        return "unknown"
