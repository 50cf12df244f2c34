"""Downloads from a real server on the loopback interface."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from compress.train.download import fetch, file_hash
from compress.train.errors import TrainError

CONTENT = np.random.default_rng(0).integers(0, 256, 1_000_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /file; hangs up after ``breaks`` bytes of a reply; notes the Range header of each request."""

    ranges: list[str | None]
    breaks: int | None = None
    knows_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.knows_ranges else 0
        if self.path != "/file" or start >= len(CONTENT):
            self.send_error(404 if self.path != "/file" else 416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.ranges = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_whole_download_arrives_and_is_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.npz"
    told: list[tuple[str, int, int]] = []
    assert fetch(server.url, target, md5=MD5, progress=lambda *step: told.append(step)) == target
    assert target.read_bytes() == CONTENT
    assert told[-1] == ("file.npz", 1_000_000, 1_000_000)
    assert sorted(told) == told
    fetch(server.url, target, md5=MD5)
    assert server.ranges == [None]
    assert list(target.parent.iterdir()) == [target]


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file.npz"
    server.breaks = 300_000
    with pytest.raises(TrainError, match=r"could not be downloaded \(.*300000 of 1000000 bytes\); run it again to resume, or"):
        fetch(server.url, target, md5=MD5)
    assert not target.exists()
    server.breaks = None
    told: list[tuple[str, int, int]] = []
    fetch(server.url, target, md5=MD5, progress=lambda *step: told.append(step))
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]
    assert told[0][1] > 300_000 and told[-1][1:] == (1_000_000, 1_000_000)


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "file.npz.part").write_bytes(CONTENT[:1000])
    fetch(server.url, tmp_path / "file.npz", md5=MD5)
    assert (tmp_path / "file.npz").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_part_that_is_whole_is_only_renamed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.npz.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "file.npz", md5=MD5)
    assert (tmp_path / "file.npz").read_bytes() == CONTENT
    assert server.ranges == []


def test_a_part_longer_than_the_file_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.npz.part").write_bytes(CONTENT + b"too much")
    fetch(server.url, tmp_path / "file.npz", md5=MD5)
    assert (tmp_path / "file.npz").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000008-", None]


def test_a_wrong_md5_is_told_and_the_download_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=rf"file\.npz came with md5 {MD5}, expected {'0' * 32}, and was removed"):
        fetch(server.url, tmp_path / "file.npz", md5="0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_is_found_by_its_md5_and_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.npz.part").write_bytes(b"x" * 1000)
    with pytest.raises(TrainError, match=r"and was removed; try again"):
        fetch(server.url, tmp_path / "file.npz", md5=MD5)
    fetch(server.url, tmp_path / "file.npz", md5=MD5)
    assert (tmp_path / "file.npz").read_bytes() == CONTENT


def test_a_bad_target_is_refused_by_name_and_left_alone(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file.npz"
    target.write_bytes(b"something of the user's")
    with pytest.raises(TrainError, match=rf"file\.npz has md5 {file_hash(target, 'md5')}, expected {MD5}; remove it to download it anew"):
        fetch(server.url, target, md5=MD5)
    assert target.read_bytes() == b"something of the user's"
    assert server.ranges == []


def test_not_found_and_no_server_say_how_to_get_the_file_by_hand(server: Server, tmp_path: Path) -> None:
    missing = server.url + "s"
    with pytest.raises(TrainError, match=rf"HTTP Error 404: Not Found.* or fetch {missing} by hand and put it at .*file\.npz"):
        fetch(missing, tmp_path / "file.npz", md5=MD5)
    with Server(("127.0.0.1", 0), Handler) as closed:
        url = closed.url
    with pytest.raises(TrainError, match=r"could not be downloaded \(.*refused.* by hand and put it at .*file\.npz"):
        fetch(url, tmp_path / "file.npz", md5=MD5)


def test_a_sha256_decides_as_an_md5_does(server: Server, tmp_path: Path) -> None:
    target, right = tmp_path / "file.tgz", hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(TrainError, match=rf"file\.tgz came with sha256 {right}, expected {'0' * 64}, and was removed"):
        fetch(server.url, target, sha256="0" * 64)
    assert fetch(server.url, target, sha256=right).read_bytes() == CONTENT
    target.write_bytes(b"another")
    with pytest.raises(TrainError, match=rf"has sha256 {hashlib.sha256(b'another').hexdigest()}, expected {right}; remove it"):
        fetch(server.url, target, sha256=right)
