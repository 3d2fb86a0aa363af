"""A tar as a stream: its members one after another, read once from the beginning to the end.

Python's tarfile mistakes a damaged header for the end of a tar and holds headers of any length in memory; so tarfile
parses headers, but this module locates them. Invariants: every byte of a tar is in a returned member, or behind a
DamagedTarError; only one header is in memory, and a content only when it is read.
"""

import tarfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from data_pipelines.inputs.files import UnreachableError
from janus_dist.data.sample import TAR_BLOCK
from janus_dist.errors import RecordError

LONGEST_HEADER_BYTES = 2**16
"""Most bytes of a header with a long name or other attributes of a member."""
SKIP_BYTES = 2**20
"""Bytes that are read at once where they are skipped."""
LONG_NAME = tarfile.GNUTYPE_LONGNAME
ATTRIBUTES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
IGNORED = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
KINDS = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class DamagedTarError(RecordError):
    """A tar that cannot be read any further; `inside` is the damaged member, empty between members."""

    def __init__(self, what: str, inside: str = ""):
        super().__init__("damaged", f"{what}{f' inside {inside}' if inside else ''}")
        self.inside = inside


@dataclass(frozen=True)
class Member:
    """A member as its header describes it."""

    name: str
    """Name as stored; bytes that are not UTF-8 are surrogates in it."""
    size: int
    """Bytes of its content."""
    kind: str
    """`file`, `folder`, or another kind in words."""


class TarStream:
    """The members of a tar; the content of each can be read before `next` is called again."""

    def __init__(self, stream: BinaryIO):
        self._stream, self.offset = stream, 0  # bytes read
        self._member, self._unread = "", 0

    def next(self) -> Member | None:
        """Return the next member, None at the end; raises DamagedTarError where the tar is damaged."""
        self._skip()
        name: str | None = None
        size: int | None = None
        while True:
            begin, self._member = self.offset, ""
            block = self._take(TAR_BLOCK)
            if not any(block):
                return self._check_end()
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.TarError, ValueError) as error:
                raise DamagedTarError(f"no member begins at byte {begin}: {error}") from error
            if info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
                raise DamagedTarError(f"the member at byte {begin} is sparse, or has no size")
            if info.type in (LONG_NAME, *ATTRIBUTES, *IGNORED):
                content = self._header_content(info.size, begin)
                if info.type == LONG_NAME:
                    name = content.rstrip(b"\0").decode(errors="surrogateescape")
                elif info.type in ATTRIBUTES:
                    name, size = self._attributes(content, begin, name, size)
                continue
            self._member = name or info.name
            has_content = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
            size = (info.size if size is None else size) if has_content else 0
            self._unread = _padded(size)
            kind = "file" if info.isreg() else "folder" if info.isdir() else KINDS.get(info.type, "of no known type")
            return Member(self._member, size, kind)

    def read(self, member: Member) -> bytes:
        """Return the content of the latest member; raises DamagedTarError when it is incomplete."""
        self._unread -= member.size
        return self._take(member.size)

    def _skip(self) -> None:
        while self._unread:
            self._unread -= len(self._take(min(self._unread, SKIP_BYTES)))

    def _take(self, count: int) -> bytes:
        """Read `count` bytes; raises DamagedTarError when there are fewer."""
        try:
            content = self._stream.read(count)
        except UnreachableError:
            raise
        except (OSError, EOFError, zlib.error) as error:  # of gzip
            raise DamagedTarError(f"{error}, behind byte {self.offset}", self._member) from error
        self.offset += len(content)
        if len(content) < count:
            between = "" if self._member else " without the block of zeros that ends one"
            raise DamagedTarError(f"the tar ends at byte {self.offset}{between}", self._member)
        return content

    def _header_content(self, size: int, begin: int) -> bytes:
        if size > LONGEST_HEADER_BYTES:
            raise DamagedTarError(
                f"the header at byte {begin} has {size} bytes, at most {LONGEST_HEADER_BYTES} are read"
            )
        return self._take(_padded(size))[:size]

    def _attributes(
        self, content: bytes, begin: int, name: str | None, size: int | None
    ) -> tuple[str | None, int | None]:
        """Return (name, size) after the records `LENGTH KEY=VALUE` of POSIX's extended headers."""
        try:
            while content:
                length = int(content.partition(b" ")[0])
                key, _, value = content[:length].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
                if not 0 < length <= len(content):
                    raise ValueError(f"a record of {length} bytes")
                if key == b"path":
                    name = value.decode(errors="surrogateescape")
                if key == b"size":
                    size = int(value)
                content = content[length:]
            if size is not None and size < 0:
                raise ValueError(f"a size of {size} bytes")
        except ValueError as error:
            raise DamagedTarError(f"no attributes at byte {begin}: {error}") from error
        return name, size

    def _check_end(self) -> None:
        """Raise DamagedTarError when data follow the end: tars that were appended to a tar would be lost."""
        end = self.offset
        while content := self._rest():
            if any(content):
                raise DamagedTarError(f"the tar ends at byte {end}, but more than zeros follow")

    def _rest(self) -> bytes:
        try:
            return self._stream.read(SKIP_BYTES)
        except UnreachableError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            raise DamagedTarError(f"{error}, behind byte {self.offset}") from error


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK) * TAR_BLOCK
