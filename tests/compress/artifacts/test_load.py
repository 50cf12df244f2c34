"""Networks from references, and weights from files. The truth is the tensors that were saved, and arithmetic by hand."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stand_ins import recorded, write_artifact
from torch import Tensor, nn

from compress.artifacts.artifact import Artifact, InputSpec, Manifest
from compress.artifacts.load import Prepare, build_network, load_network, load_runner, load_weights
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.parts import Model
from compress.errors import NetworkError

SMALL = InputSpec(shape=(1, 4, 4))
NET = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes, width=2):
        super().__init__(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(4 * width, classes))

class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.kept = nn.Linear(16, 3), None

    def forward(self, x):
        if self.kept is None:
            self.kept = torch.ones(16)
        return self.linear(x.flatten(1) * self.kept)

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Net(3)

    def forward(self, x):
        return self.module(x)

class Strict(Net):
    def forward(self, x):
        assert x.shape[1:] == (1, 4, 4), "wants 4x4"
        return super().forward(x)

def make(classes, width=2): return Net(classes, width)
def fixed(): return Net(3)
def everything(**options): return Net(**options)
def no_module(classes): return "a network"
def raises(classes): raise ValueError("cannot be made\\nfor a long reason")
def lazy(classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
def headless(classes): return nn.Conv2d(1, 2, 3)
class Two(Net):
    def forward(self, x): return super().forward(x), x
def two(classes): return Two(classes)

class Heads(Net):
    answer = tuple  # what is made of the logits and those of an auxiliary head, in training only

    def __init__(self, classes):
        super().__init__(classes)
        self.aux = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))

    def forward(self, x):
        main = nn.Sequential(*list(self)[:4])(x)
        return type(self).answer((main, self.aux(x))) if self.training else main

class Dictionary(Heads): answer = staticmethod(lambda both: dict(zip(("logits", "aux"), both)))
class Missing(Heads): answer = staticmethod(lambda both: (None, both[1]))
class Odd(Heads): answer = staticmethod(lambda both: (both[0], both[1][:, :1]))
class Failing(Heads): answer = staticmethod(lambda both: both[2])
class Absent(Heads): answer = staticmethod(lambda both: [both[0], None])

class Mixing(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.first, self.mix, self.last = nn.Sequential(nn.Flatten(), nn.Linear(16, 8)), mix, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.mix(self.first(x)))

class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

def odd(kind):
    network = Net(5)
    values = {"nan": network[0].weight * float("nan"), "inf": network[0].weight / 0, "meta": network[0].weight.to("meta"),
              "complex": network[0].weight * 1j, "sparse": network[0].weight.to_sparse()}
    network[0].weight = nn.Parameter(values[kind].detach())
    return network

class Extra(Net):
    def get_extra_state(self): return {"note": 1}
    def set_extra_state(self, state): pass

class Masked(Net):
    def __init__(self):
        super().__init__(3)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    def forward(self, x): return nn.Sequential(*list(self)[:4])(x)

def batch_norm(): return Mixing(nn.BatchNorm1d(8, track_running_stats=False))
def softmax(): return Mixing(nn.Softmax(0))
def centred(): return Mixing(Function(lambda x: x - x.mean(0)))
def greatest(): return Mixing(Function(lambda x: x / x.abs().max()))
def first(): return Mixing(Function(lambda x: x - x[:1]))
def cumulated(): return Mixing(Function(lambda x: x.cumsum(0)))
def turned(): return Mixing(Function(lambda x: x.flip(0)))
def drawn(): return Mixing(Function(lambda x: nn.functional.dropout(x)))

class Bare(Mixing):
    def forward(self, x): return super().forward(x) - super().forward(x).mean()
def bare(): return Bare(nn.Identity())
def branching(): return Mixing(Function(lambda x: nn.functional.normalize(x) if len(x) > 1 else x / x.norm()))
def attention():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    return Mixing(Function(lambda x: layer(x[:, None], x[:, None], x[:, None])[0][:, 0]))
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelReference]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return lambda factory="make", **options: ModelReference(reference=f"{tmp_path / 'net.py'}:{factory}", options=options)


def linear(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 2)


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_prepare_by_hand() -> None:
    """Pixel 51 is 0.2 of 255: (0.2 - 0.5) / 0.25 = -1.2; and 0 gives -2, 255 gives 2."""
    prepared = Prepare(InputSpec(mean=(0.5,), std=(0.25,)))(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8))
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared, torch.tensor([[[[-2.0, -1.2, 2.0]]]]))


def test_prepare_per_channel_by_hand() -> None:
    spec = InputSpec(shape=(3, 1, 1), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    pixels = torch.tensor([255, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(Prepare(spec)(pixels).flatten(), torch.tensor([1.0, 1.0, -4.0]))


def test_prepare_without_mean_is_a_multiplication_only() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(Prepare(InputSpec())(every), every.float() * torch.tensor(1 / 255))


@pytest.mark.parametrize(
    ("factory", "options", "width", "classes"),
    [("make", {}, 2, 5), ("make", {"width": 4}, 4, 5), ("everything", {"width": 3}, 3, 5), ("fixed", {}, 2, 3), ("Net", {}, 2, 7)],
)
def test_a_users_factory_gets_classes_if_it_takes_them(
    user: Callable[..., ModelReference], factory: str, options: dict[str, Any], width: int, classes: int
) -> None:
    network = build_network(user(factory, **options), classes, SMALL)
    assert network.training and network.state_dict()["3.weight"].shape == (classes, 4 * width)


@pytest.mark.parametrize("name", ["k49", "emnist"])
def test_a_built_in_network_comes_by_the_same_door(name: str) -> None:
    network = build_network(ModelReference(reference=name, options={"dropout": 0.5}), 10, InputSpec())
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5]


@pytest.mark.parametrize("factory", ["Caching", "lazy"])
def test_a_network_that_makes_tensors_in_its_first_call_can_be_trained(user: Callable[..., ModelReference], factory: str) -> None:
    network = build_network(user(factory), 3, SMALL)
    network(torch.rand(2, 1, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("factory", "options", "spec", "told"),
    [
        ("make", {"wdith": 3}, SMALL, r"net\.py:make\): its factory takes no wdith; it takes classes, width"),
        ("fixed", {"width": 3}, SMALL, r"its factory takes no width; it takes nothing"),
        ("everything", {"depth": 3}, SMALL, r"the factory failed: TypeError: .*depth"),
        ("no_module", {}, SMALL, r"the factory returned a str, a torch\.nn\.Module is needed"),
        ("raises", {}, SMALL, r"the factory failed: ValueError: cannot be made$"),
        ("fixed", {}, SMALL, r"returned shape \(2, 3\) for 2 images; logits of shape \(2, 5\) are needed, one per class of the data"),
        ("headless", {}, SMALL, r"returned shape \(2, 2, 2, 2\) for 2 images"),
        ("two", {}, SMALL, r"returned a tuple for 2 images"),
        ("make", {}, InputSpec(), r"fails on float32 images \(2, 1, 28, 28\): RuntimeError: .*; --image-shape \(=1x28x28\) must be what"),
        ("make", {}, InputSpec(shape=(3, 4, 4)), r"fails on float32 images \(2, 3, 4, 4\): "),
        *(
            ("odd", {"kind": kind}, SMALL, r"\) has 0\.weight, that is no finite float weight; make them dense float32, on the CPU")
            for kind in ("nan", "inf", "meta", "complex", "sparse")
        ),
        ("Extra", {}, SMALL, r"\) has _extra_state, that is no finite float weight"),
        ("Dictionary", {}, SMALL, r"returned a dict for 2 images in training; logits of shape \(2, 5\) are needed"),
        ("Missing", {}, SMALL, r"returned a NoneType for 2 images in training"),
        ("Odd", {}, SMALL, r"returned shape \(2, 1\) for 2 images in training"),
        ("Failing", {}, SMALL, r"fails in training on float32 images \(2, 1, 4, 4\): IndexError"),
        ("Strict", {}, InputSpec(), r"fails on float32 images \(2, 1, 28, 28\): AssertionError: wants 4x4; --image-shape"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused(
    user: Callable[..., ModelReference], factory: str, options: dict[str, Any], spec: InputSpec, told: str
) -> None:
    with pytest.raises(NetworkError, match=told) as refused:
        build_network(user(factory, **options), 5, spec)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("factory", ["Heads", "Absent"])
def test_a_network_with_heads_that_answer_in_training_is_as_it_was_before_it_was_looked_at(
    user: Callable[..., ModelReference], factory: str
) -> None:
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    network = build_network(user(factory), 3, SMALL)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.get_rng_state()) and all(module.training for module in network.modules())
    assert torch.equal(network[1].running_mean, torch.zeros(2)) and network[1].num_batches_tracked == 0


@pytest.mark.parametrize("factory", ["batch_norm", "softmax", "centred", "greatest", "first", "cumulated", "turned", "drawn"])
def test_a_network_that_mixes_the_images_of_a_batch_is_refused_by_layer(user: Callable[..., ModelReference], factory: str) -> None:
    with pytest.raises(
        NetworkError, match=r': what "mix" makes of an image in eval mode depends on the others of its batch, or on chance,'
    ):
        build_network(user(factory), 3, SMALL)


def test_images_that_are_mixed_between_layers_are_refused_too(user: Callable[..., ModelReference]) -> None:
    with pytest.raises(NetworkError, match=r"what the network makes of an image .*; keep running statistics, .*, draw nothing$") as refused:
        build_network(user("bare"), 3, SMALL)
    assert len(str(refused.value).replace(user().reference, "net.py:bare")) < 300


@pytest.mark.parametrize("factory", ["branching", "attention"])
def test_a_network_that_computes_the_same_on_other_ways_is_taken(user: Callable[..., ModelReference], factory: str) -> None:
    assert not build_network(user(factory), 3, SMALL)(torch.rand(2, 1, 4, 4)).isnan().any()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"colour": 1}, r"model \(=k49\): the factory failed: TypeError: .*colour"),
        ({"widths": 3}, r"model \(=k49\): the factory failed: TypeError"),
    ],
)
def test_a_wrong_option_of_a_built_in_network_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(NetworkError, match=told):
        build_network(ModelReference(reference="k49", options=options), 5, InputSpec())


def as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "w.safetensors")
    return folder / "w.safetensors"


def as_torch(state: object, folder: Path, name: str = "w.pt") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize(
    "save",
    [
        as_safetensors,
        as_torch,
        lambda state, folder: as_torch(state, folder, "w.pth"),
        lambda state, folder: as_torch({"epoch": 3, "state_dict": state}, folder),
        lambda state, folder: as_torch({"model_state_dict": state, "optimizer": {"lr": 0.1}}, folder),
        lambda state, folder: as_torch({"model": {"state_dict": state}} | {"state_dict": state}, folder),
        lambda state, folder: as_torch({f"module.{name}": value for name, value in state.items()}, folder),
        lambda state, folder: as_torch({name: nn.Parameter(value) for name, value in state.items()}, folder),
    ],
    ids=["safetensors", "pt", "pth", "state_dict", "model_state_dict", "model", "DataParallel", "parameters"],
)
def test_saved_weights_come_back_bit_identical(save: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path) -> None:
    network = linear(1)
    load_weights(network, save(linear(2).state_dict(), tmp_path))
    assert same(network, linear(2)) and not same(network, linear(1))


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda state: state, ""),
        (lambda state: {f"_orig_mod.{name}": value for name, value in state.items()}, 'without "_orig_mod"'),
        (lambda state: {f"_orig_mod.module.{n}": value for n, value in state.items()}, 'without "_orig_mod", without "module"'),
        (lambda state: {"state_dict": {f"model.{n}": v for n, v in state.items()}, "epoch": 3}, 'its "state_dict", without "model"'),
        (
            lambda state: {"state_dict": {f"model.{n}": v for n, v in state.items()} | {"loss.weight": torch.ones(2)}},
            'its "state_dict", without "model", without loss.weight',
        ),
        (lambda state: {f"backbone.net.{name}": value for name, value in state.items()}, 'without "backbone.net"'),
        (lambda state: {"model_ema": state, "epoch": 3}, 'its "model_ema"'),
        (lambda state: {"model_ema": {"weight": 1}, "model": state}, 'its "model", not its "model_ema"'),
        (
            lambda state: {"model_ema": {f"module.{n}": v for n, v in state.items()} | {"n_averaged": torch.tensor(3)}},
            'its "model_ema", without "module", without n_averaged',
        ),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.ckpt"])
def test_wrappers_are_taken_off_and_said(wrap: Callable[[dict[str, Tensor]], object], told: str, name: str, tmp_path: Path) -> None:
    network = linear(1)
    assert load_weights(network, as_torch(wrap(linear(2).state_dict()), tmp_path, name)) == told
    assert same(network, linear(2))


def test_layers_that_were_compiled_or_shared_out_alone_get_their_names_back(tmp_path: Path) -> None:
    first, second = (nn.Sequential(linear(seed), nn.Sequential(linear(seed + 1))) for seed in (0, 5))
    names = {"0.weight": "0._orig_mod.weight", "1.0.bias": "1.module.0.bias"}
    state = {names.get(name, name): value for name, value in first.state_dict().items()}
    assert load_weights(second, as_torch(state, tmp_path)) == 'without "_orig_mod", without "module"'
    assert same(first, second)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"model.extra": torch.ones(1)}, r"does not fit the network: unexpected: model\.extra;"),
        (
            {"ema.weight": torch.ones(2, 3), "ema.bias": torch.ones(2)},
            r"holds several networks, model\., ema\.; save the state_dict of one",
        ),
    ],
)
def test_what_stands_among_the_layers_of_a_wrapped_network_is_refused(extra: dict[str, Tensor], told: str, tmp_path: Path) -> None:
    network = linear(1)
    with pytest.raises(NetworkError, match=told):
        load_weights(network, as_torch({f"model.{name}": value for name, value in linear(2).state_dict().items()} | extra, tmp_path))
    assert same(network, linear(1))


def test_a_network_whose_own_child_is_called_module_keeps_its_names(user: Callable[..., ModelReference], tmp_path: Path) -> None:
    first, second = (build_network(user("Wrapped"), 3, SMALL) for _ in range(2))
    load_weights(second, as_safetensors(first.state_dict(), tmp_path))
    assert same(first, second)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("bias"), r"w\.pt does not fit the network: missing: bias; the --model and its options must be those"),
        (lambda s: s.update(extra=torch.ones(1)), r"does not fit the network: unexpected: extra;"),
        (lambda s: s.update(weight=torch.ones(2, 4)), r"mis-shaped: weight \(2, 4\) instead of \(2, 3\);"),
        (
            lambda s: (s.pop("bias"), s.update({f"layer{i}": torch.ones(1) for i in range(6)})),
            r"missing: bias; unexpected: layer0, layer1, layer2, layer3 and 2 more;",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Callable[[dict[str, Tensor]], object], told: str, tmp_path: Path) -> None:
    state, network = dict(linear(2).state_dict()), linear(1)
    change(state)
    with pytest.raises(NetworkError, match=told):
        load_weights(network, as_torch(state, tmp_path))
    assert same(network, linear(1)), "nothing of it was loaded"


class Harmful:
    """Unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("wrap", [lambda thing: thing, lambda thing: {"state_dict": linear().state_dict(), "hook": thing}])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_is_refused_and_not_executed(wrap: Callable[[Any], Any], new_format: bool, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save(wrap(Harmful(marker)), tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(NetworkError, match=r"w\.pt\) holds more than tensors, or is no torch file; save network\.state_dict\(\)"):
        load_weights(linear(), tmp_path / "w.pt")
    assert not marker.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="holds more than tensors"):
        load_weights(linear(), as_torch(linear(), tmp_path))


@pytest.mark.parametrize("what", [[1, 2], {}, {"epoch": 3}, {0: torch.ones(1)}, torch.ones(3)])
def test_a_torch_file_without_a_state_dict_is_refused(what: object, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"weights \(=.*w\.pt\) holds no state dict \(names to tensors\)"):
        load_weights(linear(), as_torch(what, tmp_path))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.2, 0.5, 0.9, 0.99])
def test_a_truncated_torch_file_is_refused(fraction: float, legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(linear().state_dict(), file, _use_new_zipfile_serialization=not legacy)
    file.write_bytes(file.read_bytes()[: int(fraction * file.stat().st_size)])
    with pytest.raises(NetworkError, match=r"w\.pt\) (is not a whole torch file|holds more than tensors, or is no torch file)") as refused:
        load_weights(linear(), file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40, None], ids=["empty", "text", "noise", "truncated"])
def test_a_damaged_safetensors_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = as_safetensors(linear().state_dict(), tmp_path)
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    with pytest.raises(NetworkError, match=r"w\.safetensors\) is not a whole safetensors file: "):
        load_weights(linear(), file)


@pytest.mark.parametrize(
    ("name", "told"),
    [("w.onnx", r"weights \(=.*w\.onnx\) must end in \.safetensors, \.pt, \.pth or \.ckpt"), ("none.pt", "there is no such file")],
)
def test_another_kind_of_file_or_none_is_refused(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(NetworkError, match=told):
        load_weights(linear(), tmp_path / name)


def save(model: ModelReference, network: nn.Module, folder: Path) -> Artifact:
    def make(target: Path) -> Manifest:
        save_file(network.state_dict(), target / "weights.safetensors")
        about = {"kind": "network", "stage": "train", "key": "k", "config": {}, "data": recorded("digits")}
        return Manifest(**about, model=Model(**model.identity()), input=SMALL, classes=("a", "b", "c"))

    return write_artifact(folder / "artifact", make)


def test_a_network_artifact_reloads_bit_identical_and_leaves_the_generator_alone(
    user: Callable[..., ModelReference], tmp_path: Path
) -> None:
    model = user("make", width=4)
    network = build_network(model, 3, SMALL).eval()
    artifact = save(model, network, tmp_path)
    before = torch.random.get_rng_state()
    loaded = load_network(artifact)
    assert same(loaded, network) and not loaded.training
    assert torch.equal(torch.random.get_rng_state(), before)
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), dtype=np.uint8)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images).float() / 255).numpy()
    np.testing.assert_allclose(load_runner(artifact, "cpu", 1)(images), expected, atol=1e-6)


def test_an_edit_of_the_users_file_is_noticed(user: Callable[..., ModelReference], tmp_path: Path) -> None:
    model = user("make")
    artifact = save(model, build_network(model, 3, SMALL), tmp_path)
    (tmp_path / "net.py").write_text(NET.replace("width=2", "width=8"), encoding="utf-8")
    with pytest.raises(NetworkError, match=r"net\.py:make was changed since .*artifact was made from it; put it back, or train again"):
        load_network(artifact)
    (tmp_path / "net.py").unlink()
    with pytest.raises(NetworkError, match=r"there is no file .*net\.py"):
        load_network(artifact)


def test_an_edit_of_a_module_that_the_network_imports_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocks_of_mine.py").write_text("WIDTH = 3\nimport json, torch\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nimport blocks_of_mine\ndef make_net(): return nn.Linear(1, blocks_of_mine.WIDTH)\n"
    )
    source = ModelReference(reference="net.py:make_net").identity()["source"]
    assert ModelReference(reference="net.py:make_net").identity()["source"] == source
    (tmp_path / "blocks_of_mine.py").write_text("WIDTH = 4\nimport json, torch\n")
    assert ModelReference(reference="net.py:make_net").identity()["source"] != source


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.to_sparse(),
        lambda value: torch.empty(2, 3, device="meta"),
        lambda value: value * float("nan"),
        lambda value: value / 0,
        lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.int8),
        lambda value: value.double() * 1e300,
        lambda value: value.to_sparse_csr(),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        lambda value: value.to(torch.float8_e4m3fn),
        lambda value: torch.nested.nested_tensor([value[0], value[1]]),
        lambda value: value > 0,
    ],
    ids=["sparse", "meta", "NaN", "infinite", "complex", "int8", "large", "csr", "quantized", "float8", "nested", "bool"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of kinds of tensors that are in beta or on their way out
def test_a_tensor_that_is_no_finite_float_weight_is_named(change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    state, network = dict(linear(2).state_dict()), linear(1)
    with pytest.raises(NetworkError, match=r"w\.pt\) holds weight, that is no finite float weight; save the state_dict"):
        load_weights(network, as_torch(state | {"weight": change(state["weight"])}, tmp_path))
    assert same(network, linear(1)), "nothing of it was loaded"


def test_a_mask_whose_infinities_the_network_has_itself_is_no_damage(user: Callable[..., ModelReference], tmp_path: Path) -> None:
    first, second = (build_network(user("Masked"), 3, SMALL) for _ in range(2))
    load_weights(second, as_torch(first.state_dict(), tmp_path))
    assert same(first, second)
    with pytest.raises(NetworkError, match="holds mask, that is no finite float weight"):
        load_weights(second, as_torch(first.state_dict() | {"mask": -first.mask}, tmp_path))


def test_counters_that_the_network_has_as_whole_numbers_are_welcome_and_no_others(tmp_path: Path) -> None:
    one, two = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    one.num_batches_tracked += 7
    load_weights(two, as_torch(one.state_dict(), tmp_path))
    assert int(two.num_batches_tracked) == 7
    with pytest.raises(NetworkError, match="holds num_batches_tracked, that is no finite float weight"):
        load_weights(two, as_torch(one.state_dict() | {"num_batches_tracked": torch.tensor(float("nan"))}, tmp_path))


def test_a_torch_file_that_declares_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    file = as_torch(linear().state_dict(), tmp_path)
    with zipfile.ZipFile(file) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in (members | {"w/data/9": bytes(2**24)}).items():
            archive.writestr(entry, content)
    with pytest.raises(NetworkError, match="it declares more than it holds"):
        load_weights(linear(), file)


def test_many_long_names_make_one_short_line(tmp_path: Path) -> None:
    state = {f"{'x' * 400}\n{index}": torch.zeros(1) for index in range(9)}
    with pytest.raises(NetworkError, match=r"does not fit the network: missing: .*\.\.\.; the --model") as told:
        load_weights(linear(), as_torch(state, tmp_path))
    message = str(told.value).replace(str(tmp_path), "")
    assert "\n" not in message and len(message) <= 160 + 100


def test_a_head_of_other_classes_is_left_out_where_it_will_be_trained(tmp_path: Path) -> None:
    theirs, ours = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, count)) for count in (1000, 3))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    file = as_torch(theirs.state_dict(), tmp_path)
    assert load_weights(ours, file, classes=3) == "without 2 of 1000 classes: what reads 3 is new"
    after = ours.state_dict()
    assert torch.equal(after["0.weight"], theirs[0].weight) and torch.equal(after["2.weight"], before["2.weight"])
    for classes, network in ((None, ours), (3, nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))):
        with pytest.raises(NetworkError, match="does not fit the network: mis-shaped: "):
            load_weights(network, file, classes=classes)
