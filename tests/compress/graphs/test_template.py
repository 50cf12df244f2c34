"""Weights filled into a graph that was exported before, against what the exporter makes of the same network, and its own logits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.channels.cut import remove_channels
from compress.channels.find import channel_groups
from compress.graphs.export import export_onnx
from compress.graphs.template import Template
from compress.models import emnist, k49

SIZE = 28
EXAMPLE = torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Scale(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (image.float() / 255 - 0.2) / 0.4


class Shuffled(nn.Module):
    """A width in the middle of a reshape, as ShuffleNet has it; a grouped convolution; a flattened end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped, self.last = nn.Conv2d(1, 16, 3, 4), nn.Conv2d(16, 16, 3, groups=8), nn.Linear(16 * 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.last(x.flatten(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "k49": lambda: k49.make(5, widths=(8, 16), depths=(1, 1)),
    "emnist": lambda: emnist.make(5, channels=(8, 12), hidden=16),
    "shuffled": Shuffled,
}


def logits(path: Path) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(path).run(["logits"], {"image": EXAMPLE.numpy()})[0]
    return found


def wanted(network: nn.Module) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = network.eval()(Scale()(EXAMPLE)).numpy()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_gets_the_graph_that_the_exporter_makes_of_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    with torch.no_grad():
        network(Scale()(EXAMPLE))  # batch norm statistics that are not the initial ones
    groups = channel_groups(network.eval(), Scale()(EXAMPLE))
    cut = remove_channels(network, groups, {group.name: range(0, group.width, 2) for group in groups})
    template = Template(Scale(), EXAMPLE)
    whole, filled, exported = (tmp_path / f"{kind}.onnx" for kind in ("whole", "filled", "exported"))
    assert template.write(network, whole), "the first needs an export"
    alone = template.write(cut, filled)
    export_onnx(cut, exported, prepare=Scale(), example=EXAMPLE, metadata={})
    assert alone == (name == "shuffled"), "which number of several the width is in is not known"
    assert [node.op_type for node in onnx.load(filled).graph.node] == [node.op_type for node in onnx.load(exported).graph.node]
    for path, one in ((whole, network), (filled, cut)):
        assert np.allclose(logits(path), wanted(one), atol=1e-5)
    sizes = [
        sorted(tuple(weight.dims) for weight in onnx.load(path).graph.initializer if weight.data_type == 1) for path in (filled, exported)
    ]
    assert sizes[0] == sizes[1]


def test_networks_of_other_modules_need_exports_of_their_own_and_each_one_only(tmp_path: Path) -> None:
    network = NETWORKS["emnist"]()
    bypassed = NETWORKS["emnist"]()
    bypassed.dropout = nn.Identity()
    template = Template(Scale(), EXAMPLE)
    assert [template.write(one, tmp_path / "a.onnx") for one in (network, bypassed, network, bypassed)] == [True, True, False, False]


def test_a_graph_that_computes_something_else_is_not_taken(tmp_path: Path) -> None:
    """The same modules and shapes, but another stride: the weights fit, the logits do not."""
    networks = [nn.Sequential(nn.Conv2d(1, 4, 3, stride), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)) for stride in (1, 3)]
    template = Template(Scale(), EXAMPLE)
    assert [template.write(one, tmp_path / f"{number}.onnx") for number, one in enumerate(networks)] == [True, True]
    assert np.allclose(logits(tmp_path / "1.onnx"), wanted(networks[1]), atol=1e-5)
