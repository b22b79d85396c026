"""Read a file behind a URL from start to end in bounded memory, whatever the server sends."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from fsspec.implementations.http import HTTPStreamFile

CHUNK = 1 << 20
"""Bytes taken from a connection at once."""


class RemoteFile:
    """A file of an fsspec file system.

    Over HTTP, a single response is read piece by piece, so that a server that ignores ranges, or sends more than
    requested, can't fill the memory. Object stores support ranges and get a request for each piece.
    """

    def __init__(self, files: "AbstractFileSystem", path: str) -> None:
        self._files, self._path = files, path
        protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
        self._is_http = "http" in protocols or "https" in protocols
        self._open: tuple[HTTPStreamFile, int] | None = None
        """An open connection and its position."""

    def read(self, start: int, size: int) -> bytes:
        """The `size` bytes from `start`. After an error, the next call reconnects.

        Raises:
            OSError: fewer bytes arrived.
            Exception: whatever the protocol raises for a lost connection.
        """
        if not self._is_http:
            content: bytes = self._files.cat_file(self._path, start=start, end=start + size)
        else:
            # A timed-out read may still hold its connection, so no one else can use it.
            connection, self._open = self._open, None
            stream = connection[0] if connection and connection[1] == start else self._connect(start)
            content = _at_most(stream, size)
            if len(content) == size:
                self._open = stream, start + size
        if len(content) != size:
            raise OSError(f"received {len(content)} bytes instead of {size}")
        return content

    def read_all(self, most: int) -> bytes:
        """The whole file.

        Raises:
            ValueError: it has more than `most` bytes.
        """
        if self._is_http:
            content = _at_most(self._connect(0), most + 1)
        else:
            content = self._files.cat_file(self._path, start=0, end=most + 1)
        if len(content) > most:
            raise ValueError(f"more than {most / 1e6:.0f} MB")
        return content

    def _connect(self, start: int) -> "HTTPStreamFile":
        # With compression in transit, a few bytes could become many.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        # Without a size, fsspec would request it first.
        stream = self._files.open(self._path, "rb", block_size=0, size=1, headers=headers)
        if stream.r.status != 206:  # the server ignores ranges and sends the file from the start
            skipped = 0
            while skipped < start:
                passed = len(stream.read(min(start - skipped, CHUNK)))
                if not passed:
                    raise OSError(f"the file ends after {skipped} bytes")
                skipped += passed
        return stream


def _at_most(stream: "HTTPStreamFile", size: int) -> bytes:
    """The next `size` bytes, or fewer if the response ends first."""
    content = bytearray()
    while len(content) < size:
        chunk = stream.read(min(size - len(content), CHUNK))
        if not chunk:
            break
        content += chunk
    return bytes(content)
