"""Every command: the method it calls, examples for its help, and how what comes back is shown."""

import json
from pathlib import Path

import click

from ..api import files as api
from ..api.network import Network
from ..artifacts.payloads import Noise, Sensitivity
from . import views
from .board import board as board
from .completion import completion as completion
from .options import PATH, Switch, command
from .tables import paragraphs, payload_summary, show_artifact, show_outcome, shown, table
from .terminal import tell

run = command(Network.run, "compress run --model k49 --data digits", "compress run --recipe recipe.toml")(show_outcome)
train = command(
    Network.train,
    "compress train --model k49 --data path/to/folder --epochs 12",
    "compress train --model k49 --data path/to/folder --folds 5",
    "compress train --from runs/k49/train/3f9a0c51be27 --recipe stronger.toml",
)(show_artifact)
tune = command(
    Network.tune,
    "compress tune --model emnist --data path/to/folder --trials 40 --epochs 5 --fraction 0.25",
    "compress train --recipe runs/emnist/tune/folder/best.toml",
)(shown(views.tuned_text, views.tuned_summary))
prune = command(
    Network.prune,
    "compress prune --model k49 --sparsity 0.8",
    "compress prune --model k49 --sparsity 0.9 --steps 4",
    "compress prune --model k49 --pattern 2:4",
)(show_artifact)
show_groups = shown(str, lambda groups: groups.summary())
remove_channels = command(
    Network.remove_channels,
    "compress remove-channels --model k49 --max-macs 0.35x",
    "compress remove-channels --model k49 --max-latency 0.5x --bypass auto",
    "compress remove-channels --onnx net.onnx --calibrate path/to/images --max-macs 0.8x --epochs 0",
    "compress remove-channels --model k49 --groups",
    switch=Switch(
        "--groups", "Print which channels go together and what is left whole; remove nothing.", Network.channel_groups, show_groups
    ),
)(show_artifact)
sensitivity = command(
    Network.sensitivity,
    "compress sensitivity --model k49",
    "compress sensitivity --model k49 --granularity weight --sparsity 0.5 --sparsity 0.8",
    "compress sensitivity --model k49 --granularity module",
)(shown(views.sensitivity_text, payload_summary(Sensitivity)))
export_onnx = command(Network.export_onnx, "compress export-onnx --model k49 --out board/k49")(show_artifact)
export_litert = command(
    Network.export_litert,
    "compress export-litert --from runs/k49/quantize/3f9a0c51be27",
    "compress export-litert --onnx net.onnx --data path/to/folder --out phone/net",
)(show_artifact)
export_c = command(
    Network.export_c,
    "compress export-c --from runs/k49/quantize/3f9a0c51be27 --out board/k49",
    "compress export-c --onnx net.onnx --target cortex-m7 --name net",
)(shown(views.c_text, views.c_summary))
show_noise = shown(views.noise_text, payload_summary(Noise))
quantize = command(
    Network.quantize,
    "compress quantize --model k49",
    "compress quantize --model k49 --explain",
    "compress quantize --onnx net.onnx --data path/to/folder --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
    "compress quantize --model emnist --mode static --method mse --epochs 3",
    "compress quantize --model k49 --target cortex-a72",
    switch=Switch("--explain", "Show what int8 costs each layer, in accuracy and in time; make no file.", Network.explain_int8, show_noise),
)(show_artifact)
benchmark = command(
    Network.benchmark,
    "compress benchmark --model k49",
    "compress benchmark old.onnx new.onnx --data path/to/folder",
    "compress benchmark net.onnx",
)(lambda measured, as_json: show_artifact(measured.artifact, as_json))
report = command(Network.report, "compress report --model k49 --max-drop 0.5")(show_outcome)
compare = command(
    api.compare, "compress compare old.json new.json --fail-if-slower 5%", "compress compare old.json new.json --html difference.html"
)(shown(views.changes_text, lambda found: vars(found) | {"fails": found.fails}, holds=lambda found: not found.fails))
throughput = command(
    Network.throughput,
    "compress throughput --model k49 --data digits",
    'compress throughput --variant torch.compile --variant "compress train"',
)(shown(views.throughput_text, list))
predict = command(Network.predict, "compress predict --model k49 --random 16", "compress predict --onnx model.onnx letter.png")(
    shown(views.predictions_text, lambda read: {"grid": read.picture, "predictions": read.images})
)
explain = command(Network.explain, "compress explain --model k49 --index 3 --index 17", "compress explain --model k49 --misread 4")(
    shown(views.explanation_text, views.explanation_summary)
)
verify = command(
    api.verify,
    "compress verify board/k49",
    "compress verify board/c --cc aarch64-linux-gnu-gcc --run 'qemu-aarch64 -L /usr/aarch64-linux-gnu'",
)(shown(views.proof_text, lambda proof: {"folder": proof.folder, "holds": proof.holds, "checks": proof.checks}, lambda proof: proof.holds))

serve = command(
    api.serve,
    "compress serve runs/k49/quantize/3f9a0c51be27",
    "compress serve small=board/k49 large=k49.onnx --port 8000",
    "compress serve board/k49 --host 0.0.0.0 --token-file token.txt",
)(shown(views.served_text, vars))
page = command(
    api.page,
    "compress page k49",
    "compress page fp32=board/k49 int8=runs/k49/quantize/3f9a0c51be27 --out site",
)(shown(views.paged_text, vars))


@click.command()
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, with which editors complete and check them.")
def recipe(schema: bool) -> None:
    """The recipes that come with this toolkit, or what one may say.

    \b
    Example:  compress recipe
              compress recipe --schema > recipe.schema.json
    """
    from ..artifacts.recipe import RECIPES

    if schema:
        tell(json.dumps(api.recipe_schema(), indent=1))
        return
    for path in sorted(RECIPES.glob("*.toml")):
        first = path.read_text(encoding="utf-8").splitlines()
        tell(f"{path.stem.ljust(18)}{next((line[2:] for line in first if line.startswith('# ')), '')}")


@click.command()
@click.option("--cache", type=PATH, default="data", metavar="FOLDER", help="Folder in which they lie.  [default: data]")
@click.option("--prune", is_flag=True, help="Remove them; what is needed again is decoded again.")
def data(cache: Path, prune: bool) -> None:
    """The pictures that are kept decoded, and what room they take.

    \b
    Example:  compress data
              compress data --prune
    """
    from ..artifacts.context import Context
    from ..benchmarks.formats import size

    kept = Context(cache=cache).kept
    entries = (kept.prune() if prune else kept.entries()).values()
    rows = [
        {"pictures of": one.of, "images": f"{one.images:,}", "shape": "x".join(map(str, one.shape)), "size": size(one.bytes)}
        for one in entries
    ]
    told = f"{size(sum(one.bytes for one in entries))} in {kept.folder}"
    tell(paragraphs(table(rows) if rows else "", f"removed: {told}" if prune else f"{told}; compress data --prune removes them"))
