"""A project: one network, one data set, and the folder ``runs/<model>`` in which the artifacts of its stages lie.

An artifact lies in ``runs/<model>/<stage>/<key>``; its key is the hash of the stage's configuration and of everything it reads, so a
stage that was run already with the same inputs is not run again unless forced, and the newest suitable parent of a stage is found
here. Loads no torch.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from msgspec import UNSET

from ..benchmarks.formats import bytes_of, size
from ..benchmarks.machine import DECIDING
from ..benchmarks.place import HERE, Place
from ..codegen.target import Target
from ..errors import ArtifactError
from ..files import claimed, identity, publish
from ..train.allocator import give_back_freed_memory
from ..train.data_set import DataSet
from .artifact import MANIFEST, Artifact, InputSpec, Kind, Manifest, digest_of, find_artifacts, read_artifact, sealed, vacant
from .model_reference import ModelReference
from .parts import Data, Facts, Metrics, Model, StepSettings
from .records import plain, write_record
from .task.function import Function
from .task.score import Task

# Stages that make networks; those of the first kind are what pruning starts from where no parent is named.
TRAINED_STAGES = ("train", "import")
NETWORK_STAGES = (*TRAINED_STAGES, "prune", "remove-channels")
# Those that make graphs; of the first kind are graphs of networks that are not here.
FOREIGN_STAGES = ("import-onnx", "remove-channels-onnx")
GRAPH_STAGES = (*FOREIGN_STAGES, "export", "quantize")
# Raised when a stage computes something else from the same inputs, so that results of older versions are not taken for its own.
STAGE_VERSION = 1
# The goals of channel removal that are fractions of the teacher's cost.
GOALS = ("max_macs", "max_size", "max_latency")


class Console(Protocol):
    """Where a stage tells how far it is; the command line has the real one."""

    def say(self, text: str) -> None: ...
    def progress(self, label: str, done: int, total: int) -> None: ...


class Silent(Console):
    """Tells nobody anything."""


class Log(Protocol):
    """Where a stage tells figures as it finds them: of ``name``, at a step, an epoch or a trial, values by their names."""

    def figures(self, name: str, step: int, values: Mapping[str, Any]) -> None: ...


class NoLog(Log):
    """Keeps none."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """What every stage needs: the folder ``runs/<model>``, the network, the data as loaded and as recorded, and how to run.

    ``model`` is None only where files that no stage of this toolkit wrote are measured.
    """

    folder: Path
    model: ModelReference | None
    spec: InputSpec
    data: DataSet
    source: Data
    console: Console
    log: Log = field(default_factory=NoLog)
    device: str = "auto"
    force: bool = False
    fresh: bool = False
    score: Function | None = None  # of the user's own, where the data have targets in place of classes
    place: Place = HERE  # where candidates are timed
    target: Target | None = None  # the processor that files are made for, where it is not here and nothing is timed
    told: str = ""  # what to say of the data where nothing was made from them before

    @property
    def classes(self) -> int:
        return len(self.data.classes)

    @property
    def task(self) -> Task | None:
        """What the network is good for, where it reads no classes."""
        return Task(score=self.score, targets=self.data.targets) if self.score is not None else None


def find_parent(folder: Path, stages: tuple[str, ...], fingerprint: str | None = None) -> Artifact:
    """The newest artifact of ``stages`` in ``folder`` (``runs/<model>``), made from the data with ``fingerprint`` if one is given."""
    found = [artifact for stage in stages for artifact in find_artifacts(folder / stage)]
    fitting = [artifact for artifact in found if fingerprint in (None, artifact.manifest.data.fingerprint)]
    if not found:
        raise ArtifactError(
            f"{folder} has no network yet (looked in {', '.join(stages)}); run `compress train` first, name one with --from or --weights, "
            "or take --pretrained"
        )
    if not fitting:
        names = ", ".join(sorted({artifact.manifest.data.name for artifact in found}))
        raise ArtifactError(f"{folder} has networks trained on {names} only, none on the data given; train one, or name one with --from")
    return max(fitting, key=lambda artifact: artifact.manifest.created)


def trained_on(shipped: Artifact) -> str:
    """Of weights that come with this package, which data a user of theirs has to find."""
    data = shipped.manifest.data
    count, title = data.images, data.title or data.name
    known = f"{count.train + count.validation:,} images and {count.test:,} for test"
    return f"the weights of {shipped.path.name} were trained on {title}, {known}"


def variants_of(project: Project, root: Artifact) -> list[Artifact]:
    """Every graph, and .tflite file, under ``runs/<model>`` that descends from ``root``, the shortest lineage first."""
    graphs = [artifact for stage in (*GRAPH_STAGES, "export-litert") for artifact in find_artifacts(project.folder / stage)]
    # The same bytes may lie there twice, made by two versions of this toolkit: the newest of them is taken.
    graphs.sort(key=lambda graph: graph.manifest.created)
    mine = list({(variant_name(graph), graph.content): graph for graph in graphs if _root_key(graph) == root.manifest.key}.values())
    if not mine:
        raise ArtifactError(f"{project.folder} has no exported graph of {root.path} yet; run `compress export-onnx` first")
    return sorted(mine, key=lambda graph: (len(graph.steps), variant_name(graph)))


def _root_key(artifact: Artifact) -> str:
    """The key of the last training in the lineage, or of what stands for it."""
    return next((step.key for step in reversed(artifact.steps) if step.stage in ("train", "import", "import-onnx")), "")


def variant_name(artifact: Artifact) -> str:
    """What the lineage made of the network, for tables: ``fp32``, ``pruned 80%``, ``static int8``, ``pruned 80%, static int8``."""
    words: dict[str, str] = {}  # of steps of the same stage the last one counts
    for step in artifact.steps:
        config = step.settings
        if step.stage == "prune":
            words["prune"] = f"pruned {config.pattern or f'{100 * (config.sparsity or 0):.3g}%'}"
        elif step.stage in ("remove-channels", "remove-channels-onnx"):
            shares = {goal: getattr(config, goal) for goal in GOALS}
            goals = [f"{share:.2g}x {goal[4:].replace('macs', 'MACs')}" for goal, share in shares.items() if share is not None]
            sizes = {"RAM": config.max_ram, "flash": config.max_flash}
            goals += [f"{size(bytes_of(value, name))} {name}" for name, value in sizes.items() if value is not None]
            removed = f"{100 * config.sparsity:.3g}% of channels" if config.sparsity is not None else ""
            words["remove-channels"] = ", ".join(goals) or removed or words.get("remove-channels", "modules left out")
        elif config.fold_constants:
            words["export"] = "constants folded"
        elif step.stage == "quantize":
            words["quantize"] = _quantized_name(config)
    return ", ".join(words.values()) or "fp32"


def described(artifact: Artifact) -> str:
    """``runs/k49/train/3f9a0c51be27 (fp32, 90.52%)``: where it lies, what it is, and its balanced accuracy where that was measured."""
    scores, own = artifact.manifest.metrics.validation, artifact.manifest.metrics.score
    told = f", {100 * scores.balanced_accuracy:.2f}%" if scores else ""
    told = f", {own.name} {own.value:.4g}" if own and own.value is not UNSET else told
    return f"{artifact.path} ({variant_name(artifact)}{told})"


def _quantized_name(config: StepSettings) -> str:
    """``static int8``, ``static int8 of 3 groups, fine-tuned``, ``int8 weights``, ``fp32`` for a copy."""
    mode = config.mode
    if mode in ("float32", "int8-weights", "fp16-weights"):
        return "fp32" if mode == "float32" else mode.replace("-", " ")
    groups = len(config.groups)
    told = f"{mode} int8{f' of {groups} groups' if groups else ''}{', fine-tuned' if config.epochs else ''}"
    return f"{told} for {config.target}" if config.target else told


@dataclass(kw_only=True)
class New:
    """What a stage makes of ``parent``: files into ``folder``, and what is said of them, if it is ``wanted``, as it is not there yet."""

    stage: str
    key: str
    folder: Path
    wanted: bool
    made: Artifact | None = None
    metrics: Metrics = field(default_factory=Metrics)
    facts: Facts = field(default_factory=Facts)

    @property
    def artifact(self) -> Artifact:
        assert self.made is not None, "known when the block has ended"
        return self.made


def place_of(project: Project, stage: str, key: str, out: Path | None) -> Path:
    """The folder of an artifact."""
    return out or project.folder / stage / key[:12]


def is_made(project: Project, target: Path) -> bool:
    """Whether an artifact lies there, which is not to be replaced."""
    return (target / MANIFEST).is_file() and not project.force


@contextmanager
def making(
    project: Project, kind: Kind, stage: str, key: str, config: Any, parent: Artifact | None = None, out: Path | None = None
) -> Iterator[New]:
    """The artifact of ``key``: that which is there, whole, or what the block makes; all or nothing."""
    target, say = place_of(project, stage, key, out), project.console.say
    if parent is not None:
        say(f"{stage}: from {described(parent)}")
    before = identity(target)
    found = _found(target, kind, key) if is_made(project, target) else None
    if found is None:
        with claimed(vacant(target), lambda: say(f"{stage}: another process makes {target}; waits for it")) as folder:
            if identity(target) != before:  # --force too is content with what was made while it waited
                found = _found(target, kind, key)
            else:
                say(f"{stage}: {target}")
                give_back_freed_memory()  # of earlier stages
                new = New(stage=stage, key=key, folder=folder, wanted=True)
                yield new
                new.made = Artifact(path=target, manifest=_sealed(project, new, kind, config, parent), parent=parent)
                publish(folder, target)
                _note(project)
                return
    say(f"{stage}: unchanged, {target}")
    yield New(stage=stage, key=key, folder=target, wanted=False, made=dataclasses.replace(found, parent=parent))


def _found(target: Path, kind: Kind, key: str) -> Artifact:
    found = read_artifact(target, kind)
    if found.manifest.key != key:
        raise ArtifactError(f"out (={target}) holds another artifact (stage {found.manifest.stage}); --force replaces it")
    return found


def _sealed(project: Project, new: New, kind: Kind, config: Any, parent: Artifact | None) -> Manifest:
    if parent is not None:
        inherited: dict[str, Any] = {name: getattr(parent.manifest, name) for name in ("model", "input", "classes")}
        inherited |= {"lineage": parent.steps, "parent": parent.manifest.hash}
    else:
        model = Model(**project.model.identity() if project.model else {"file": project.folder.name})
        inherited = {"model": model, "input": project.spec, "classes": project.data.classes}
    inherited |= {"task": project.task.named} if project.task else {}
    own: dict[str, Any] = {"config": plain(config), "data": project.source, "metrics": new.metrics, "facts": new.facts}
    return sealed(Manifest(kind=kind, stage=new.stage, key=new.key, **own, **inherited), new.folder)


def _note(project: Project) -> None:
    if project.model is not None:
        project.model.note_images(project.folder.parent)
    if (note := project.data.note) and not note.exists():
        with suppress(OSError):  # the artifact is there; without the note the next command only reads the images once more
            write_record(note, project.data.about)


def state_file(project: Project, stage: str, key: str) -> Path:
    """Where a training keeps its state, so that a killed run can go on."""
    return project.folder / stage / f".{key[:12]}.state.safetensors"


def stage_key(stage: str, config: Any, **inputs: Any) -> str:
    """Hash of a stage's configuration and of all it reads; ``inputs`` are hashes or plain values."""
    return digest_of({"stage": stage, "version": STAGE_VERSION, "config": plain(config), **inputs})


def network_identity(project: Project) -> dict[str, Any]:
    """What a new network depends on."""
    assert project.model is not None, "only files are measured without a model"
    return {"model": project.model.identity(), "input": plain(project.spec), "classes": project.classes}


def place_identity(project: Project) -> dict[str, Any]:
    """What the machine is that ``--on`` names, where what is made depends on it; nothing for this one."""
    if project.place is HERE:
        return {}
    facts = project.place.machine()
    return {"on": {name: facts.get(name) for name in DECIDING if name not in ("governor", "gpu")}}


def data_identity(project: Project) -> dict[str, Any]:
    """Which images are in which part, and what they are scored by where that is of the user's own."""
    own = {"score": project.task.identity} if project.task else {}
    return {name: getattr(project.source, name) for name in ("fingerprint", "seed", "validation")} | own
