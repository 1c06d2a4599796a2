"""Bytes to text, in the character sets that texts are written in."""

import codecs

# By Python's names for them. Others have odd uses or take their time.
KNOWN = {
    *("ascii", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"),
    *(f"iso8859-{number}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16)),
    *(f"cp{number}" for number in (437, 850, 852, 949, *range(1250, 1259))),
    *("koi8-r", "koi8-u", "mac-roman", "euc_kr", "euc_jp", "shift_jis", "gb18030", "gbk", "big5"),
}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Undecodable(Exception):
    """Bytes that are not in the character set they should be in, or one that is not known."""


def decode(data: bytes, charset: str = "") -> str:
    """The text in ``data``, in UTF-8 where no ``charset`` is named. A byte order mark counts more.

    Raises:
        Undecodable: with what is wrong and where.
    """
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), "")
    name = _known(marked or charset or "utf-8")
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        raise Undecodable(f"byte {error.start} is not {name.upper()}") from None


def _known(charset: str) -> str:
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        name = ""
    if name not in KNOWN:
        raise Undecodable(f"the character set {charset[:40]!r} is not known here")
    return name
