"""Put a trained network into the package, where ``--pretrained`` finds it::

    python -m compress.cli.ship runs/k49/train/3f9a0c51be27 compress/weights/k49 --title "EMNIST-47 (project split)" --test

The artifact is copied with its metrics, time, versions and machine; its hash is made anew, as two things change. The data is called by its
name, since the path where it lay says nothing elsewhere. And ``reference.npz`` is added: images of noise, and the logits that the network
gives for them, so that a test notices when the network's code no longer computes what these weights were trained with.

Refused: what is not a trained built-in network, and weights of more than 4 MB.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..artifacts.artifact import Artifact, read_artifact, sealed, whole_artifact
from ..artifacts.context import Context
from ..artifacts.load import Prepare, load_network, load_runner
from ..artifacts.model_reference import ModelReference
from ..artifacts.parts import Scores
from ..errors import ArtifactError, CompressError
from ..train.fit import choose_device, predict_logits
from ..train.metrics import score
from .main import USER_ERRORS

MOST_BYTES = 4_000_000
REFERENCE = "reference.npz"
REFERENCE_IMAGES = 4


def ship(source: Path, target: Path, *, title: str | None = None, test: bool = False, data: str | None = None) -> Artifact:
    """Copy the trained network in ``source`` to ``target``.

    ``title``: what messages call the data; its name if not given. ``test``: score it on the test images, which ``data`` names where
    they no longer lie where the artifact says. Raises ArtifactError, or CompressError where the data is other data.
    """
    artifact = read_artifact(source, "network")
    about = artifact.manifest
    model = ModelReference.of(about.model)
    if about.stage != "train" or model is None or not model.is_built_in:
        raise ArtifactError(
            f"{source} is of stage {about.stage} and model {about.model.reference}; only trained built-in networks are shipped"
        )
    if (size := artifact.payload.stat().st_size) > MOST_BYTES:
        raise ArtifactError(f"{artifact.payload} has {size:,} bytes, at most {MOST_BYTES:,} are shipped; train a smaller network")
    metrics = dataclasses.replace(about.metrics, test=_test(artifact, data)) if test else about.metrics
    record = dataclasses.replace(about.data, source=about.data.name, title=title or about.data.name)

    with whole_artifact(target) as folder:
        for name in about.files:
            shutil.copyfile(source / name, folder / name)
        images = noise(about.input.shape)
        np.savez(folder / REFERENCE, images=images, logits=load_runner(artifact, "cpu", 1)(images))
        manifest = sealed(dataclasses.replace(about, data=record, metrics=metrics), folder)
    return Artifact(path=target, manifest=manifest)


def noise(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The images of ``reference.npz``: uint8 (4, C, H, W), the same everywhere."""
    size = (REFERENCE_IMAGES, *shape)
    words = np.random.PCG64(0).random_raw(int(np.prod(size)))
    return (words >> np.uint64(56)).astype(np.uint8).reshape(size)


def _test(artifact: Artifact, data: str | None) -> Scores:
    about = artifact.manifest
    loaded, _ = Context(data=data).load_like(about, data or about.data.source)
    if loaded.fingerprint != about.data.fingerprint:
        raise CompressError(f"data (={loaded.name}) is not what {artifact.path} was trained on ({about.data.name}); name that with --data")
    device = choose_device("auto")
    logits = predict_logits(load_network(artifact), loaded.test.images, prepare=Prepare(about.input).to(device), device=device)
    return Scores(**score(loaded.test.labels, logits.argmax(axis=1), len(about.classes)))


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--title", help="What messages call the data.  [default: its folder's name]")
@click.option("--test", is_flag=True, help="Score the network on the test images, and record it.")
@click.option("--data", metavar="NAME|FOLDER", help="Where the data lies now, for --test.")
def main(source: Path, target: Path, **how: Any) -> None:
    """Copy the trained network in SOURCE to TARGET, compress/weights/MODEL."""
    from .tables import show_artifact

    try:
        show_artifact(ship(source, target, **how), False)
    except USER_ERRORS as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
