"""The stage ``export``: a network becomes an ONNX file, proved on real images to compute what torch does."""

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from .. import __version__
from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.parts import Metrics
from ..artifacts.project import Project, data_identity, making, stage_key
from ..artifacts.records import plain
from ..artifacts.vectors import TOLERANCE, write_vectors
from ..errors import CompressError


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """ONNX: ``opset`` of the graph, its ``input``, uint8 or float32 in [0, 1], and how many real images prove its parity with torch."""

    opset: Annotated[int, Meta(ge=18, le=23, description="18 is what older runtimes on boards read too")] = 18
    input: Annotated[Literal["uint8", "float32"], Meta(description="uint8 takes the pixels as a camera or file has them")] = "uint8"
    parity_images: Annotated[int, Meta(ge=1, description="1000 is the default")] = 1000


# Float32 sums in another order differ by about 1e-6 of the largest logit; a wrong graph is wrong by far more.
PARITY_TOLERANCE = 1e-3


def export(project: Project, parent: Artifact, config: ExportConfig, out: Path | None = None) -> Artifact:
    """Export ``parent`` to ONNX (images in, logits and probabilities out) and prove on real images that it computes the same."""
    key = stage_key("export", config, parent=parent.content, data=data_identity(project), vectors=TOLERANCE["export"])

    with making(project, "graph", "export", key, config, parent, out) as new:
        if not new.wanted:
            return new.artifact
        import torch

        from ..artifacts.load import Prepare, as_runner, load_network
        from ..graphs.export import export_onnx, parity

        network, prepare = load_network(parent), Prepare(parent.manifest.input)
        images = _real_images(project, config.parity_images)
        target = new.folder / PAYLOAD["graph"]
        example, metadata = torch.from_numpy(images[:2].copy()), graph_metadata(parent, config)
        rewrites = export_onnx(network, target, prepare=prepare, example=example, metadata=metadata, opset=config.opset, image=config.input)
        proof = parity(network, prepare, target, images)
        if max(proof.largest_difference, proof.probabilities if isinstance(proof.probabilities, float) else 0.0) > PARITY_TOLERANCE:
            raise CompressError(
                f"the exported graph does not compute what {parent.path} does: logits differ by {proof.largest_difference:.2g} "
                f"on {proof.images} images, {PARITY_TOLERANCE:g} is allowed; please report this with the network"
            )
        expected = as_runner(torch.nn.Sequential(prepare, network))
        write_vectors(new.folder, expected, project.data.validation.images, TOLERANCE["export"])
        new.metrics, new.facts = Metrics(parity=proof, rewrites=rewrites), parent.manifest.facts
    return new.artifact


def _real_images(project: Project, count: int) -> NDArray[np.uint8]:
    """The first ``count`` validation images, and training images where those are too few; the proof needs no unseen ones."""
    validation, train = project.data.validation.images, project.data.train.images
    images = np.concatenate([validation[:count], train[: max(0, count - len(validation))]])
    if len(images) < count:
        project.console.say(f"export: the data has {len(images)} images for the proof of parity, fewer than parity_images (={count})")
    return images


def graph_of(project: Project, parent: Artifact, config: ExportConfig) -> Artifact:
    """``parent`` itself if it is a graph, else its export."""
    return parent if parent.manifest.kind == "graph" else export(project, parent, config)


def graph_metadata(parent: Artifact, config: ExportConfig) -> dict[str, str]:
    """What an ONNX file says of itself: everything here follows from the inputs, so that the same export gives the same bytes.

    ``compress.image`` is what to feed it. ``compress.input`` is what the graph makes of the image itself: nobody else has to normalise.
    """
    import torch

    about = parent.manifest
    image = {"dtype": config.input, "shape": ["batch", *about.input.shape], "range": [0, 255] if config.input == "uint8" else [0, 1]}
    output = {"dtype": "float32", "shape": ["batch", len(about.classes)]}
    lineage = [{"stage": step.stage, "config": step.config} for step in parent.steps]
    return {
        "compress.version": __version__,
        "compress.versions": json.dumps({"torch": torch.__version__, "onnx": version("onnx"), "opset": config.opset}),
        "compress.classes": json.dumps(about.classes, ensure_ascii=False),
        "compress.image": json.dumps(image),
        "compress.input": json.dumps(dataclasses.asdict(about.input)),
        "compress.outputs": json.dumps({"logits": output, "probabilities": output}),
        "compress.model": json.dumps(plain(about.model)),
        "compress.lineage": json.dumps(lineage),
        "compress.data": json.dumps({"name": about.data.name, "fingerprint": about.data.fingerprint}),
    }
