"""Which network: ``k49``, ``emnist``, one of a package by its name, or one of the user's own, all through the same door.

::

    torchvision:mobilenet_v3_small    timm:mobilenetv4_conv_small       classifiers of these packages, their head for the classes at hand
    path/net.py:make_net                                                a factory of the user's own

A user's factory is a function that returns the ``torch.nn.Module``. Its file is imported the way ``python path/net.py`` would: its own
folder first on the path, then the current one, so that ``from models.backbone import ...`` finds the user's ``models``, a name which
this project does not claim. Loads no torch by itself.
"""

import ast
import importlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import all_suffixes
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import UNSET, UnsetType

from ..errors import CompressError, NetworkError, first_line
from ..files import write_whole
from ..train.resize import Interpolation, Way
from .artifact import digest_of, installed, sha256_of
from .parts import Model
from .records import plain, read_record, write_record

PACKAGES = ("torchvision", "timm")
BUILT_IN = {"k49": "compress.models.k49", "emnist": "compress.models.emnist"}
# What a user's file or factory may fail with for reasons of its own; anything else is shown with its traceback.
FACTORY_FAILURES = (
    SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError, KeyError, RuntimeError, OSError, OverflowError, MemoryError
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is noted of the images that a network of a package was trained on; nothing where the package does not say."""

    shape: tuple[int, int, int] | UnsetType = UNSET
    mean: tuple[float, ...] | UnsetType = UNSET
    std: tuple[float, ...] | UnsetType = UNSET
    way: Way | UnsetType = UNSET
    crop: float | UnsetType = UNSET
    interpolation: Interpolation | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """Which network: a built-in name or ``file.py:factory``, and the options its factory is called with."""

    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> "ModelReference | None":
        """That of an artifact's model; None where another tool wrote the file, which needs no network here."""
        if model.reference is UNSET or model.options is UNSET:
            return None
        return cls(reference=model.reference, options=model.options)

    @property
    def is_built_in(self) -> bool:
        return self.reference in BUILT_IN

    @property
    def in_package(self) -> tuple[str, str] | None:
        """The package that has it, and its name there; None of any other."""
        package, colon, name = self.reference.partition(":")
        if package not in PACKAGES or not colon:
            return None
        if not re.fullmatch(r"\w[\w.]*", name, re.ASCII):
            raise NetworkError(f"model (={self.reference}) must name a network of {package}, such as {package}:mobilenet_v3_small")
        return package, name

    @property
    def slug(self) -> str:
        """The name of its folder under ``runs/``: ``k49``, ``torchvision-resnet18``, or ``net-make_net`` for ``path/net.py:make_net``."""
        if self.is_built_in:
            return self.reference
        if (named := self.in_package) is not None:
            return "-".join(named)
        file, factory = self._split()
        return f"{Path(file).stem}-{factory}"

    @property
    def named_file(self) -> Path:
        """The user's file, whether it is there or not."""
        return Path(self._split()[0]).resolve()

    @property
    def file(self) -> Path:
        """The user's file, which must be there."""
        if not self.named_file.is_file():
            missing = self._split()[0]
            raise NetworkError(f"model (={self.reference}): there is no file {missing}; paths are taken from the current folder")
        return self.named_file

    def identity(self) -> dict[str, Any]:
        """What artifacts record: the reference, its options, and the hash of the user's files, so that an edit is noticed."""
        source = None if self.is_built_in or self.in_package else source_of(self.file)
        return {"reference": self.reference, "options": dict(self.options), "source": source}

    def factory(self) -> Callable[..., Any]:
        """The function that makes the network."""
        if self.is_built_in:
            return importlib.import_module(BUILT_IN[self.reference]).make
        if self.in_package:
            from ..models.packages import factory

            return factory(*self.in_package)
        file, name = self._split()
        made = getattr(self._import(), name, None)
        if not callable(made):
            raise NetworkError(f"{file} has no function {name}; the reference is path/net.py:factory")
        return made

    def images(self, runs: Path) -> dict[str, Any]:
        """What images a network of a package was trained on, see :func:`compress.models.packages.images`; nothing of any other.

        Taken from what is noted in ``runs``, so that the package, and torch with it, is not loaded for this.
        """
        if not self.in_package:
            return {}
        if (known := self._noted(runs)) is not None:
            return plain(known)
        from ..models.packages import images

        return images(*self.in_package)

    def note_images(self, runs: Path) -> None:
        """Note them in ``runs`` for the next command."""
        if self.in_package and self._noted(runs) is None:
            with suppress(OSError):  # without the note the next command only asks the package once more
                write_record(self._note(runs), Trained(**self.images(runs)))

    def _noted(self, runs: Path) -> Trained | None:
        with suppress(CompressError):
            return read_record(self._note(runs), Trained, again="delete it")
        return None

    def _note(self, runs: Path) -> Path:
        assert self.in_package is not None, "of no other is anything noted"
        return runs / ".data" / f"{digest_of([self.reference, installed(self.in_package[0])])[:16]}.json"

    def trained_weights(self, cache: Path) -> Path:
        """See :func:`compress.models.packages.trained_weights`; where they lie is noted in ``cache``, so that the package is asked once."""
        assert self.in_package is not None, "only packages have some to download"
        package, name = self.in_package
        note = cache / package / f"{name}-{installed(package)}.path"
        with suppress(OSError, ValueError):
            if (known := Path(note.read_text("utf-8"))).is_file():
                return known
        from ..models.packages import trained_weights

        file = trained_weights(package, name, cache).absolute()
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, str(file).encode())
        return file

    def _import(self) -> ModuleType:
        file = self.file
        try:
            return import_file(file)
        except FACTORY_FAILURES as error:
            raise NetworkError(f"{file} cannot be imported: {first_line(error)}") from error

    def _split(self) -> tuple[str, str]:
        file, colon, factory = self.reference.rpartition(":")
        if not colon or not file.endswith(".py") or not factory.isidentifier():
            known = ", ".join((*BUILT_IN, *(f"{package}:NAME" for package in PACKAGES)))
            raise NetworkError(f"model (={self.reference}) must be one of {known}, or path/net.py:factory for a network of your own")
        return file, factory


def import_file(file: Path) -> ModuleType:
    """The user's module. Their folders lie first on ``sys.path`` meanwhile, and last afterwards, for what it imports later."""
    name, folders, before = f"_network_{file.stem}_{sha256_of(file)[:12]}", [str(file.parent), str(Path.cwd())], list(sys.path)
    if name in sys.modules:
        return sys.modules[name]
    sys.path[:0] = folders
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a path that ends in .py always has a loader"
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    whole = False
    try:
        spec.loader.exec_module(module)
        whole = True
    finally:
        if not whole:
            del sys.modules[name]
        sys.path[:] = before + [folder for folder in folders if folder not in before]
    return module


def source_of(file: Path) -> str:
    """The hash of the user's file and of all that it imports beside it, so that an edit is noticed."""
    return digest_of(sorted(map(sha256_of, _users_files(file))))


def _users_files(file: Path) -> set[Path]:
    """``file`` and all files that its imports lead to beside it, below, or in the current folder; read as text, as nothing may run yet."""
    roots, found, waiting = (file.parent, Path.cwd()), set[Path](), [file]
    while waiting:
        current = waiting.pop()
        if current not in found and "site-packages" not in current.parts:
            found.add(current)
            waiting += _imported(current, roots)
    return found


def _imported(file: Path, roots: tuple[Path, ...]) -> Iterator[Path]:
    """The files below ``roots`` that Python finds for what ``file`` imports, compiled ones too, which themselves import nothing we see.

    ``from a.b import c``: a/__init__.py, a/b.py, a/b/c.py.
    """
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NetworkError(f"{file} cannot be imported: {first_line(error)}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, bases = [alias.name for alias in node.names], roots
        elif isinstance(node, ast.ImportFrom):
            names = [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
            bases = (file.parents[node.level - 1],) if 0 < node.level <= len(file.parents) else roots
        else:
            continue
        for name, base in itertools.product(names, bases):
            parts = name.split(".")
            modules = [base.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
            places = (place for one in modules for place in (one, one / "__init__"))
            yield from (path for place in places for suffix in all_suffixes() if (path := place.with_name(place.name + suffix)).is_file())
