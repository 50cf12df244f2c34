"""``compress explain``: what networks look at in test images, before and after compression, as a picture and as numbers.

The networks are ``FILES`` (.onnx files, folders of artifacts), or the newest trained one with its newest pruned descendant and int8 graph.
The images are those chosen by number, and the ones that the first network misreads most confidently. How much a compression moved the
gates and the evidence is said by their correlation with the first network's.

Refused: an image that the test images do not have, files that fit neither each other nor the data, more rows than a picture can hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..artifacts.artifact import Artifact, find_artifacts, read_artifact
from ..artifacts.context import Context
from ..artifacts.load import as_runner, load_parts
from ..artifacts.project import TRAINED_STAGES, Project, variant_name
from ..benchmarks.runtimes import Candidate, open_model
from ..errors import CompressError
from ..graphs.evidence.gates import Gate, graph_gates, network_gates
from ..graphs.evidence.occlusion import Run, occlusion, run_batches
from ..graphs.file import open_session, read_onnx
from ..plots.explain import Seen, View, draw_maps, gate_names
from ..train.metrics import softmax
from .benchmark import candidates_of_file
from .import_network import start_of
from .predict import READABLE

MISREAD = 8
MOST_ROWS = 240
# A gate above this at every pixel or channel of the drawn images changes nothing that can be seen.
OPEN = 0.95


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One network: its name, images uint8 (B, C, H, W) to logits, and the same images to probabilities and to its gates."""

    name: str
    run: Run
    sure: Callable[[NDArray[np.uint8]], NDArray[Any]]
    gates: Callable[[NDArray[np.uint8]], list[Gate]]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The images with what each network makes of them, what is to be said about it, a line each, and where the picture lies."""

    seen: tuple[Seen, ...]
    remarks: tuple[str, ...]
    picture: Path


def explain(
    context: Context,
    files: Sequence[Path],
    *,
    index: Sequence[int] = (),
    misread: int | None = None,
    blocks: Literal["some", "all"] = "some",
    out: Path = Path("explain.png"),
) -> Explanation:
    """Choose networks and images, look, and draw into the PNG ``out``.

    ``index``: of test images. ``misread``: how many of the most confidently misread ones to add; 8 if None and there is no ``index``.
    ``blocks``: "all" draws a column for every spatial gate, "some" of each size the one that varies most.
    """
    if misread is not None and not 1 <= misread <= MOST_ROWS:
        raise CompressError(f"misread (={misread}) must lie in 1 to {MOST_ROWS}; 8 is the default")
    project, sources = _sources(context, files)
    test = project.data.test
    if odd := [one for one in index if not 0 <= one < len(test.labels)]:
        raise CompressError(
            f"index (={odd[0]}) must lie in 0 to {len(test.labels) - 1}; {project.data.name} has {len(test.labels)} test images"
        )
    networks = [_open(project, source, name) for source, name in sources]
    chosen, remarks = list(dict.fromkeys(index)), list[str]()
    if misread or not chosen:
        added, remarks = _most_misread(project, networks[0], misread or MISREAD)
        chosen = list(dict.fromkeys([*chosen, *added]))
    if (rows := len(chosen) * len(networks)) > MOST_ROWS:
        raise CompressError(
            f"images (={len(chosen)}) times networks (={len(networks)}) is {rows} rows, at most {MOST_ROWS} fit; choose fewer"
        )
    seen = _look(project, networks, chosen)
    draw_maps(seen, out, every=blocks == "all")
    return Explanation(seen=seen, remarks=(*remarks, *_about_gates(seen)), picture=out)


def _sources(context: Context, files: Sequence[Path]) -> tuple[Project, list[tuple[Artifact | Path, str]]]:
    """The networks to draw, each with a name of its own, and the project that has their data."""
    if files:
        if context.starts_from_parent:
            raise CompressError(f"files (={files[0]}) exclude --from, --weights and --pretrained; leave one of them out")
        artifacts = {path: context.trusted(read_artifact(path)) for path in files if path.is_dir()}
        if odd := [path for path, artifact in artifacts.items() if artifact.manifest.kind not in ("network", "graph")]:
            raise CompressError(f"{odd[0]} holds neither a network nor a graph but {artifacts[odd[0]].manifest.kind}; name others")
        named = {path: variant_name(artifacts[path]) if path in artifacts else candidates_of_file(path)[0].name for path in files}
        project = context.project_of_files(next(iter(artifacts.values()), None), files[0])
        sources: list[tuple[Artifact | Path, str]] = [(artifacts.get(path, path), name) for path, name in named.items()]
    else:
        project, _, root = start_of(context, TRAINED_STAGES if context.start is None else READABLE)
        family = [root]
        for stage in ("prune", "quantize"):
            key = family[-1].manifest.key
            family += [one for one in find_artifacts(project.folder / stage) if key in (step.key for step in one.manifest.lineage)][:1]
        sources = [(context.trusted(one), variant_name(one)) for one in family]
    names = [name for _, name in sources]
    return project, [(source, name if names.count(name) == 1 else f"{name} ({_tag(source)})") for source, name in sources]


def _tag(source: Artifact | Path) -> str:
    return f"{source.manifest.kind} {source.manifest.key[:6]}" if isinstance(source, Artifact) else source.parent.name


def _open(project: Project, source: Artifact | Path, name: str) -> Looked:
    shape, classes = project.data.shape, project.classes
    about = source.manifest if isinstance(source, Artifact) else None
    if about is not None and (about.input.shape, len(about.classes)) != (shape, classes):
        raise CompressError(
            f"{name} takes images of shape {about.input.shape} in {len(about.classes)} classes, {project.data.name} has {shape} "
            f"in {classes}; name networks of one data set"
        )
    if isinstance(source, Artifact) and source.manifest.kind == "network":
        network = nn.Sequential(*load_parts(source))
        run = as_runner(network)

        def gates(images: NDArray[np.uint8]) -> list[Gate]:
            return network_gates(network, torch.from_numpy(images))

        return Looked(name=name, run=run, sure=lambda images: softmax(run(images)), gates=gates)
    path = source.payload if isinstance(source, Artifact) else source
    graph = read_onnx(path)
    open_session(graph, f'"{path}"')  # refuses in one line what ONNX Runtime cannot load
    opened = open_model(Candidate(name=name, path=path), shape, classes, threads=torch.get_num_threads())
    return Looked(name=name, run=opened.predict, sure=opened.sure, gates=lambda images: graph_gates(graph, images))


def _most_misread(project: Project, network: Looked, count: int) -> tuple[list[int], list[str]]:
    """Indices of the test images that ``network`` misreads with the highest probability; if none, of those it is least sure of."""
    test, progress = project.data.test, partial(project.console.progress, f"explain: {network.name} reads the test images")
    probabilities = run_batches(network.sure, test.images, progress)
    answers, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != test.labels)
    if not len(wrong):
        remark = f"{network.name} misreads none of the {len(sure)} test images; these are the ones it is least sure of"
        return np.argsort(sure, kind="stable")[:count].tolist(), [remark]
    return wrong[np.argsort(-sure[wrong], kind="stable")][:count].tolist(), []


def _look(project: Project, networks: Sequence[Looked], chosen: Sequence[int]) -> tuple[Seen, ...]:
    classes, test = project.data.classes, project.data.test
    images = test.images[list(chosen)]
    patch = max(1, round(min(images.shape[2:]) / 7))
    views: list[list[View]] = [[] for _ in chosen]
    for order, network in enumerate(networks):
        probabilities, gates = run_batches(network.sure, images), network.gates(images)
        for place, image in enumerate(images):
            truth, answer = int(test.labels[chosen[place]]), int(probabilities[place].argmax())
            for_truth, for_label = occlusion(network.run, image, [truth, answer], patch=patch)
            view = View(
                network=network.name,
                label=classes[answer],
                probability=float(probabilities[place, answer]),
                gates=tuple(Gate(kind=gate.kind, values=gate.values[place]) for gate in gates),
                for_truth=for_truth,
                for_label=for_label,
            )
            views[place].append(view)
            project.console.progress(f"explain: {network.name}", order * len(images) + place + 1, len(networks) * len(images))
    return tuple(
        Seen(index=index, image=image, truth=classes[test.labels[index]], views=tuple(own))
        for index, image, own in zip(chosen, images, views, strict=True)
    )


def _about_gates(seen: Sequence[Seen]) -> list[str]:
    """What the pictures alone do not tell: networks without gates, and gates that let everything through."""
    remarks = [f"{view.network} has no attention gates; only evidence is drawn of it" for view in seen[0].views if not view.gates]
    if len(remarks) == len(seen[0].views):
        remarks = ["no network here has attention gates; only evidence is drawn"]
    first = [one.views[0] for one in seen]
    names = gate_names(first[0].gates)
    if wide_open := [name for place, name in enumerate(names) if min(float(view.gates[place].values.min()) for view in first) > OPEN]:
        remarks.append(f"{first[0].network}: {' and '.join(wide_open)} stood open (above {OPEN}) everywhere in these images")
    return remarks
