"""The commands that make graphs: export-onnx, quantize."""

from ..api.network import Network
from ..artifacts.artifact import Artifact
from ..artifacts.payloads import Noise, read_payload
from .options import Switch, command
from .tables import payload_summary, show_artifact, shown, table


def noise_text(artifact: Artifact) -> str:
    """Both tables: layers in the order of the graph, groups from the one that gains most time to the one that loses most."""
    folder, result = artifact.path, read_payload(artifact, Noise)
    layers = [
        {"layer": one.label, "kind": one.kind, "with all before (dB)": _db(one.output_db), "its own (dB)": _db(one.own_db)}
        | {"its weights (dB)": _db(one.weight_db), "clipped": "" if one.clipped is None else f"{100 * one.clipped:.3f}%"}
        | {f"{what} (us)": "" if time is None else f"{time:.1f}" for what, time in zip(("float32", "int8"), one.microseconds, strict=True)}
        for one in result.layers
    ]
    groups = [
        {"alone in int8": one.name, "nodes": str(one.nodes), "logits (dB)": _db(one.logits_db)}
        | {"answers changed": f"{100 * one.changed:.2f}%"}
        | {"latency": f"{one.latency.value:.3f}x ({one.latency.low:.3f} to {one.latency.high:.3f})"}
        for one in sorted(result.groups, key=lambda one: one.latency.value)
    ]
    told = f"Signal to quantization noise of each layer on {result.images:,} validation images, all in int8 ({result.setting}):"
    second = "What each group costs alone, as a fraction of float32's latency; below 1x it gains time:"
    return f"{told}\n\n{table(layers)}\n\n{second}\n\n{table(groups)}\n\npicture   {folder / 'noise.png'}\nartifact  {folder}"


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


export_onnx = command(Network.export_onnx, "compress export-onnx --model k49 --out board/k49")(show_artifact)
show_noise = shown(noise_text, payload_summary(Noise))
quantize = command(
    Network.quantize,
    """compress quantize --model k49
          compress quantize --model k49 --explain
          compress quantize --onnx net.onnx --data path/to/folder --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
          compress quantize --model emnist --mode static --method mse --epochs 3""",
    switch=Switch("--explain", "Show what int8 costs each layer, in accuracy and in time; make no file.", Network.explain_int8, show_noise),
)(show_artifact)
