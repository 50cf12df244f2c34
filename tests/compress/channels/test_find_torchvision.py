"""Other people's networks: half of the channels of torchvision's classifiers go, and what is left computes what it should.

A few by default; all fifteen with ``COMPRESS_ALL_NETWORKS=1`` (a minute). MACs and parameters are of random weights and say nothing
of accuracy.
"""

import os
import warnings

import pytest
import torch
import torchvision
from torch import nn

from compress.artifacts.cost import count_cost
from compress.channels.choose import Choice, choose
from compress.channels.cut import cut_to, remove_channels, surgery_error
from compress.channels.find import channel_groups
from compress.channels.scores import importance

QUICK = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0", "convnext_tiny")
OTHERS = ("resnext50_32x4d", "wide_resnet50_2", "vgg11_bn", "densenet121", "mobilenet_v2", "mnasnet1_0", "squeezenet1_1", "googlenet")
ALL = (*QUICK, *OTHERS, "inception_v3", "efficientnet_b0", "regnet_y_400mf")
SIZES = {"inception_v3": 299, "googlenet": 96, "vgg11_bn": 64}


def make(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce another initialisation
        return torchvision.models.get_model(name, weights=None)


@pytest.mark.parametrize("name", ALL if os.environ.get("COMPRESS_ALL_NETWORKS") else QUICK)
def test_half_of_a_torchvision_network(name: str) -> None:
    torch.manual_seed(0)
    network = make(name).eval()
    image = torch.rand(2, 3, *[SIZES.get(name, 64)] * 2)
    groups = channel_groups(network, image)
    keep = choose(groups, importance(network, groups), 0.5, Choice(scope="group"))
    pruned = remove_channels(network, groups, keep)
    assert surgery_error(network, pruned, groups, keep) < 1e-4
    before, after = count_cost(network, image), count_cost(pruned, image)
    assert after.params < 0.56 * before.params and after.macs < 0.56 * before.macs
    with torch.no_grad():
        wanted = pruned(image)
    assert wanted.shape == (2, 1000)
    stored = pruned.state_dict()
    rebuilt = cut_to(make(name), {key: value.shape for key, value in stored.items()}).eval()
    rebuilt.load_state_dict(stored)
    with torch.no_grad():
        assert torch.equal(rebuilt(image), wanted)
    outputs = pruned.train()(image)
    sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else [outputs]) if output is not None).backward()
