"""Make a network that segments images smaller, in int8 or without some of its channels, by a score of your own.

This file makes a small network of random shapes, ``segmentation.onnx``, in a few seconds; yours comes from your own code. ``load`` and
``iou`` are what `--data` and `--score` name::

    python segmentation.py
    compress quantize --onnx segmentation.onnx --data segmentation.py:load --score segmentation.py:iou --max-drop 0.01
    compress remove-channels --onnx segmentation.onnx --data segmentation.py:load --score segmentation.py:iou --max-macs 0.6x --epochs 0
    compress benchmark segmentation.onnx --data segmentation.py:load --score segmentation.py:iou --quick --out measured
    compress compare measured/benchmark.json measured/benchmark.json --fail-if-less-accurate 0.01
"""

import numpy as np
import torch
from torch import nn

CLASSES = 3  # background, red, green


def load():
    """400 pictures, uint8 (N, 3, 32, 32), and the class of each pixel, (N, 32, 32)."""
    random = np.random.default_rng(0)
    images, masks = random.integers(0, 60, (400, 3, 32, 32)).astype(np.uint8), np.zeros((400, 32, 32), np.int64)
    for image, mask in zip(images, masks, strict=True):
        for kind in (1, 2):
            top, left, height, width = *random.integers(2, 18, 2), *random.integers(6, 13, 2)
            place = slice(top, top + height), slice(left, left + width)
            image[kind - 1][place] += np.uint8(120)
            mask[place] = kind
    return images, masks


def iou(outputs, targets):
    """Mean over the classes of intersection by union, counted over the pixels of all images that it is called with."""
    said = outputs.argmax(axis=1)
    return np.mean([((said == k) & (targets == k)).sum() / max(1, ((said == k) | (targets == k)).sum()) for k in range(CLASSES)])


def make():
    """Images in [0, 1], float32 (B, 3, 32, 32), to a number per class and pixel, (B, 3, 32, 32)."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, CLASSES, 1)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    images, masks = (torch.from_numpy(part) for part in load())
    network, images = make(), images.float() / 255
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(80):
        some = torch.randint(len(images), (32,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[some]), masks[some]).backward()
        optimiser.step()
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(network.eval(), (images[:2],), "segmentation.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)
