"""A classifier that somebody else trained and exported."""

import warnings
from pathlib import Path

import torch
from torch import nn

from compress.train.sources import load_data

NORMALISED = ("--mean", "0.5", "--std", "0.25")


def foreign(path: Path, opset: int = 18) -> Path:
    """A small classifier of 28x28 images, trained a little, as torch exports it: float32 in [0, 1] normalised by 0.5 and 0.25."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
    data = load_data("digits")
    images = (torch.from_numpy(data.train.images.copy()).float() / 255 - 0.5) / 0.25
    labels = torch.from_numpy(data.train.labels.copy())
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimiser.step()
    with warnings.catch_warnings():
        # torch 2.11's own use of a deprecated class
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        program = torch.onnx.export(
            network.eval(), (images[:2],), dynamo=True, opset_version=opset, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False
        )
    assert program is not None
    program.save(path)
    return path
