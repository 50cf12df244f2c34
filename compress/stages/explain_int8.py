"""``compress quantize --explain``: what int8 costs each layer and each group of nodes, in accuracy and in time, as tables and a picture.

For each layer the signal to quantization noise ratio (``noise``), with everything in int8 that the settings say. For each group of nodes,
taken to int8 alone: how far the logits move, how many answers change, and the latency, measured in turns with the float32 graph. So the
one table says where the noise arises, the other which groups to leave out. Seen are validation images; nothing is chosen by it.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.parts import Metrics
from ..artifacts.payloads import Noise, NoisyGroup, NoisyLayer
from ..artifacts.project import Project, data_identity, making, stage_key
from ..artifacts.records import write_record
from ..benchmarks.statistics import Interval
from ..quantization.records import Setting
from ..quantization.search import SURE
from .quantize import QuantizeConfig

if TYPE_CHECKING:
    from ..quantization.noise import GroupCost, LayerNoise
    from .int8_files import Maker

STAGE, SEEN = "explain-int8", 1024


def explain_quantization(project: Project, parent: Artifact, config: QuantizeConfig) -> Artifact:
    """Measure what static quantization costs the graph of ``parent``, with the settings of ``config``; for auto all nodes and minmax."""
    settings = {name: getattr(config, name) for name in ("method", "per_channel", "groups", "equalise", "correct_bias", "images", "seed")}
    key = stage_key(STAGE, settings, parent=parent.content, data=data_identity(project))
    setting = Setting(method=config.method, per_channel=config.per_channel, equalise=config.equalise, correct_bias=config.correct_bias)

    with making(project, "noise", STAGE, key, settings, parent) as new:
        if not new.wanted:
            return new.artifact
        from ..graphs.node_times import node_times
        from ..plots.noise import draw_noise, layer_names
        from ..quantization.int8 import quantize_prepared
        from ..quantization.noise import group_costs, layer_noise
        from .int8_files import Maker, calibration_images, nodes_of

        images = project.data.validation.sample(SEEN, config.seed).images
        with tempfile.TemporaryDirectory(dir=new.folder) as scratch:
            maker = Maker(project, parent.payload, calibration_images(project, config)[1], Path(scratch))
            prepared = maker.prepared(setting.equalise)
            project.console.progress("noise of each layer", 0, 2)
            quantized = quantize_prepared(prepared, setting, nodes_of(prepared, config.groups))
            layers = layer_noise(prepared.model, quantized, images)
            project.console.progress("each group of nodes alone", 1, 2)
            costs = group_costs(prepared, replace(setting, correct_bias=False), maker.groups_of, images)
            latencies = _latencies(project, maker, setting, config.seed)
            int8 = maker.static(frozenset(config.groups or maker.groups), setting)
            times = node_times(maker.float32, project.spec.shape), node_times(int8, project.spec.shape)
        noise = Noise(
            images=len(images),
            setting=str(setting),
            layers=tuple(
                NoisyLayer(label=label, **_finite(one), microseconds=(times[0].get(one.name), times[1].get(one.name)))
                for label, one in zip(layer_names(layers), layers, strict=True)
            ),
            groups=tuple(
                NoisyGroup(name=name, nodes=len(maker.groups_of[name]), **_finite(cost), latency=latencies[name])
                for name, cost in costs.items()
            ),
        )
        write_record(new.folder / PAYLOAD["noise"], noise)
        (new.folder / "noise.png").write_bytes(draw_noise(layers, f"{project.folder.name}, int8, {setting}", times))
        project.console.progress("explained", 2, 2)
        new.metrics = Metrics(images=len(images))
    return new.artifact


def _latencies(project: Project, maker: Maker, setting: Setting, seed: int) -> dict[str, Interval]:
    """Latency with one group alone in int8 as a fraction of float32's, with its 95% interval."""
    from ..artifacts.cost import in_turns, random_images, ratios_to_first

    generator = np.random.default_rng(seed)
    images = random_images(project.spec, generator)
    files = [maker.float32, *(maker.static(frozenset([name]), setting) for name in maker.groups)]
    return dict(zip(maker.groups, ratios_to_first(in_turns(files, images, SURE, generator)), strict=True))


def _finite(one: LayerNoise | GroupCost) -> dict[str, Any]:
    """JSON has no infinity: what is exact has no noise, and so no ratio."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in vars(one).items()}
