"""What a user names becomes a project: which network, which data, which parent. Nothing is loaded before a stage asks for it.

A stage without a parent (train, run, or any with ``weights``) takes the data that the user or the recipe names. A stage with one takes the
data its parent was made from, with the same split, so that no validation image is trained on; ``data`` names another place of it. That
of ``pretrained`` is an artifact in ``compress/weights``, which says what data it was made from, but not where that lies.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from ..benchmarks.boards.known import place_named
from ..errors import ArtifactError, CompressError, need_file, shown
from ..files import claimed, publish
from ..train.cache import HIDDEN, Cache
from ..train.data_set import About, DataSet
from ..train.levels import Range
from ..train.pictures import BrokenPictures
from ..train.resize import STRETCH, Interpolation, Resize, Way
from ..train.sources import NAMES, Files, load_data, stamp
from ..train.stored import Images as ImageArray
from .artifact import Artifact, InputSpec, Manifest, digest_of, read_artifact, sha256_of
from .model_reference import BUILT_IN, ModelReference
from .parts import Data
from .project import Console, Log, NoLog, Project, Silent, find_parent, trained_on
from .recipe import FOREIGN, Recipe, load_recipe
from .records import component, plain, read_record, refuse_odd
from .task.own import Function, fitting, is_function, load_own, refuse_half, refuse_other

WEIGHTS = Path(__file__).parents[1] / "weights"
VALIDATION, UNLABELLED = 0.1, 0.3  # of images without labels more are asked, as nobody is trained on them
VERSION = 2  # of what is noted of data sets
PARTS = ("train_images", "train_labels", "test_images", "test_labels")
Start = Artifact | Path | str


@dataclass(frozen=True, kw_only=True)
class Context:
    """What was said, by options of a command or in Python; None where nothing was.

    ``start``, ``weights``, ``pretrained``: the network to start from. ``out``, ``force``, ``fresh``: what becomes of what is made.
    ``calibrate``: images without labels, for an ONNX file. ``score``: a function, if ``data`` is one too. ``on``: the machine that times.
    """

    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: Way | None = None
    crop: float | None = None
    interpolation: Interpolation | None = None
    range: Range | None = None
    data: str | Path | None = None
    train_images: Path | None = None
    train_labels: Path | None = None
    test_images: Path | None = None
    test_labels: Path | None = None
    cache: Path = Path("data")
    skip_broken: bool = False
    recipe: Path | str | None = None
    seed: int | None = None
    runs: Path = Path("runs")
    device: str = "auto"
    console: Console = field(default_factory=Silent)
    log: Log = field(default_factory=NoLog)
    start: Start | None = None
    weights: Path | None = None
    pretrained: bool = False
    out: Path | None = None
    force: bool = False
    fresh: bool = False
    calibrate: Path | None = None
    score: str | None = None
    on: str | None = None
    loaded: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # data sets that were read for an earlier call

    def __post_init__(self) -> None:
        refuse_odd(self.options, "option")
        refuse_half(self)
        if self.device not in ("auto", "cpu", "cuda"):
            raise CompressError(f"device (={self.device}) must be auto, cpu or cuda")

    @property
    def files(self) -> Files | None:
        """The four files given by hand, all or none."""
        given = {part: path for part in PARTS if (path := getattr(self, part)) is not None}
        if not given:
            return None
        if missing := [f"--{part.replace('_', '-')}" for part in PARTS if part not in given]:
            raise CompressError(f"{' and '.join(missing)} missing; the four files of a data set go together")
        if self.data is not None:
            raise CompressError(f"data (={self.data}) and four files by hand exclude each other; leave one of them out")
        return Files(**given)

    @property
    def kept(self) -> Cache:
        """Where decoded pictures are kept."""
        claim = partial(claimed, waits=lambda: self.console.say("data: another process decodes these pictures; waits for it"))
        return Cache(folder=self.cache / HIDDEN, claim=claim, publish=publish)

    def spec_of(self, model: str | None) -> InputSpec:
        """The image that the user's network takes: as was said, else as one of a package was trained."""
        known = {} if model is None else ModelReference(reference=model).images(self.runs)
        if self.resize not in (None, "crop"):
            known.pop("crop", None)
        names = {"shape": "image_shape", "way": "resize"}
        given = {name: getattr(self, names.get(name, name)) for name in (*names, "mean", "std", "crop", "interpolation", "range")}
        found = known | {name: value for name, value in given.items() if value is not None}
        resize = Resize(**{name: found.pop(name) for name in ("way", "crop", "interpolation") if name in found})
        floats: Any = {} if self.score is None else {"pixels": "float32"}  # settled when the data are there
        return InputSpec(**found, **floats, resize=UNSET if resize == STRETCH else resize)

    def load_recipe(self, model: str | None = None) -> Recipe:
        data = None if self.data is None else str(self.data)
        return load_recipe(None if self.recipe is None else Path(self.recipe), model=model or self.model, data=data, seed=self.seed)

    def project(self, recipe: Recipe) -> Project:
        """A project that has no parent: network and data from the options and the recipe."""
        model = ModelReference(reference=recipe.model, options={**recipe.table("model-options"), **self.options})
        model.identity()  # refuses a wrong reference before minutes of loading data
        spec = self.spec_of(recipe.model)
        data, source = self.load(recipe.data, recipe.seed, spec)
        other = "" if self.names_data else "; --data names other data"
        other = f"; {data.about.skipped:,} that cannot be used left out{other}" if data.about.skipped else other
        count, scaled = sum(vars(source.images).values()), spec.levels.told(data.about.clipped)
        kinds = f"in {len(data.classes)} classes" if data.classes else "with targets"
        told = f"{data.name}, {count:,} images {kinds}{scaled}{other}"
        return dataclasses.replace(self._project(model, model.slug, spec, data, source, self.image_shape is not None), told=told)

    def folder(self, recipe: Recipe) -> Path:
        """``runs/<model>``."""
        return self.runs / ModelReference(reference=recipe.model).slug

    def child(self, stages: tuple[str, ...], allowed: tuple[str, ...] | None = None) -> tuple[Project, Recipe, Artifact]:
        """A project with the parent that ``start`` or ``pretrained`` names, or the newest of ``stages``.

        What is named may be of ``allowed`` stages too.
        """
        allowed, given = allowed or stages, None
        if (parent := self.named_parent()) is None:
            recipe = self.load_recipe()
            folder = self.folder(recipe)
            if self.names_data:
                about = find_parent(folder, stages).manifest
                given = self.load_like(about, recipe.data)
            parent = self.trusted(find_parent(folder, stages, given[0].fingerprint if given else None))
        elif parent.manifest.stage not in allowed:
            raise ArtifactError(f"from (={self.start}) is of stage {parent.manifest.stage}; one of {', '.join(allowed)} is needed here")
        return (*self._with_parent(parent, given), parent)

    @property
    def names_data(self) -> bool:
        return self.data is not None or self.files is not None

    @property
    def starts_from_parent(self) -> bool:
        """Whether the user named a network to start from."""
        return self.start is not None or self.weights is not None or self.pretrained

    def named_parent(self) -> Artifact | None:
        """The artifact that ``--from`` or ``--pretrained`` names, if one does."""
        given = {"from": self.start, "weights": self.weights, "pretrained": self.pretrained or None}
        told = [name if value is True else f"{name} (={value})" for name, value in given.items() if value is not None]
        if len(told) > 1:
            raise CompressError(f"{' and '.join(told)} exclude each other; leave all but one of them out")
        if not self.pretrained:
            return self.start if isinstance(self.start, Artifact) or self.start is None else self.trusted(read_artifact(Path(self.start)))
        model = self.load_recipe().model
        if ModelReference(reference=model).in_package:
            return None
        folder = WEIGHTS / ModelReference(reference=model).slug
        if not folder.is_dir():
            there = ", ".join(sorted(path.name for path in WEIGHTS.glob("[!.]*"))) or "no network"
            raise CompressError(
                f"pretrained: no weights of model (={model}) come with this package, but of {there}; run `compress train` first"
            )
        return read_artifact(folder, "network")

    def weights_file(self) -> Path | None:
        """Weights from elsewhere: those of ``weights``, or of a package whose network is asked for ``pretrained``."""
        model = ModelReference(reference=self.load_recipe().model)
        return model.trained_weights(self.cache) if self.pretrained and model.in_package else self.weights

    def trusted(self, artifact: Artifact) -> Artifact:
        """The artifact, if nothing is to be run for it but this package and a file that the user named, now or when training it here.

        Raises ArtifactError for a network of the user's own code that does not lie in ``runs``, or whose file does, unless ``model`` names
        that file, wherever it lies now; that it is the same file is seen by its hash before it is run.
        """
        model = ModelReference.of(artifact.manifest.model)
        if artifact.manifest.kind != "network" or model is None or model.is_built_in or model.in_package:
            return artifact
        if self.model is not None and self.model not in BUILT_IN:
            about = dataclasses.replace(artifact.manifest.model, reference=self.model)
            return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, model=about))
        runs = self.runs.resolve()
        if not artifact.path.resolve().is_relative_to(runs) or model.file.is_relative_to(runs):
            told = f"{artifact.path} comes from elsewhere, and its network is made by running {shown(model.named_file)}"
            raise ArtifactError(f"{told}; if you trust that file, name it: --model {shown(model.reference)}")
        return artifact

    def teacher(self, path: Path, parent: Artifact) -> Artifact:
        """The network in ``path``, or the graph where ``parent`` is one, if it reads what that does."""
        found = self.trusted(read_artifact(path, parent.manifest.kind))
        if (found.manifest.classes, found.manifest.input) != (parent.manifest.classes, parent.manifest.input):
            raise CompressError(f"teacher (={path}) reads other images or classes than {parent.path}; name the network it was pruned from")
        return found

    def _with_parent(self, parent: Artifact, given: tuple[DataSet, Data] | None) -> tuple[Project, Recipe]:
        about = parent.manifest
        refuse_other(self, parent)
        model = ModelReference.of(about.model)  # None: a graph that another tool wrote; it has no network here
        recipe = self.load_recipe(model.reference if model else FOREIGN)
        known = trained_on(parent) if parent.path.resolve().parent == WEIGHTS.resolve() else ""
        if given is None:
            source = self.data or about.data.source
            if known and not self.names_data and source not in NAMES and not Path(str(source)).is_dir():
                raise CompressError(f"{known}; name its folder with --data")
            given = self.load_like(about, source)
        data, record = given
        if known and data.fingerprint != about.data.fingerprint:
            raise CompressError(f"{known}; data (={record.source}) is other data: name that one, or run `compress train` on yours")
        if data.fingerprint != about.data.fingerprint:
            raise CompressError(
                f"data (={record.source}) is not what {parent.path} was made from ({about.data.name}): its fingerprint is "
                f"{data.fingerprint[:12]}..., {about.data.fingerprint[:12]}... was expected; name the same data, or train again"
            )
        return self._project(model, model.slug if model else str(about.model.file), about.input, data, record), recipe

    def project_of_onnx(self, path: Path) -> Project:
        """A project for an ONNX file that another tool wrote; the shape of its images is the file's."""
        from ..graphs.adopt import image_shape

        given = [f"--{name}" for name in ("from", "weights", "model") if getattr(self, name.replace("from", "start")) is not None]
        if given or self.pretrained:
            raise CompressError(f"onnx (={path}) and {(*given, '--pretrained')[0]} exclude each other; leave one of them out")
        shape = image_shape(path)
        spec = dataclasses.replace(self, image_shape=self.image_shape or shape).spec_of(self.model)
        if shape is not None and shape != spec.shape:
            given_shape = "x".join(map(str, spec.shape))
            raise CompressError(f"image-shape (={given_shape}) is not what onnx (={path}) takes, {shape}; leave --image-shape out")
        if shape is None and self.image_shape is None and self.score is None:
            raise CompressError(f"onnx (={path}) leaves the size of its images open; name it with --image-shape CxHxW")
        if self.names_data == (self.calibrate is not None):
            raise CompressError(
                f"onnx (={path}) does not say which images calibrate and score it; name them with --data, or with --calibrate such as "
                "have no labels"
                if self.calibrate is None
                else f"calibrate (={self.calibrate}) names images without labels and --data others; leave one of them out"
            )
        if self.calibrate is None:
            return self._measured(path, spec, bool(shape or self.image_shape))
        return self._project(None, path.stem, spec, *self.load((self.calibrate, path), self.seed or 0, spec, UNLABELLED))

    def project_of_files(self, first: Artifact | None, path: Path, shape: tuple[int, int, int] | None = None) -> Project:
        """A project to measure files in: data and input are those of the ``first`` artifact among them, else of the options.

        Where those name no data, images without labels are enough if the ``shape`` that the file takes is known: those of ``calibrate``,
        or random pixels.
        """
        if first is not None:
            return self._with_parent(first, None)[0]
        spec = dataclasses.replace(self, image_shape=self.image_shape or shape).spec_of(self.model)
        if self.names_data:
            return self._measured(path, spec, bool(shape or self.image_shape))
        if shape is None:
            raise CompressError(f"{path} does not say which images to measure it with; name them with --data")
        source, data = str(self.calibrate or "random pixels"), DataSet.of_noise(spec.shape)
        if self.calibrate is not None:
            data = load_data(source, validation=VALIDATION, labelled=False, **self._reading(spec))
        return self._project(None, path.stem, spec, data, Data.of(data.about, source, 0, VALIDATION))

    def _measured(self, path: Path, spec: InputSpec, known: bool) -> Project:
        return self._project(None, path.stem, spec, *self.load(self.data, self.seed or 0, spec), known=known)

    def load_like(self, about: Manifest, source: Any) -> tuple[DataSet, Data]:
        """Load ``source`` as the data of an artifact were."""
        skipping = dataclasses.replace(self, skip_broken=self.skip_broken or bool(about.data.skipped))
        return skipping.load(source, about.data.seed, about.input, about.data.validation)

    def load(self, source: Any, seed: int, spec: InputSpec, validation: float = VALIDATION) -> tuple[DataSet, Data]:
        """Load a data set; returns it with what artifacts record of it. ``source``: a name, a folder, four paths, or
        a folder of images without labels and the ONNX file whose answers are their labels, or a function of the user's own."""
        if is_function(source):
            return load_own(self, source, seed)
        files, answering = self.files, None
        if isinstance(source, tuple) and len(source) == 2:
            source, answering = (str(Path(one).absolute()) for one in source)
        if files is None and isinstance(source, tuple):  # four files by hand, as an artifact recorded them
            files = Files(**dict(zip(PARTS, map(Path, source), strict=True)))
        name, key = str(source), (str(source), seed, validation, spec, files, answering, self.skip_broken)
        if key not in self.loaded:
            self.loaded.clear()  # one at a time, as they are large
            self.loaded[key] = self._known(name, seed, validation, spec, files, answering)
        data: DataSet = self.loaded[key]
        where = tuple(map(str, vars(files).values())) if files else (name, answering) if answering else name
        return data, Data.of(data.about, where, seed, validation)

    def _reading(self, spec: InputSpec) -> dict[str, Any]:
        how: dict[str, Any] = {"shape": spec.shape, "resize": spec.resized, "levels": spec.levels}
        return how | {"progress": self.console.progress, "kept": self.kept, "skip_broken": self.skip_broken}

    def _known(
        self, name: str, seed: int, validation: float, spec: InputSpec, files: Files | None, answering: str | None = None
    ) -> DataSet:
        """The data set, read now, or when its images are asked for where ``runs/.data`` has what is known of the same files."""
        stamped = [VERSION, name, seed, validation, spec.shape, stamp(name, self.cache, files), self.skip_broken, vars(spec.resized)]
        stamped += [spec.range] if spec.range else []
        if answering is not None:
            need_file(Path(answering), f"onnx (={answering}), whose answers are the labels of {name},")
            stamped += [plain(spec), sha256_of(Path(answering))]
        note = self.runs / ".data" / f"{digest_of(stamped)[:16]}.json"

        def read() -> DataSet:
            how = self._reading(spec) | {"seed": seed, "validation": validation, "cache": self.cache, "files": files}
            try:
                return load_data(name, **how, answer=answer if answering else None)
            except BrokenPictures as error:
                for one in error.names if len(error.names) > 1 else ():
                    self.console.say(f"data: {one}")
                raise

        def answer(images: ImageArray) -> tuple[NDArray[np.int64], int]:
            from ..graphs.adopt import own_answers

            found, _ = own_answers(Path(str(answering)), spec.mean, spec.std, images)
            return found.argmax(axis=1), found.shape[1]

        try:
            about = read_record(note, About, again="delete it") if note.is_file() else None
        except CompressError:
            about = None
        data = read() if about is None else DataSet(about, lambda: read().read())
        return dataclasses.replace(data, note=note)

    def _project(self, model: Any, folder: str, spec: InputSpec, data: DataSet, source: Data, known: bool = True) -> Project:
        component(folder, "the name of the file")
        how: dict[str, Any] = {name: getattr(self, name) for name in ("console", "log", "device", "force", "fresh")}
        how["place"] = place_named(self.on, self.console.progress)
        if data.targets is not None:
            spec, how["score"] = fitting(self, spec, data, known), Function("score", str(self.score))
        return Project(folder=self.runs / folder, model=model, spec=spec, data=data, source=source, **how)
