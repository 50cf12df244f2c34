"""Classifiers of torchvision and timm by their names: how they are made, what images they were trained on, and their trained weights.

Their weights come through the packages' own downloads, which check them, into the packages' own caches. timm is not installed by itself.

Refused: a name that the package does not have (the nearest is named), one without trained weights where these are asked for, a download
that fails.
"""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

from torch import hub, nn
from torchvision import models

from .errors import ModelError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def factory(package: str, name: str) -> Callable[..., nn.Module]:
    """What makes a new network of the package for ``classes`` classes; other options go to the package."""
    _check(package, name)

    def make(classes: int, **options: Any) -> nn.Module:
        if package == "timm":
            return _timm().create_model(name, num_classes=classes, **options)
        if name in ("googlenet", "inception_v3"):  # which warn of a change that never came unless they are told
            options.setdefault("init_weights", True)
        return models.get_model(name, weights=None, num_classes=classes, **options)

    return make


def images(package: str, name: str) -> dict[str, Any]:
    """What its trained weights take, nothing where the package does not say.

    ``shape`` (C, H, W), ``mean`` and ``std`` per channel in units of [0, 1], and how pictures came to that: ``way``, ``crop`` (the share of
    a side that is seen), ``interpolation``.
    """
    _check(package, name)
    if package == "timm":
        about = _timm().get_pretrained_cfg(name)
        if about is None:
            return {}
        shape, crop, interpolation = about.input_size, about.crop_pct, about.interpolation
    else:
        if not len(known := models.get_model_weights(name)):
            return {}
        about = known.DEFAULT.transforms()
        [size], [whole] = about.crop_size, about.resize_size
        shape, crop, interpolation = (3, size, size), size / whole, about.interpolation.value
    found: dict[str, Any] = {"shape": tuple(shape), "mean": tuple(about.mean), "std": tuple(about.std), "way": "crop"}
    return found | {"crop": min(1.0, crop), "interpolation": interpolation if interpolation in INTERPOLATIONS else "bicubic"}


def trained_weights(package: str, name: str, cache: Path) -> Path:
    """The file of its trained weights, of the classes that it was trained on; downloaded where it is not there yet.

    ``cache``: where those of timm are put, which come in several forms.
    """
    _check(package, name)
    try:
        if package == "torchvision":
            known = models.get_model_weights(name)
            if not len(known):
                raise ModelError(
                    f"pretrained: torchvision has no weights of {name}; train it from the start, or name a file with --weights"
                )
            file = Path(hub.get_dir(), "checkpoints", Path(urlparse(known.DEFAULT.url).path).name)
            known.DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True)
            return file
        file = cache / "timm" / f"{name}.safetensors"
        if not file.exists():
            from safetensors.torch import save_file

            network = _timm().create_model(name, pretrained=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.part")
            save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, partial)
            partial.replace(file)
        return file
    except UnpicklingError as error:
        raise ModelError(f"pretrained: the weights of {package}:{name} cannot be read ({_first(error)}); remove {file}") from error
    except (OSError, RuntimeError) as error:
        told = f"could not be downloaded ({_first(error)}); put them at {file}"
        raise ModelError(f"pretrained: the weights of {package}:{name} {told}") from error


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _check(package: str, name: str) -> None:
    known: Sequence[str] = _timm().list_models() if package == "timm" else models.list_models(module=models)
    plain = name.split(".")[0] if package == "timm" else name  # behind the point: which weights
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {len(known)}, such as {known[0]}"
        raise ModelError(f"model (={package}:{name}): {package} has no such classifier; {hint}")


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModelError("model: networks of timm need that package, which is not here: pip install 'compress-edge[timm]'") from error
    return timm
