"""``python -m app keys new`` and ``keys hash``: API keys, and what the server keeps of them."""

import argparse
import getpass
import sys

from app.keys import HASHED, digest_of, new_key


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m app")
    keys = parser.add_subparsers(required=True).add_parser("keys", help="make API keys")
    commands = keys.add_subparsers(dest="command", required=True)
    for command, help_text in (
        ("new", "a fresh key, and the line that stands for it on the server"),
        ("hash", "the line for a key you have; it is read without being shown"),
    ):
        added = commands.add_parser(command, help=help_text)
        added.add_argument("name", nargs="?", default="key", help="whose it is, for yourself")
    arguments = parser.parse_args()
    if arguments.command == "new":
        key = new_key()
        print(f"key, for its user, shown only now: {key}")
    elif sys.stdin.isatty():
        key = getpass.getpass("key: ")
    else:
        key = sys.stdin.readline().rstrip("\r\n")
    line = f"{arguments.name}:sha256:{digest_of(key)}"
    if not key or HASHED.fullmatch(line) is None:
        parser.error("a name has letters, digits and . _ @ -, and a key is not empty")
    print(f"line for SUPERTONIC_API_KEYS or the keys file: {line}")


if __name__ == "__main__":
    main()
