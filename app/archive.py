"""A ZIP archive from a stranger: what it may cost is known before any of it is unpacked."""

import io
import struct
import zipfile
import zlib

from app.errors import shorten

MAX_MEMBERS = 5000
# Of one document, and of all that are read together.
MAX_MEMBER_BYTES = 8_000_000
MAX_UNPACKED_BYTES = 32_000_000
# How each member begins in the table of contents.
ENTRY = b"PK\x01\x02"
# What zipfile raises of archives that are broken or say what is not true.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class UnreadableBook(Exception):
    """A file that is no book for us; the message says why, and what would be one."""


class Archive:
    """The members of an archive by name. Nothing is written anywhere.

    Raises:
        UnreadableBook: it is broken, or has more members than any book.
    """

    def __init__(self, data: bytes) -> None:
        # Before zipfile reads the table: each entry there is an object of some hundred bytes.
        if data.count(ENTRY) > MAX_MEMBERS:
            raise UnreadableBook(f"holds more than {MAX_MEMBERS} files, which no book needs")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except BROKEN as error:
            raise UnreadableBook(f"is a broken ZIP archive: {shorten(str(error))}") from None
        self._left = MAX_UNPACKED_BYTES

    def __contains__(self, name: str) -> bool:
        return name in self._zip.NameToInfo

    def read(self, name: str, most: int = MAX_MEMBER_BYTES) -> bytes:
        """One member, unpacked, of ``most`` bytes.

        Raises:
            UnreadableBook: it is missing, encrypted, broken or too large.
        """
        info, shown = self._zip.NameToInfo.get(name), shorten(name)
        if info is None:
            raise UnreadableBook(f"names {shown}, which is not in it; the file is incomplete")
        if info.flag_bits & 1:
            raise UnreadableBook(f"is encrypted with a password ({shown})")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnreadableBook(f"packs {shown} in a way that EPUB does not know")
        if info.file_size > most:
            raise UnreadableBook(
                f"holds {shown} of {info.file_size} bytes; at most {most} are read"
            )
        self._left -= info.file_size
        if self._left < 0:
            raise UnreadableBook(f"holds more than {MAX_UNPACKED_BYTES} bytes of text and markup")
        try:
            # No more than the size it claims, whatever is packed there.
            return self._zip.read(info)
        except BROKEN as error:
            raise UnreadableBook(f"is broken at {shown}: {shorten(str(error))}") from None
