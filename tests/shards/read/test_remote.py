"""Remote shard sets, served by a misbehaving loopback server."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli import main
from segdist.core.errors import UserError
from shards.read import remote
from shards.read.batches import TrainBatches
from shards.read.order import SampleOrder
from shards.read.reader import ShardSet
from tests.support.programs import QUIET, TINY_NET, job, run, start, wait_until
from tests.support.sets import tiny_set

pytest.importorskip("aiohttp", reason="NEEDS THE EXTRA remote: reading over the network is not tested")


class Server:
    """Serves a folder; `drop_every` cuts each n-th response in the middle, `shorten_every` ends it early as if
    complete, `spoil` changes a byte of matching files, `endless` appends a gigabyte to them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.drop_every, self.spoil, self.ranges = folder, 0, "", True
        self.shorten_every, self.endless = 0, ""
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                server.requests.append(self.path)
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                path = server.folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                if server.spoil and server.spoil in self.path:
                    content = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted and server.ranges:
                    content = content[int(wanted[1]) : int(wanted[2]) + 1]
                if server.shorten_every and len(server.requests) % server.shorten_every == 0:
                    content = content[:-1]
                if server.endless and server.endless in self.path:
                    self.send_endless(content)
                    return
                self.send_response(206 if wanted and server.ranges else 200)
                self.send_header("Content-Length", str(len(content)))
                if server.ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                if with_body:
                    dropped = server.drop_every and len(server.requests) % server.drop_every == 0
                    self.wfile.write(content[: len(content) // 2] if dropped else content)
                    self.close_connection = True

            def send_endless(self, content: bytes) -> None:
                self.send_response(200)
                self.end_headers()
                with suppress(ConnectionError):
                    self.wfile.write(content)
                    for _ in range(1024):
                        self.wfile.write(bytes(1 << 20))
                        server.sent += 1 << 20

            def log_message(self, *_: object) -> None:
                pass

        self.sent = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/set"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    shutil.copytree(small_set, tmp_path / "www" / "set")
    running = Server(tmp_path / "www")
    yield running
    running.close()


def read(shard_set: ShardSet) -> list[bytes]:
    batches = TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 16, 0))
    return [batch.images.numpy().tobytes() + batch.masks.numpy().tobytes() for batch in batches.batches(0)]


def test_a_set_over_http_gives_the_local_batches(server: Server, small_set: Path, tmp_path: Path) -> None:
    assert read(ShardSet(server.url, cache=tmp_path / "cache")) == read(ShardSet(small_set))


@pytest.mark.parametrize("part", [5000, 1 << 20])
def test_dropped_connections_cost_only_time(
    server: Server, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(remote, "PART", part)
    server.drop_every = 3
    assert read(ShardSet(server.url, cache=tmp_path / "cache")) == read(ShardSet(small_set))


def test_a_server_without_range_support_works(
    server: Server, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART", 50_000)
    server.ranges = False
    assert read(ShardSet(server.url, cache=tmp_path / "cache")) == read(ShardSet(small_set))


def test_responses_that_end_early_without_an_error_are_requested_again(
    server: Server, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART", 20_000)
    shard_set = ShardSet(server.url, cache=tmp_path / "cache")
    server.shorten_every = 3
    assert read(shard_set) == read(ShardSet(small_set))


def test_an_endless_response_does_not_fill_memory(
    server: Server, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.endless, server.ranges = ".tar", False
    assert read(ShardSet(server.url, cache=tmp_path / "cache")) == read(ShardSet(small_set))
    server.endless, server.sent = "manifest", 0
    monkeypatch.setattr(remote, "MANIFEST_LIMIT", 1 << 20)
    with pytest.raises(UserError, match=r"manifest\.json: more than 1 MB"):
        ShardSet(server.url, cache=tmp_path / "other cache")
    assert server.sent < 64 << 20


def test_cached_files_are_not_fetched_again(server: Server, tmp_path: Path) -> None:
    first = read(ShardSet(server.url, cache=tmp_path / "cache"))
    server.requests.clear()
    assert read(ShardSet(server.url, cache=tmp_path / "cache")) == first
    assert server.requests == ["/set/manifest.json"]


def test_only_shards_in_use_are_fetched(server: Server, tmp_path: Path) -> None:
    shard_set = ShardSet(server.url, cache=tmp_path / "cache")
    shard_set.read("train", np.array([3]), np.array([0]))
    assert {path for path in server.requests if path.endswith(".tar")} == {"/set/train-00003.tar"}


def test_a_damaged_cache_is_repaired(server: Server, small_set: Path, tmp_path: Path) -> None:
    shard_set = ShardSet(server.url, cache=tmp_path / "cache")
    read(shard_set)
    tar = shard_set.folder / "train-00000.tar"
    content = bytearray(tar.read_bytes())
    content[2000] ^= 1
    tar.write_bytes(content)
    assert read(ShardSet(server.url, cache=tmp_path / "cache")) == read(ShardSet(small_set))


def test_damage_on_the_server_is_named_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.spoil = "train-00002.tar"
    shard_set = ShardSet(server.url, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"train-00002\.tar: arrives damaged"):
        read(shard_set)
    assert not (shard_set.folder / "train-00002.tar").exists()


def test_a_missing_file_is_named_at_once(server: Server, tmp_path: Path) -> None:
    (server.folder / "set" / "train-00001.tar").unlink()
    with pytest.raises(UserError, match=r"train-00001\.tar: no such file"):
        read(ShardSet(server.url, cache=tmp_path / "cache"))


def test_wrong_urls_and_dead_servers_are_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is this the URL of a finished shard set"):
        ShardSet(f"{server.url}/nothing", cache=tmp_path / "cache")
    server.close()
    with pytest.raises(UserError, match="can't be fetched after 6 attempts"):
        ShardSet(server.url, cache=tmp_path / "cache")


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be opened"):
        ShardSet("carrier-pigeon://coop/set", cache=tmp_path)


def test_ranks_starting_together_fetch_each_file_once(server: Server, tmp_path: Path) -> None:
    sets = [ShardSet(server.url, cache=tmp_path / "cache") for _ in range(4)]
    server.requests.clear()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, sets))
    assert all(result == results[0] for result in results)
    tars = [path for path in server.requests if path.endswith(".tar")]
    assert len(tars) == len(set(tars))


def test_a_remote_set_can_be_inspected_and_verified(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGDIST_CACHE", str(tmp_path / "cache"))
    server.drop_every = 3
    assert main(["shards", "inspect", server.url, "--out", str(tmp_path / "sheet.png")]) == 0
    assert "patches in 8 shards" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").exists()
    assert main(["shards", "verify", server.url]) == 0
    shutil.rmtree(tmp_path / "cache")
    server.spoil = "val-00000.tar"
    assert main(["shards", "verify", server.url]) == 2
    assert "val-00000.tar: arrives damaged" in capsys.readouterr().err


def test_other_protocols_use_fsspec(small_set: Path, tmp_path: Path, fresh_set: Callable[..., Path]) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in small_set.glob("*.*"):
        files.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    assert read(ShardSet("memory://bucket/set", cache=tmp_path / "cache")) == read(ShardSet(small_set))


@pytest.mark.slow
def test_loading_from_a_slow_server_obeys_signals_and_says_what_it_waits_for(tmp_path: Path) -> None:
    """If a server sends one byte per second, SIGTERM ends training within seconds, with a checkpoint."""
    folder = tiny_set(tmp_path / "served")
    slow = threading.Event()

    class Trickling(SimpleHTTPRequestHandler):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            if slow.is_set() and self.path.endswith(".tar"):
                for _ in range(600):
                    outputfile.write(source.read(1))
                    outputfile.flush()
                    time.sleep(1)
            else:
                super().copyfile(source, outputfile)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Trickling, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    slow.set()
    settings = ["-f", url, "--name", "run", "--steps", "5", "--no-check", *TINY_NET, *QUIET]
    log = tmp_path / "log"
    process = start(job("train", settings), tmp_path, log, SEGDIST_CACHE=str(tmp_path / "cache"))
    wait_until(lambda: "waiting for http" in log.read_text(), 120)
    process.terminate()
    assert process.wait(timeout=30) == 75
    assert "told to stop while waiting for http" in log.read_text()
    slow.clear()
    run(job("train", settings), tmp_path, SEGDIST_CACHE=str(tmp_path / "cache"))
    server.shutdown()
