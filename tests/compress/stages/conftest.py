"""What tests of several stages begin with: a small network of ours, trained for one epoch, and its graph."""

import pytest
from stand_ins import measured_briefly as measured_briefly

import compress
from compress.artifacts.artifact import Artifact


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> compress.Network:
    small = {"channels": [4, 8], "hidden": 16}
    return compress.open("emnist", data="digits", options=small, runs=tmp_path_factory.mktemp("runs"), device="cpu")


@pytest.fixture(scope="module")
def graph(network: compress.Network) -> Artifact:
    return network.export_onnx(network.train(epochs=1))
