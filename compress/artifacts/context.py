"""From the options of a command to a project: which network, which data, which parent.

A stage without a parent (train, run, or any with ``--weights``) takes the data from ``--data`` or the recipe. A stage with one takes the
data its parent was made from, with the same split, so that no validation image is trained on; ``--data`` names another place of it. That
of ``--pretrained`` is an artifact in ``compress/weights``, which says what data it was made from, but not where that lies.
"""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli.options import Terminal
from ..errors import ArtifactError, CompressError
from ..train.sources import NAMES, DataSet, Files, load_data
from .artifact import Artifact, InputSpec, read_artifact
from .model_reference import ModelReference
from .parts import Data, Images
from .project import Project, find_parent
from .recipe import Recipe, load_recipe

WEIGHTS = Path(__file__).parents[1] / "weights"
VALIDATION = 0.1
PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The shared options as click hands them over; None where the user said nothing."""

    model: str | None = None
    option: tuple[str, ...] = ()
    image_shape: str | None = None
    mean: str | None = None
    std: str | None = None
    data: str | None = None
    train_images: Path | None = None
    train_labels: Path | None = None
    test_images: Path | None = None
    test_labels: Path | None = None
    cache: Path = Path("data")
    recipe: Path | None = None
    seed: int | None = None
    runs: Path = Path("runs")
    device: str = "auto"
    force: bool = False
    as_json: bool = False
    from_: Path | None = None
    weights: Path | None = None
    pretrained: bool = False
    out: Path | None = None
    resume: bool = False

    @property
    def files(self) -> Files | None:
        """The four files given by hand, all or none."""
        paths = [getattr(self, part) for part in PARTS]
        if not any(paths):
            return None
        if missing := [f"--{part.replace('_', '-')}" for part, path in zip(PARTS, paths, strict=True) if path is None]:
            raise CompressError(f"{' and '.join(missing)} missing; the four files of a data set go together")
        if self.data is not None:
            raise CompressError(f"data (={self.data}) and four files by hand exclude each other; leave one of them out")
        return Files(**{part: getattr(self, part) for part in PARTS})

    def load_recipe(self, model: str | None = None) -> Recipe:
        return load_recipe(self.recipe, model=model or self.model, data=self.data, seed=self.seed)

    def project(self, recipe: Recipe) -> Project:
        """A project that has no parent: network and data from the options and the recipe."""
        model = ModelReference(reference=recipe.model, options=dict(recipe.table("model-options")) | _parse_options(self.option))
        model.identity()  # refuses a wrong reference before minutes of loading data
        spec = _parse_spec(self.image_shape, self.mean, self.std)
        data, source = self.load(recipe.data, recipe.seed, spec)
        return self._project(model, spec, data, source)

    def child(self, stages: tuple[str, ...], allowed: tuple[str, ...] | None = None) -> tuple[Project, Recipe, Artifact]:
        """A project with the parent that ``--weights``, ``--from`` or ``--pretrained`` names, or the newest of ``stages``.

        What is named may be of ``allowed`` stages too.
        """
        allowed = allowed or stages
        named = self.named_parent()
        if self.weights is not None:
            from ..stages.import_network import import_weights

            recipe = self.load_recipe()
            project = self.project(recipe)
            return project, recipe, import_weights(project, self.weights)
        given = None
        if named is not None:
            parent = named
            if parent.manifest.stage not in allowed:
                raise ArtifactError(f"from (={self.from_}) is of stage {parent.manifest.stage}; one of {', '.join(allowed)} is needed here")
        else:
            recipe = self.load_recipe()
            folder = self.runs / ModelReference(reference=recipe.model).slug
            if self.data is not None or self.files is not None:
                newest = find_parent(folder, stages)
                about = newest.manifest
                given = self.load(recipe.data, about.data.seed, about.input, about.data.validation)
            parent = find_parent(folder, stages, given[0].fingerprint if given else None)
        return (*self._with_parent(parent, given), parent)

    @property
    def starts_from_parent(self) -> bool:
        """Whether the user named a network to start from."""
        return self.from_ is not None or self.weights is not None or self.pretrained

    def named_parent(self) -> Artifact | None:
        """The artifact that ``--from`` or ``--pretrained`` names, if one does."""
        given = {"from": self.from_, "weights": self.weights, "pretrained": self.pretrained or None}
        told = [name if value is True else f"{name} (={value})" for name, value in given.items() if value is not None]
        if len(told) > 1:
            raise CompressError(f"{' and '.join(told)} exclude each other; leave all but one of them out")
        if not self.pretrained:
            return read_artifact(self.from_) if self.from_ is not None else None
        model = self.load_recipe().model
        folder = WEIGHTS / ModelReference(reference=model).slug
        if not folder.is_dir():
            there = ", ".join(sorted(path.name for path in WEIGHTS.glob("[!.]*"))) or "no network"
            raise CompressError(
                f"pretrained: no weights of model (={model}) come with this package, but of {there}; run `compress train` first"
            )
        return read_artifact(folder, "network")

    def _with_parent(self, parent: Artifact, given: tuple[DataSet, Data] | None) -> tuple[Project, Recipe]:
        about = parent.manifest
        model = ModelReference.of(about.model)  # None: a graph that another tool wrote; it has no network here
        recipe = self.load_recipe(model.reference if model else None)
        known = _trained_on(parent)
        if given is None:
            source = self.data or about.data.source
            if known and self.data is None and self.files is None and source not in NAMES and not Path(str(source)).is_dir():
                raise CompressError(f"{known}; name its folder with --data")
            given = self.load(source, about.data.seed, about.input, about.data.validation)
        data, record = given
        if known and data.fingerprint != about.data.fingerprint:
            raise CompressError(f"{known}; data (={record.source}) is other data: name that one, or run `compress train` on yours")
        if data.fingerprint != about.data.fingerprint:
            raise CompressError(
                f"data (={record.source}) is not what {parent.path} was made from ({about.data.name}): its fingerprint is "
                f"{data.fingerprint[:12]}..., {about.data.fingerprint[:12]}... was expected; name the same data, or train again"
            )
        project = self._project(model, about.input, data, record)
        return (dataclasses.replace(project, folder=self.runs / about.model.file) if about.model.file else project), recipe

    def project_of_onnx(self, path: Path) -> Project:
        """A project for an ONNX file that another tool wrote; the shape of its images is the file's."""
        from ..graphs.adopt import image_shape

        given = [f"--{name}" for name in ("from", "weights", "model") if getattr(self, name if name != "from" else "from_") is not None]
        if given or self.pretrained:
            raise CompressError(f"onnx (={path}) and {(*given, '--pretrained')[0]} exclude each other; leave one of them out")
        shape = image_shape(path)
        spec = _parse_spec(self.image_shape or ("x".join(map(str, shape)) if shape else None), self.mean, self.std)
        if shape is not None and shape != spec.shape:
            raise CompressError(f"image-shape (={self.image_shape}) is not what onnx (={path}) takes, {shape}; leave --image-shape out")
        if shape is None and self.image_shape is None:
            raise CompressError(f"onnx (={path}) leaves the size of its images open; name it with --image-shape CxHxW")
        if self.data is None and self.files is None:
            raise CompressError(f"onnx (={path}) does not say which images calibrate and score it; name them with --data")
        data, record = self.load(self.data, self.seed or 0, spec)
        return dataclasses.replace(self._project(None, spec, data, record), folder=self.runs / path.stem)

    def project_of_files(self, first: Artifact | None, path: Path) -> Project:
        """A project to measure files in: data and input are those of the ``first`` artifact among them, else of the options."""
        if first is not None:
            return self._with_parent(first, None)[0]
        if self.data is None and self.files is None:
            raise CompressError(f"{path} does not say which images to measure it with; name them with --data")
        spec = _parse_spec(self.image_shape, self.mean, self.std)
        data, record = self.load(self.data, self.seed or 0, spec)
        return dataclasses.replace(self._project(None, spec, data, record), folder=self.runs / path.stem)

    def load(self, source: Any, seed: int, spec: InputSpec, validation: float = VALIDATION) -> tuple[DataSet, Data]:
        """Load a data set; returns it with what artifacts record of it. ``source``: a name, a folder, or four paths."""
        terminal = Terminal()
        files = self.files
        if files is None and isinstance(source, tuple):  # four files by hand, as an artifact recorded them
            files = Files(**dict(zip(PARTS, map(Path, source), strict=True)))
        name = str(source)
        data = load_data(
            name, seed=seed, validation=validation, shape=spec.shape, cache=self.cache, files=files, progress=terminal.progress
        )
        return data, Data(
            source=(str(files.train_images), str(files.train_labels), str(files.test_images), str(files.test_labels)) if files else name,
            name=data.name,
            fingerprint=data.fingerprint,
            seed=seed,
            validation=validation,
            images=Images(train=len(data.train.labels), validation=len(data.validation.labels), test=len(data.test.labels)),
        )

    def _project(self, model: ModelReference | None, spec: InputSpec, data: DataSet, source: Data) -> Project:
        return Project(
            folder=self.runs / (model.slug if model else "files"),
            model=model,
            spec=spec,
            data=data,
            source=source,
            console=Terminal(),
            device=self.device,
            force=self.force,
            resume=self.resume,
        )


def _trained_on(parent: Artifact) -> str:
    """Of weights that come with this package, which data a user of theirs has to find; else nothing."""
    if parent.path.resolve().parent != WEIGHTS.resolve():
        return ""
    data = parent.manifest.data
    count, title = data.images, data.title or data.name
    return (
        f"the weights of {parent.path.name} were trained on {title}, {count.train + count.validation:,} images and {count.test:,} for test"
    )


def _parse_options(given: tuple[str, ...]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for text in given:
        try:
            parsed |= tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise CompressError(
                f"option (={text}) must be NAME=VALUE with a TOML value, such as widths=[8,16] or dropout=0.2: {error}"
            ) from error
    return parsed


def _parse_spec(shape: str | None, mean: str | None, std: str | None) -> InputSpec:
    given: dict[str, Any] = {}
    if shape is not None:
        if not all(part.isdecimal() for part in shape.split("x")):
            raise CompressError(f"image-shape (={shape}) must be CxHxW, such as 1x28x28")
        given["shape"] = tuple(map(int, shape.split("x")))
    for name, text in (("mean", mean), ("std", std)):
        if text is not None:
            try:
                given[name] = tuple(map(float, text.split(",")))
            except ValueError as error:
                raise CompressError(f"{name} (={text}) must be one number or one per channel, such as 0.5 or 0.485,0.456,0.406") from error
    return dataclasses.replace(InputSpec(), **given)
