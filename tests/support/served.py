"""Models whose right answer is known without running them, and ``compress serve`` as a process of its own."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

CLASSES = ("a", "b", "c")
Make = Callable[..., Path]


def write_model(path: Path, *, scale: float = 1.0, order: tuple[int, ...] = (0, 1, 2), channels: int = 1, named: bool = True) -> Path:
    """An ONNX file that takes uint8 (B, C, 4, 4), whose logit k is ``scale`` times pixel number ``order[k]`` of the first channel."""
    weights = np.zeros((16 * channels, 3), np.float32)
    weights[list(order), range(3)] = scale
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    entry = helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", channels, 4, 4])
    leave = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 3])
    graph = helper.make_graph(nodes, "brightest", [entry], [leave], [onnx.numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if named:
        about = {
            "compress.classes": json.dumps(CLASSES),
            "compress.input": json.dumps({"shape": [channels, 4, 4], "mean": [0.0], "std": [1.0]}),
        }
        helper.set_model_props(model, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


class Service:
    """``compress serve`` in a process, at a port of its own."""

    def __init__(self, *arguments: str | Path, python: str | Path = sys.executable, path: Path | None = None) -> None:
        """``path``: where else that Python finds packages."""
        command = [str(python), "-m", "compress", "serve", *map(str, arguments), "--port", "0"]
        command += [] if "--timeout" in arguments else ["--timeout", "60s"]  # machines that are busy with something else
        environment = os.environ | ({"PYTHONPATH": str(path)} if path is not None else {})
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said: list[str] = []
        assert self.process.stderr is not None
        while (line := self.process.stderr.readline()) and " serves " not in f" {line}":
            self.said.append(line)
        self.said.append(line)
        found = re.search(r"http://[^/]*:(\d+)/", line)
        assert found, "".join(self.said)
        self.port = int(found[1])

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def read(self, images: np.ndarray, name: str = "model", query: str = "") -> tuple[int, Any]:
        """What is made of uint8 (N, H, W, C)."""
        path = f"/v1/models/{name}/predict{query}"
        status, _, body = self.ask("POST", path, images.tobytes(), content_type="application/octet-stream")
        return status, json.loads(body)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def workers(self) -> list[int]:
        """The processes that compute."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return [int(one) for one in children.split()]

    def stop(self) -> tuple[int, str]:
        """End it as a service manager does; its exit code, and what it printed last."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=300)
        return self.process.returncode, out


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def lit(*pixels: int, count: int = 1, channels: int = 1) -> np.ndarray:
    """Images uint8 (N, 4, 4, C), black but for these pixels of the first channel, by number."""
    images = np.zeros((count, 16, channels), np.uint8)
    images[:, list(pixels), 0] = 9
    return images.reshape(count, 4, 4, channels)
