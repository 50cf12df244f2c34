"""What ONNX Runtime does with a file: which provider computes which nodes, and how much memory activations need.

Read from a profile of one call of one image, in a session of its own, so the nodes are those after fusion that really run. A provider that
lacks an operator leaves it to the CPU without a word (microsoft/onnxruntime#12229, #24807); here it is named.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .inputs import taken
from .runtimes import Candidate, onnx_session


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Args:
    placement: for each provider the operators it computes and how many nodes of each, ``{"CPUExecutionProvider": {"Conv": 66}}``.
    activation_bytes: inputs and outputs of the node with most of them, weights left out, for one image. A runtime that frees memory as
        early as possible needs at least that much; branches that stay alive in the meantime come on top.
    """

    placement: Mapping[str, Mapping[str, int]]
    activation_bytes: int


def profile_onnx(candidate: Candidate, shape: tuple[int, int, int]) -> Profile:
    """Profile a candidate of ONNX Runtime on one black image of the shape ``(C, H, W)``."""
    with tempfile.TemporaryDirectory() as folder:
        session = onnx_session(candidate, 1, Path(folder, "profile"))
        entry = taken([(one.name, one.shape, one.type) for one in session.get_inputs()])
        session.run(None, {entry.name: entry.fed(np.zeros((1, *shape), np.uint8))})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event["args"] for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    counts = Counter((node["provider"], node["op_name"]) for node in nodes)
    placement: dict[str, dict[str, int]] = {}
    for (provider, operator), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
        placement.setdefault(provider, {})[operator] = count
    return Profile(
        placement=placement,
        activation_bytes=max((int(node.get("activation_size", 0)) + int(node.get("output_size", 0)) for node in nodes), default=0),
    )
