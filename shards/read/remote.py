"""Shard sets behind a URL (https, s3, gs, …): files are fetched when first needed, verified, and cached.

The cache folder is named after the set's fingerprint, so if the set behind a URL changes, its files never mix with
cached ones. A completely fetched folder is an ordinary local set. Needs the extra `remote` (fsspec, aiohttp), and for
some protocols an fsspec backend (s3fs for s3).
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.core.paths import MANIFEST
from segdist.core.terminal import Progress
from segdist.core.waiting import Result, WaitEnded, patiently
from shards.manifest import Manifest, parse_manifest, write_manifest
from shards.read.remote_file import RemoteFile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PART = 8 << 20
"""Bytes per request, and so the most that a dropped connection costs."""
PART_LIMIT = 300.0
"""Seconds per request: below 28 kB/s, training on a remote set isn't feasible."""
MANIFEST_LIMIT = 256 << 20
"""Maximum bytes; the manifest for 10⁸ patches has 16 MB."""
ATTEMPTS = 6
"""Consecutive attempts without receiving a byte."""
PAUSE = 0.5
"""Seconds before the second attempt; doubled before each further one."""


def is_url(name: str | Path) -> bool:
    """True if `name` is a URL."""
    return "://" in str(name)


def default_cache() -> Path:
    """$SEGDIST_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SEGDIST_CACHE") or Path(base) / "segdist")


class RemoteSet:
    """A shard set behind a URL and its cache folder."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        """Fetches the manifest. Raises UserError if that fails."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise UserError(f"{url}: reading over the network needs an extra: pip install 'segdist[remote]'") from None
        self.url = url.rstrip("/")
        try:
            self._files, self._base = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{url}: can't be opened: {error}") from None
        manifest = RemoteFile(self._files, f"{self._base}/{MANIFEST}")
        content = self._retry(f"{self.url}/{MANIFEST}", lambda: manifest.read_all(MANIFEST_LIMIT))
        self.manifest: Manifest = parse_manifest(content, f"{self.url}/{MANIFEST}")
        self.folder = (cache or default_cache()) / self.manifest.fingerprint[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_manifest(self.folder, self.manifest)

    def fetch(self, name: str, sha256: str, size: int | None = None, most: int = 0) -> Path:
        """The cached file `name`, fetched now unless an intact copy exists. Safe to call from several processes.

        `size` is the size given by the manifest; without it, the server's size is used, up to `most`.

        Raises:
            UserError: it can't be fetched, or arrives damaged twice.
        """
        path = self.folder / name
        with _lock(self.folder / f".{name}.lock"):
            for _ in range(2):
                if path.exists() and _sha256(path) == sha256:
                    return path
                self._download(name, path, size, most)
        if _sha256(path) == sha256:
            return path
        path.unlink()
        raise UserError(
            f"{self.url}/{name}: arrives damaged (wrong checksum); repair it on the server (`segdist shards verify`)"
        )

    def _download(self, name: str, path: Path, size: int | None, most: int) -> None:
        """Download in parts, so that a dropped connection loses one part, not the whole file."""
        url, remote = f"{self.url}/{name}", f"{self._base}/{name}"
        total = size if size is not None else self._retry(url, lambda: self._files.size(remote))
        if not isinstance(total, int) or not 0 <= total <= (most if size is None else total):
            raise UserError(f"{url}: {total} bytes, more than the limit of {most}; repair the set on the server")
        if total > (free := shutil.disk_usage(path.parent).free):
            raise UserError(
                f"{url}: {total / 1e6:.0f} MB, but {path.parent} has only {free / 1e6:.0f} MB left: make room, or set "
                "SEGDIST_CACHE to another folder"
            )
        source = RemoteFile(self._files, remote)
        with whole_file(path) as file:
            for start in range(0, total, PART):
                file.write(self._retry(url, partial(source.read, start, min(PART, total - start))))

    def _retry(self, url: str, action: Callable[[], Result]) -> Result:
        for attempt in range(ATTEMPTS):
            try:
                return patiently(action, url, PART_LIMIT)
            except WaitEnded:
                raise
            except ValueError as error:
                raise UserError(f"{url}: {error}; is this the URL of a finished shard set's folder?") from None
            except FileNotFoundError:
                raise UserError(f"{url}: no such file; is this the URL of a finished shard set's folder?") from None
            # Every protocol has its own exceptions for a lost connection; other errors fail again and are shown.
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            time.sleep(PAUSE * 2**attempt)
        raise UserError(f"{url}: can't be fetched after {ATTEMPTS} attempts ({problem}); check the network and the URL")


def fetched_whole(url: str, cache: Path | None = None) -> Path:
    """The cache folder of the set behind `url`, with all files fetched and verified.

    Raises:
        UserError: a file can't be fetched, or arrives damaged.
    """
    remote = RemoteSet(url, cache)
    shards = remote.manifest.shards
    with Progress(f"fetching {url}", total=sum(shard.bytes for shard in shards) / 1e6, unit="MB") as progress:
        for shard in shards:
            remote.fetch(shard.file, shard.sha256, shard.bytes)
            remote.fetch(shard.index_file, shard.index_sha256, most=shard.bytes)
            progress.advance(shard.bytes / 1e6)
    return remote.folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Admit one process (or thread) of this machine at a time. Without file locks (Windows), several may fetch the same
    file: each writes its own copy, and the last one is renamed into place."""
    with path.open("w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
