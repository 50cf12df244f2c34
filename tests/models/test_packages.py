"""Networks of torchvision and timm by name: whose they are, what images they take, and where their weights come from."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import hub, nn

from compress.models.errors import ModelError
from compress.models.packages import factory, images, trained_weights


class Timm(SimpleNamespace):
    """What of timm is used, for one network."""

    def __init__(self) -> None:
        about = SimpleNamespace(input_size=(3, 64, 96), mean=(0.5,), std=(0.25,), crop_pct=0.95, interpolation="random")
        super().__init__(list_models=lambda: ["tiny"], get_pretrained_cfg=lambda name: about, create_model=self.create)

    def create(self, name: str, *, pretrained: bool = False, num_classes: int = 1000, **options: Any) -> nn.Module:
        return nn.Linear(4, num_classes, **options)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", Timm())


def test_a_network_of_torchvision_has_a_head_for_the_classes_at_hand() -> None:
    network = factory("torchvision", "mobilenet_v3_small")(classes=7)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert factory("torchvision", "squeezenet1_1")(classes=5, dropout=0.2).classifier[0].p == 0.2


def test_images_are_those_of_the_packages_own_transforms() -> None:
    """Truth: https://docs.pytorch.org/vision/stable/models: 224 of 232 (resnet50, IMAGENET1K_V2), 480 of 480 (efficientnet_v2_l)."""
    found = images("torchvision", "resnet50")
    assert found == {
        "shape": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "way": "crop", "crop": 224 / 232,
        "interpolation": "bilinear",
    }  # fmt: skip
    found = images("torchvision", "efficientnet_v2_l")
    assert found["shape"] == (3, 480, 480) and found["crop"] == 1 and found["interpolation"] == "bicubic" and found["mean"] == (0.5,) * 3


def test_timm_is_asked_likewise(timm: None, tmp_path: Path) -> None:
    assert images("timm", "tiny.some_weights") == {
        "shape": (3, 64, 96), "mean": (0.5,), "std": (0.25,), "way": "crop", "crop": 0.95, "interpolation": "bicubic"
    }  # fmt: skip
    assert factory("timm", "tiny")(classes=3, bias=False).weight.shape == (3, 4)
    file = trained_weights("timm", "tiny", tmp_path)
    assert file == tmp_path / "timm" / "tiny.safetensors" and [*file.parent.iterdir()] == [file]
    assert trained_weights("timm", "tiny", tmp_path) == file


def test_weights_of_torchvision_are_where_its_own_download_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    file.parent.mkdir()
    torch.save(factory("torchvision", "mobilenet_v3_small")(classes=1000).state_dict(), file)
    assert trained_weights("torchvision", "mobilenet_v3_small", tmp_path) == file


def test_a_file_in_the_packages_cache_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path / "ran").touch, ()

    monkeypatch.setattr(hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    file.parent.mkdir()
    torch.save({"features.0.0.weight": Evil()}, file)
    with pytest.raises(ModelError, match=r"mobilenet_v3_small cannot be read .*; remove .*mobilenet_v3_small-047dcff4\.pth"):
        trained_weights("torchvision", "mobilenet_v3_small", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_download_that_fails_says_where_the_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hub, "download_url_to_file", refused)
    with pytest.raises(
        ModelError, match=r"resnet18 could not be downloaded \(no route to host\); put them at .*/checkpoints/resnet18-.*\.pth"
    ):
        trained_weights("torchvision", "resnet18", tmp_path)


@pytest.mark.parametrize(
    ("package", "name", "told"),
    [
        ("torchvision", "mobilenet_v3_smal", r"no such classifier; did you mean mobilenet_v3_small or "),
        ("torchvision", "fcn_resnet50", r"no such classifier"),
        ("torchvision", "qqqq", r"no such classifier; it has \d+, such as alexnet"),
        ("timm", "tinny", r"model \(=timm:tinny\): timm has no such classifier; did you mean tiny\?"),
    ],
)
def test_a_name_that_is_none_is_refused(package: str, name: str, told: str, timm: None) -> None:
    with pytest.raises(ModelError, match=told):
        factory(package, name)


def test_without_timm_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"timm need that package, which is not here: pip install 'compress-edge\[timm\]'"):
        images("timm", "resnet18")
