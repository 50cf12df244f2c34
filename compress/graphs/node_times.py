"""How long each node of a file takes: ONNX Runtime's profile of one thread and one image, put down to the names that the file uses.

ONNX Runtime fuses nodes, and names the result after one of them or after a tensor: "fused fc1" is fc1 and its Relu, "relu_nchwc" the
convolution and Relu that make tensor "relu", "conv_token_7" the int8 form of "conv". The time goes to the layer. What belongs to no node
of the file, such as a change of layout, is called after its operator, in brackets: "(ReorderOutput)".

A profiled call is slower than one that is not, by a microsecond or two per node. Where two convolutions are added, the time of the sum goes
to the first of them, as the profile does not say which of the two computes it.

Refuses: a file that is no valid ONNX graph, or that ONNX Runtime cannot load.

Source: the profile of onnxruntime (onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html).
"""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .file import open_session, read_onnx
from .index import index, maker, named

_ADDED = re.compile(r"^fused |_kernel_time$|_token_\d+|_nchwc")
_WARM_UP = 10  # calls


def node_times(path: Path, image_shape: tuple[int, int, int], *, calls: int = 200) -> dict[str, float]:
    """Microseconds per node and call: the mean of the middle half of the calls, as a few of them meet something else that runs.

    Args:
        path: an ONNX file with one input of images, uint8 or float32.
        image_shape: (C, H, W); the image is black.
        calls: how many are profiled, after some that are not.

    Raises:
        CompressError: for what the module refuses.
    """
    model = read_onnx(path)
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        profile = {"enable_profiling": True, "profile_file_prefix": str(Path(folder) / "profile")}
        session = open_session(model, f'"{path}"', intra_op_num_threads=1, inter_op_num_threads=1, **profile)
        [entry] = session.get_inputs()
        image = np.zeros((1, *image_shape), np.uint8 if entry.type == "tensor(uint8)" else np.float32)
        for _ in range(_WARM_UP + calls):
            session.run(None, {entry.name: image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    durations: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations.setdefault((event["name"], event["args"]["op_name"]), []).append(event["dur"])
    graph = index(model)
    times: dict[str, float] = {}
    for (name, kind), found in durations.items():
        each = len(found) // (_WARM_UP + calls)  # kernels of one name
        kept = np.sort(found[each * _WARM_UP :])
        quarter = len(kept) // 4
        whose = _owner(graph, name, kind)
        times[whose] = times.get(whose, 0.0) + each * float(kept[quarter : len(kept) - quarter].mean())
    return times


def _owner(graph: ir.Graph, name: str, kind: str) -> str:
    """The node of a kernel, or its operator in brackets. By hand: "relu_nchwc", "Conv" is the Conv in front of what makes "relu"."""
    name = _ADDED.sub("", name)
    if name and any(node.name == name for node in graph):
        return name
    node = maker(named(graph).get(name))
    near = [] if node is None else [node]
    for node in near:
        if node.op_type == kind:
            return str(node.name)
        if len(near) < 4:  # Conv, Add, Relu is the longest that is fused
            near.extend(node.predecessors())
    return str(near[0].name) if near else f"({kind})"
