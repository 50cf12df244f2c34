"""Networks that the tests of generated C share: ours with the weights that come with the package, others small and random; real digits."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from real_data import DATA
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from static_int8 import quantize_static
from torch import Tensor, nn

import compress
from compress.graphs.export import export_onnx
from compress.graphs.file import Level, open_session
from compress.graphs.probe import with_outputs
from compress.models import emnist, k49

WEIGHTS = Path(compress.__file__).parent / "weights"


class Pixels(nn.Module):
    """uint8 to float32 in [0, 1]."""

    def forward(self, image: Tensor) -> Tensor:
        return image.float() / 255


class Mixed(nn.Module):
    """What ours do not have: padding at the end only, groups, dilation, other activations, sizes that are no multiples."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 20, 3, 2, 1), nn.Hardswish())
        self.wide = nn.Sequential(nn.Conv2d(20, 20, 5, 1, 4, groups=20, dilation=2), nn.ReLU6())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(20, 6, 1), nn.ReLU(), nn.Conv2d(6, 20, 1), nn.Hardsigmoid())
        self.down = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.Conv2d(20, 36, 3, 2, groups=4), nn.SiLU())
        self.short = nn.Conv2d(20, 36, 1, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(36)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(36 * 3 * 3, 24), nn.GELU(), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.stem(x))
        x = x * self.gate(x)
        return self.head(self.norm(self.pool(torch.relu(self.down(x) + self.short(x)))))


class Residual(nn.Module):
    """Two blocks of 3x3 convolutions with a sum, as in ResNet: the sum of int8 tensors was what gcc 12.2 deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        return self.head(x.mean(dim=(2, 3)))


SHAPES = {"k49": (1, 28, 28), "emnist": (1, 28, 28), "mixed": (3, 21, 21), "residual": (3, 32, 32)}


def network(name: str) -> nn.Module:
    """One of ``SHAPES``, in eval mode."""
    torch.manual_seed(0)
    if name in ("k49", "emnist"):
        made: nn.Module = (k49 if name == "k49" else emnist).make(47)
        made.load_state_dict(load_file(WEIGHTS / name / "weights.safetensors"))
    else:
        made = Mixed() if name == "mixed" else Residual()
    return made.eval()


@functools.cache
def images(name: str, count: int = 200) -> np.ndarray:
    """uint8 (N, C, H, W): digits, of EMNIST where it is, else of scikit-learn; for colours, three of them one over the other."""
    file = DATA / "emnist47" / "emnist47-test-imgs.npz"
    if file.exists():
        found = np.load(file)["arr_0"][: 3 * count]
    else:
        small = (load_digits().images[: 3 * count] * 15.9).astype(np.uint8)
        found = np.pad(small.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))
    channels, height, width = SHAPES[name]
    found = np.pad(found, ((0, 0), (0, max(0, height - 28)), (0, max(0, width - 28))))[:, :height, :width]
    return np.ascontiguousarray(found[: count * channels].reshape(count, channels, height, width))


@functools.cache
def model(name: str, *, int8: bool = False) -> onnx.ModelProto:
    """A network as a float32 graph, or with everything in int8 that ONNX Runtime quantizes."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        if int8:
            source.write_bytes(model(name).SerializeToString())
            quantize_static(source, target, images(name)[:64])
            return onnx.load(target)
        export_onnx(network(name), source, prepare=Pixels(), example=torch.from_numpy(images(name)[:2]), metadata={})
        return onnx.load(source)


def with_integers(name: str) -> onnx.ModelProto:
    """An int8 network with its logits, and then all of its integers, as outputs."""
    made = model(name, int8=True)
    integers = [node.output[0] for node in made.graph.node if node.op_type == "QuantizeLinear"]
    return with_outputs(made, [made.graph.output[0].name, *integers])


def answers(model: onnx.ModelProto, batch: np.ndarray, *, as_written: bool = False) -> list[list[np.ndarray]]:
    """What ONNX Runtime gives for each image."""
    level = Level.ORT_DISABLE_ALL if as_written else Level.ORT_ENABLE_ALL
    session = open_session(model, "it", graph_optimization_level=level, intra_op_num_threads=1)
    return [session.run(None, {"image": one[None]}) for one in batch]
