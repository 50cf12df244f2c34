"""Opens an ONNX file in OpenVINO, in float32 where the file is: its own default may be bf16."""

from __future__ import annotations

from typing import Any

import numpy as np

from .inputs import Predict, fitting
from .runtimes import PROBABILITIES, Candidate


def open_file(candidate: Candidate, shape: tuple[int, int, int], threads: int) -> tuple[Predict, Predict | None, bool]:
    """What it gives for images, and its probabilities where it has some."""
    import openvino

    core = openvino.Core()
    model = core.read_model(candidate.path)
    kinds = {"u8": "tensor(uint8)", "f32": "tensor(float)", "f16": "tensor(float16)"}
    inputs = [
        (
            one.get_any_name(),
            [d.get_length() if d.is_static else str(d) for d in one.get_partial_shape()],
            kinds.get(one.get_element_type().get_type_name(), one.get_element_type().get_type_name()),
        )
        for one in model.inputs
    ]
    entry = fitting(inputs, shape, mean=candidate.mean, std=candidate.std)
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    requests: dict[int, Any] = {}

    def request_for(count: int) -> Any:
        # For each batch size one model of fixed shape: OpenVINO's kernels for a free batch are the slower ones.
        if count not in requests:
            model.reshape([count, *shape[1:], shape[0]] if entry.last else [count, *shape])
            requests[count] = core.compile_model(model, "CPU", settings).create_infer_request()
        return requests[count]

    def run(images: np.ndarray, position: int = 0) -> np.ndarray:
        return every(images, position)[0]

    def every(images: np.ndarray, *positions: int) -> tuple[np.ndarray, ...]:
        request = request_for(len(images))
        request.infer([images], share_inputs=True)
        return tuple(request.get_output_tensor(position).data.copy() for position in positions)

    request_for(1)  # so that compiling counts as loading, not as the first call
    if candidate.whole:
        return entry.one_by_one(lambda images: every(images, *range(len(model.outputs)))), None, entry.last
    places = [position for position, one in enumerate(model.outputs) if position and PROBABILITIES in one.get_names()]
    return entry.adapted(run), entry.adapted(lambda images: run(images, places[0])) if places else None, entry.last
