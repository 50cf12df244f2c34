"""Quantize a network that finds boxes, with two outputs, by a score of your own.

This file makes a small network, ``detection.onnx``, that finds bright squares, in a few seconds. Each image has another number of targets,
so they are a list::

    python detection.py
    compress quantize --onnx detection.onnx --data detection.py:load --score detection.py:found --max-drop 0.02
    compress remove-channels --onnx detection.onnx --data detection.py:load --score detection.py:found --max-macs 0.8x --epochs 0
    compress benchmark detection.onnx --data detection.py:load --score detection.py:found --quick --out measured
"""

import numpy as np
import torch
from torch import nn

SIDE, CELL = 32, 4  # pixels


def load():
    """Batches of images, uint8 (N, 1, 32, 32), and for each image its boxes, float32 (boxes, 4): left, top, right, bottom."""
    random = np.random.default_rng(0)
    for _ in range(8):
        images, targets = random.integers(0, 60, (50, 1, SIDE, SIDE)).astype(np.uint8), []
        for image in images:
            corners = random.integers(0, SIDE - 8, (random.integers(1, 3), 2))
            for left, top in corners:
                image[0, top : top + 8, left : left + 8] = 200
            targets.append(np.hstack([corners, corners + 8]).astype(np.float32))
        yield images, targets


def found(outputs, targets):
    """How well the boxes are met: the intersection by union of each with the best of the surest eight, on average over images."""
    scores = []
    for boxes, sure, wanted in zip(*outputs, targets, strict=True):
        best = boxes[np.argsort(-sure)[:8], None]
        sides = np.minimum(best[..., 2:], wanted[:, 2:]) - np.maximum(best[..., :2], wanted[:, :2])
        shared = sides.clip(0).prod(axis=-1)
        areas = [(one[..., 2:] - one[..., :2]).prod(axis=-1) for one in (best, wanted)]
        scores.append((shared / (areas[0] + areas[1] - shared)).max(axis=0).mean())
    return np.mean(scores)


class Detector(nn.Module):
    """float32 (B, 1, 32, 32) to boxes (B, 64, 4), one for each cell of a grid, and how sure each is, (B, 64)."""

    def __init__(self):
        super().__init__()
        layers = (nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU())
        self.body, self.box, self.sure = nn.Sequential(*layers), nn.Conv2d(32, 4, 1), nn.Conv2d(32, 1, 1)
        middle = torch.arange(SIDE // CELL) * CELL + CELL / 2
        self.register_buffer("middles", torch.stack(torch.meshgrid(middle, middle, indexing="xy"))[None])

    def forward(self, images):
        seen = self.body(images)
        offset, size = self.box(seen).chunk(2, 1)
        middle, half = self.middles + 8 * offset.tanh(), 4 * (size.tanh() / 2).exp()
        return torch.cat([middle - half, middle + half], 1).flatten(2).transpose(1, 2), self.sure(seen).flatten(1).sigmoid()


if __name__ == "__main__":
    torch.manual_seed(0)
    batches = list(load())
    images = torch.from_numpy(np.concatenate([part for part, _ in batches])).float() / 255
    boxes, there = torch.zeros(len(images), 64, 4), torch.zeros(len(images), 64)
    for number, target in enumerate(target for _, targets in batches for target in targets):
        left, top = ((target[:, :2] + 4) // CELL).clip(0, 7).T.astype(int)
        boxes[number, top * 8 + left], there[number, top * 8 + left] = torch.from_numpy(target), 1
    network = Detector()
    optimiser = torch.optim.Adam(network.parameters(), 0.005)
    for _ in range(200):
        some = torch.randint(len(images), (64,))
        optimiser.zero_grad()
        said, sure = network(images[some])
        missed = ((said - boxes[some]).abs().sum(2) * there[some]).sum() / there[some].sum()
        (nn.functional.binary_cross_entropy(sure, there[some], 1 + 9 * there[some]) + missed / 10).backward()
        optimiser.step()
    names, shapes = ["boxes", "sure"], ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        network.eval(), (images[:2],), "detection.onnx", output_names=names, dynamo=True, dynamic_shapes=shapes, verbose=False
    )
