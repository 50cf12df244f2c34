"""``compress quantize --explain``: what int8 costs each layer and each group of nodes, in accuracy and in time, as tables and a picture.

For each layer the signal to quantization noise ratio (``noise``), with everything in int8 that the settings say. For each group of nodes,
taken to int8 alone: how far the logits move, how many answers change, and the latency, measured in turns with the float32 graph. So the
one table says where the noise arises, the other which groups to leave out. Seen are validation images; nothing is chosen by it.
"""

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.project import Made, Project, data_identity, run_stage, stage_key
from ..benchmarks.statistics import over_launches
from ..cli.tables import table
from ..graphs.node_times import node_times
from ..plots.noise import draw_noise, layer_names
from ..quantization.int8 import StaticConfig, quantize_prepared
from ..quantization.noise import group_costs, layer_noise
from ..quantization.search import SURE, Setting
from ..train.split import stratified_sample
from .latency import INPUTS, in_turns
from .quantize import Maker, QuantizeConfig, calibration_images, nodes_of

STAGE, SEEN = "explain-int8", 1024


def explain_quantization(project: Project, parent: Artifact, config: QuantizeConfig) -> Artifact:
    """Measure what static quantization costs the graph of ``parent``, with the settings of ``config``; for auto all nodes and minmax."""
    settings = {name: getattr(config, name) for name in ("method", "per_channel", "groups", "equalise", "correct_bias", "images", "seed")}
    key = stage_key(STAGE, settings, parent=parent.content, data=data_identity(project))
    setting = Setting(method=config.method, per_channel=config.per_channel, equalise=config.equalise, correct_bias=config.correct_bias)

    def make(folder: Path) -> Made:
        part = project.data.validation
        images = part.images[stratified_sample(part.labels, min(SEEN, len(part.labels)), config.seed)]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            maker = Maker(project, parent.payload, calibration_images(project, config)[1], Path(scratch))
            prepared, static = maker.prepared(setting.equalise), StaticConfig(method=config.method, per_channel=config.per_channel)
            project.console.progress("noise of each layer", 0, 2)
            quantized = quantize_prepared(prepared, static, nodes_of(prepared, config.groups), change=maker.corrector(setting))
            layers = layer_noise(prepared.model, quantized, images)
            project.console.progress("each group of nodes alone", 1, 2)
            costs = group_costs(prepared, static, maker.groups_of, images)
            latencies = _latencies(project, maker, setting, config.seed)
            int8 = maker.static(frozenset(config.groups or maker.groups), setting)
            times = node_times(maker.float32, project.spec.shape), node_times(int8, project.spec.shape)
        result = {
            "images": len(images),
            "setting": str(setting),
            "layers": [
                {"label": label, **_plain(dataclasses.asdict(one)), "microseconds": [of.get(one.name) for of in times]}
                for label, one in zip(layer_names(layers), layers, strict=True)
            ],
            "groups": [
                {"name": name, "nodes": len(maker.groups_of[name]), **_plain(dataclasses.asdict(cost)), "latency": latencies[name]}
                for name, cost in costs.items()
            ],
        }
        (folder / PAYLOAD["noise"]).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "noise.png").write_bytes(draw_noise(layers, f"{project.folder.name}, int8, {setting}", times))
        project.console.progress("explained", 2, 2)
        return {"images": len(images)}, {}

    return run_stage(project, "noise", STAGE, key, settings, parent, None, make)


def _latencies(project: Project, maker: Maker, setting: Setting, seed: int) -> dict[str, dict[str, float]]:
    """Latency with one group alone in int8 as a fraction of float32's, with its 95% interval."""
    generator = np.random.default_rng(seed)
    images = [generator.integers(0, 256, (1, *project.spec.shape), dtype=np.uint8) for _ in range(INPUTS)]
    files = [maker.float32, *(maker.static(frozenset([name]), setting) for name in maker.groups)]
    seconds = in_turns(files, images, SURE, generator)
    found = {}
    for index, name in enumerate(maker.groups, 1):
        interval = over_launches((seconds[:, index] / seconds[:, 0]).tolist())
        assert interval is not None, "there are more rounds than one"
        found[name] = dataclasses.asdict(interval)
    return found


def show_noise(artifact: Artifact, as_json: bool) -> None:
    """Print the two tables and where the picture lies, or everything as one JSON object."""
    result = json.loads(artifact.payload.read_text(encoding="utf-8"))
    click.echo(json.dumps({"artifact": str(artifact.path), **result}, indent=1) if as_json else noise_text(artifact.path, result))


def noise_text(folder: Path, result: dict[str, Any]) -> str:
    """Both tables: layers in the order of the graph, groups from the one that gains most time to the one that loses most."""
    layers = [
        {"layer": one["label"], "kind": one["kind"], "with all before (dB)": _db(one["output_db"]), "its own (dB)": _db(one["own_db"])}
        | {"its weights (dB)": _db(one["weight_db"]), "clipped": "" if one["clipped"] is None else f"{100 * one['clipped']:.3f}%"}
        | {
            f"{what} (us)": "" if time is None else f"{time:.1f}"
            for what, time in zip(("float32", "int8"), one["microseconds"], strict=True)
        }
        for one in result["layers"]
    ]
    groups = [
        {"alone in int8": one["name"], "nodes": str(one["nodes"]), "logits (dB)": _db(one["logits_db"])}
        | {"answers changed": f"{100 * one['changed']:.2f}%"}
        | {"latency": "{value:.3f}x ({low:.3f} to {high:.3f})".format(**one["latency"])}
        for one in sorted(result["groups"], key=lambda one: one["latency"]["value"])
    ]
    told = f"Signal to quantization noise of each layer on {result['images']:,} validation images, all in int8 ({result['setting']}):"
    second = "What each group costs alone, as a fraction of float32's latency; below 1x it gains time:"
    return f"{told}\n\n{table(layers)}\n\n{second}\n\n{table(groups)}\n\npicture   {folder / 'noise.png'}\nartifact  {folder}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: what is exact has no noise, and so no ratio."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
