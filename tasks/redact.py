"""Keeps keys and passwords out of logs and answers, whoever writes the line."""

import re

# A key in a query string, in JSON, or in a header as it may be quoted.
_KEY = re.compile(
    r"""(?ix)
    ( api(?:_|%5f)key (?: (?:=|%3d) ['"]? | \\?['"]\s*[:,]\s*\\?['"]? )
    | \bbearer (?:\s|%20|\+)+
    | x-api-key ['"]? \s*[:=,]\s* ['"]?
    )
    [^\s&'"<>)]+"""
)
# The password in an address. It ends at the last @: there are some with @ and / in them.
_PASSWORD = re.compile(r"(://[^/\s:]*:)(?:(?:(?!://)[^\s'\"<>])+|[^\s/@]+)(?=@)")
_LOGIN = re.compile(r"(?<=://)[^/\s]*@")


def redact(text: str) -> str:
    """The text with every key and password as ``***``."""
    return _PASSWORD.sub(r"\1***", _KEY.sub(r"\1***", text))


def without_login(text: str) -> str:
    """The text with neither user nor password in any address, for what clients see."""
    return _LOGIN.sub("", redact(text))
