"""The whole service over its port: answers against the brightest of three pixels, and what must not be lost, held or let in."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from served import CLASSES, Service, lit, wait_for, write_model

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httptools", reason="the extra serve is not installed")
from compress.serve.service import _socket
from compress.serve.settings import ServeConfig

if not Path("/proc/self/task").exists():
    pytest.skip("looks at processes in /proc", allow_module_level=True)

Start = Callable[..., Service]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model" / "model.onnx")


def test_images_are_read_and_models_described(serve: Start, model: Path, tmp_path: Path) -> None:
    service = serve(model, f"other={write_model(tmp_path / 'other.onnx', order=(2, 1, 0))}")
    status, found = service.read(np.concatenate([lit(0), lit(2), lit(1)]))
    assert status == 200 and [one["label"] for one in found["predictions"]] == ["a", "c", "b"]
    assert service.read(lit(0), "other")[1]["predictions"][0]["label"] == "c"
    assert set(found["timing"]) == {"decode_ms", "wait_ms", "compute_ms", "batch"}
    _, _, body = service.ask("GET", "/v1/models")
    first, second = json.loads(body)["models"]
    assert (first["name"], second["name"], first["shape"], tuple(first["classes"])) == ("model", "other", [4, 4, 1], CLASSES)
    assert found["hash"] == first["hash"] != second["hash"] and first["size"] == model.stat().st_size
    assert service.ask("GET", "/readyz")[0] == service.ask("GET", "/healthz")[0] == 200
    figures = service.ask("GET", "/metrics")[2].decode()
    assert 'compress_requests_total{model="model",task="predict",status="200"} 1\n' in figures
    assert 'compress_images_total{model="model"} 3\n' in figures
    assert all(re.fullmatch(r"(# (HELP|TYPE) \w+ .+)|(\w+(\{[^}]*\})? [0-9.e+-]+)", line) for line in figures.splitlines())
    code, out = service.stop()
    assert code == 0 and "2 requests answered, 4 images read, 0 requests refused" in out


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_short_answer_does_not_wait_for_the_last_ones_receipt(host: str) -> None:
    """asyncio switches Nagle's algorithm off where it sees that a socket is TCP's; else each answer of two parts waits 40 ms."""

    async def accepted() -> int:
        taken: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        listening = _socket(ServeConfig(host=host, port=0))
        async with await asyncio.start_server(lambda _, writer: taken.put_nowait(writer), sock=listening):
            _, ours = await asyncio.open_connection(*listening.getsockname()[:2])
            theirs = await taken.get()
            option: int = theirs.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for one in (ours, theirs):
                one.close()
            return option

    assert asyncio.run(accepted()) != 0


def test_head_is_answered_as_get_without_a_body(serve: Start, model: Path) -> None:
    service = serve(model)
    for path in ("/", "/healthz", "/v1/models"):
        (status, headers, body), (_, same, whole) = service.ask("HEAD", path), service.ask("GET", path)
        assert (status, body) == (200, b"") and int(headers["content-length"]) == int(same["content-length"]) == len(whole) > 0
    assert service.ask("HEAD", "/gone")[0] == 404


def test_every_error_is_a_problem_of_one_sentence(serve: Start, model: Path) -> None:
    service = serve(model, "--max-body", "2kB")
    raw, path = {"content_type": "application/octet-stream"}, "/v1/models/model/predict"
    asked = {
        404: service.ask("POST", "/v1/models/gone/predict", b"x" * 16, **raw),
        405: service.ask("GET", path),
        400: service.ask("POST", path, b"x", **raw),
        413: service.ask("POST", path, b"x" * 2001, **raw),
        415: service.ask("POST", path, b"x" * 16, **raw, content_encoding="gzip"),
        421: service.ask("GET", "/", host="example.org"),
        403: service.ask("GET", "/v1/models", origin="https://example.org"),
        422: service.ask("POST", f"{path}?seen=perhaps", b"x" * 16, **raw),
    }
    for status, (found, headers, body) in asked.items():
        told = json.loads(body)
        assert found == told["status"] == status and headers["content-type"] == "application/problem+json"
        assert set(told) == {"type", "title", "status", "detail"} and "\n" not in told["detail"]
        assert headers["x-content-type-options"] == "nosniff" and headers["content-security-policy"].startswith("default-src 'none'")
    # Of a body whose length nobody says it is seen while it comes.
    with service.socket() as one:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        one.sendall(head.encode() + b"400\r\n" + b"x" * 1024 + b"\r\n400\r\n" + b"x" * 1024 + b"\r\n")
        assert b"413" in one.recv(100)
    assert service.read(lit(1))[0] == 200


def test_a_token_and_another_site_are_asked_for_where_they_are_said(serve: Start, model: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef", encoding="utf-8")
    service = serve(model, "--token-file", tmp_path / "token", "--allow-origin", "https://example.org")
    assert [service.ask("GET", path)[0] for path in ("/", "/healthz", "/readyz", "/v1/models", "/metrics", "/openapi.json")] == [
        200
    ] * 3 + [401] * 3
    assert service.ask("GET", "/v1/models", authorization="Bearer 0123456789abcdeX")[0] == 401
    status, headers, _ = service.ask("GET", "/v1/models", authorization="Bearer 0123456789abcdef", origin="https://example.org")
    assert status == 200 and headers["access-control-allow-origin"] == "https://example.org"
    assert service.ask("GET", "/v1/models", authorization="Bearer 0123456789abcdef", origin="https://example.com")[0] == 403
    asks = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,content-type"}
    status, headers, _ = service.ask("OPTIONS", "/v1/models/model/predict", origin="https://example.org", **asks)
    assert (status, headers["access-control-allow-headers"]) == (204, "authorization, content-type")
    assert headers["access-control-allow-origin"] == "https://example.org"
    assert service.ask("OPTIONS", "/v1/models/model/predict", origin="https://example.com", **asks)[0] == 403


def test_a_new_version_takes_over_without_a_lost_request(serve: Start, model: Path, tmp_path: Path) -> None:
    """While four clients ask, the file is replaced by one whose answers are the other way round."""
    service = serve(model)
    found: list[tuple[int, str, str]] = []
    going = True

    def ask() -> None:
        while going:
            status, told = service.read(lit(0))
            found.append((status, told["hash"], told["predictions"][0]["label"]) if status == 200 else (status, "", ""))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for one in clients:
        one.start()
    before = service.read(lit(0))[1]["hash"]
    write_model(tmp_path / "new.onnx", order=(2, 1, 0)).rename(model)
    wait_for(lambda: bool(found) and found[-1][1] not in (before, ""))
    going = False
    for one in clients:
        one.join()
    assert {status for status, _, _ in found} == {200}
    assert {(told, label) for _, told, label in found} == {(before, "a"), (found[-1][1], "c")}
    wait_for(lambda: len(service.workers()) == 1)


def test_a_broken_version_and_a_removed_file_leave_the_old_one_at_work(serve: Start, model: Path) -> None:
    service = serve(model)
    model.write_bytes(b"half a file")

    def about() -> dict[str, str]:
        found: dict[str, str] = json.loads(service.ask("GET", "/v1/models")[2])["models"][0]
        return found

    wait_for(lambda: "no whole ONNX file" in about()["error"])
    assert service.read(lit(1))[1]["predictions"][0]["label"] == "b"
    model.unlink()
    time.sleep(1.5)
    assert service.read(lit(1))[0] == 200
    write_model(model, order=(1, 0, 2))
    wait_for(lambda: not about()["error"] and service.read(lit(1))[1]["predictions"][0]["label"] == "a")


def test_what_a_killed_worker_had_gets_503_and_another_takes_its_place(serve: Start, model: Path) -> None:
    service = serve(model)
    [worker] = service.workers()
    os.kill(worker, signal.SIGSTOP)
    answers: list[int] = []
    clients = [threading.Thread(target=lambda: answers.append(service.read(lit(1))[0])) for _ in range(2)]
    clients[0].start()
    time.sleep(0.5)  # it is with the worker when the second comes
    clients[1].start()
    time.sleep(0.5)
    os.kill(worker, signal.SIGKILL)
    for one in clients:
        one.join()
    assert sorted(answers) == [200, 503]
    wait_for(lambda: service.ask("GET", "/readyz")[0] == 200)
    assert service.workers() != [worker] and 'workers_died_total{model="model"} 1\n' in service.ask("GET", "/metrics")[2].decode()


def test_more_than_may_wait_are_told_when_to_come_again(serve: Start, model: Path) -> None:
    service = serve(model, "--queue", "1", "--timeout", "5s")
    [worker] = service.workers()
    os.kill(worker, signal.SIGSTOP)
    answers: list[tuple[int, str | None]] = []

    def ask() -> None:
        status, headers, _ = service.ask("POST", "/v1/models/model/predict", lit(1).tobytes(), content_type="application/octet-stream")
        answers.append((status, headers.get("retry-after")))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for one in clients:
        one.start()
        time.sleep(0.3)
    with service.socket() as early:  # refused by its head, whatever is in the body, and before it comes
        head = b"POST /v1/models/model/explain HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\n"
        early.sendall(head)
        assert early.recv(1000).startswith(b"HTTP/1.1 429 ")
    os.kill(worker, signal.SIGCONT)
    for one in clients:
        one.join()
    assert sorted(status for status, _ in answers) == [200, 200, 429, 429]
    assert all(later is not None and int(later) >= 1 for status, later in answers if status == 429)
    figures = service.ask("GET", "/metrics")[2].decode()
    assert all(f'{{model="model",task="{task}",status="429"}} {count}\n' in figures for task, count in (("predict", 2), ("explain", 1)))


def test_what_was_accepted_is_answered_when_it_is_told_to_end(serve: Start, model: Path) -> None:
    service = serve(model)
    [worker] = service.workers()
    os.kill(worker, signal.SIGSTOP)
    answers: list[int] = []
    clients = [threading.Thread(target=lambda: answers.append(service.read(lit(1))[0])) for _ in range(5)]
    for one in clients:
        one.start()
    time.sleep(0.7)
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(OSError):
        service.socket().close()
    os.kill(worker, signal.SIGCONT)
    for one in clients:
        one.join()
    assert answers == [200] * 5 and service.process.wait(30) == 0
    wait_for(lambda: not Path(f"/proc/{worker}").exists())


def test_slow_and_half_closed_connections(serve: Start, model: Path) -> None:
    service = serve(model, "--timeout", "1s")
    head = (
        b"POST /v1/models/model/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: 16\r\n\r\n"
    )
    with service.socket() as slow, service.socket() as half:
        slow.sendall(head + b"12345")
        half.sendall(head + lit(2).tobytes())
        half.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(half)
        answer.begin()
        assert answer.status == 200 and json.loads(answer.read())["predictions"][0]["label"] == "c"
        assert b" 408 " in slow.recv(100)
    assert service.read(lit(1))[0] == 200


def test_it_is_described_with_examples(serve: Start, model: Path) -> None:
    service = serve(model)
    about = json.loads(service.ask("GET", "/openapi.json")[2])
    predict = about["paths"]["/v1/models/{name}/predict"]["post"]
    assert set(predict["requestBody"]["content"]) >= {"image/png", "application/octet-stream", "multipart/form-data"}
    assert {"200", "400", "404", "413", "415", "429", "503"} <= set(predict["responses"])
    assert "application/problem+json" in predict["responses"]["429"]["content"]
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(about)))
    assert "Problem" in names and names <= set(about["components"]["schemas"])
    [example] = about["components"]["schemas"]["Predictions"]["examples"]
    told = {name for name, one in service.read(lit(1))[1]["predictions"][0].items() if one is not None}
    assert set(example["predictions"][0]) == told and "curl" in predict["description"]


def test_what_cannot_be_served_is_said_in_one_line(run: Callable[..., tuple[int, str, str]], model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    shutil.copy(model, tmp_path / "again.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, told in (
            ((), "name at least one"),
            ((str(tmp_path / "broken.onnx"), "--port", "0"), "no whole ONNX file"),
            ((str(model), "--port", port), f"port (={port}): Address already in use"),
            ((str(model), "--queue", "0"), "queue (=0) must lie in 1"),
        ):
            code, _, err = run("serve", *arguments)
            assert code == 2 and err.count("\n") == 1 and told in err, err
