"""Recipes and settings. The truth is what the recipe files and the command line say, in that order of weight."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compress.artifacts.recipe import RECIPES, TABLES, Recipe, load_recipe, training_config
from compress.artifacts.records import checked
from compress.benchmarks.run import BenchmarkConfig
from compress.errors import CompressError
from compress.stages.export import ExportConfig
from compress.stages.prune import PruneConfig
from compress.stages.quantize import QuantizeConfig
from compress.stages.run_all import SETTINGS, recipe_schema
from compress.train.settings import AugmentConfig, FitConfig

STAGES = {"train": FitConfig, "prune": PruneConfig, "export": ExportConfig, "quantize": QuantizeConfig, "benchmark": BenchmarkConfig}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_recipe(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe


@pytest.mark.parametrize("model", ["k49", "emnist", "path/net.py:make_net"])
def test_the_defaults_of_every_network_are_valid(model: str) -> None:
    recipe = load_recipe(None, model=model)
    assert (recipe.model, recipe.data, recipe.seed) == (model, "digits", 0)
    for name, config in STAGES.items():
        assert isinstance(recipe.stage(config, name), config)


def test_every_recipe_file_is_one_of_a_network_or_for_all_others() -> None:
    names = {
        "k49",
        "emnist",
        "any",
        "any-rgb",
        "k49-digits",
        "k49-reference",
        "k49-second",
        "k49-edge",
        "k49-sparse",
        "emnist-edge",
        "emnist-reference",
    }
    assert {path.stem for path in RECIPES.glob("*.toml")} == names


@pytest.mark.parametrize("model", ["k49", "emnist"])
def test_reference_recipes_are_found_by_name_and_take_nothing_from_the_better_ones(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path(f"{model}-reference"))
    config = training_config(recipe)
    assert recipe.model == model
    assert config.augment == AugmentConfig()
    assert (config.ema, config.imbalance, config.patience) == (0.0, "none", 0)
    better = load_recipe(None, model=model).table("train")
    assert set(recipe.table("train")) == set(better) | {"ema", "imbalance"}, "each setting of the default must be set here too"
    (tmp_path / f"{model}-reference").write_text('model = "own"', encoding="utf-8")
    assert load_recipe(Path(f"{model}-reference")).model == "own"  # a file of the user's comes first


def test_the_emnist_reference_has_the_published_hyperparameters() -> None:
    """Adam at 0.00047, batches of 256, plain cross entropy, dropout 0.34, 196 hidden units: the reference's own tuning."""
    recipe = load_recipe(Path("emnist-reference"))
    config = training_config(recipe)
    assert (config.optimiser, config.lr, config.batch, config.schedule) == ("adam", 0.00047, 256, "constant")
    assert (config.label_smoothing, config.weight_decay) == (0.0, 0.0)
    assert dict(recipe.table("model-options")) == {"hidden": 196, "dropout": 0.34}


def test_augmentation_is_part_of_the_training_settings(write: Callable[[str], Path]) -> None:
    recipe = load_recipe(write("[augment]\nrotate = 12\n[train]\nema = 0.5"), model="emnist")
    config = training_config(recipe, epochs=3)
    assert (config.augment.rotate, config.ema, config.epochs) == (12.0, 0.5, 3)
    with pytest.raises(CompressError, match=r"rotat in \[augment\] is unknown; did you mean rotate\?"):
        training_config(load_recipe(write("[augment]\nrotat = 12"), model="emnist"))


@pytest.mark.parametrize(
    ("height", "width", "batch"),
    [(28, 28, 128), (90, 90, 128), (90, 92, 64), (92, 92, 64), (224, 224, 16), (256, 256, 16), (256, 257, 8), (4096, 4096, 8)],
)
def test_the_batch_that_nobody_named_follows_the_pixels(height: int, width: int, batch: int, write: Callable[[str], Path]) -> None:
    """Worked by hand: 128 * 90 * 92 = 1,059,840 > 2**20 = 1,048,576 = 16 * 256 * 256."""
    shape, plain = (3, height, width), load_recipe(None, model="net.py:make")
    assert training_config(plain, shape).batch == batch
    assert training_config(plain, shape, batch=None, epochs=3).batch == batch
    assert training_config(plain, shape, batch=96).batch == 96
    said = load_recipe(write("[train]\nbatch = 48"), model="net.py:make")
    assert training_config(said, shape).batch == 48
    assert training_config(load_recipe(None, model="k49"), shape).batch == 128, "its recipe says so"
    assert training_config(plain).batch == 128


def test_the_recipe_for_photographs_is_for_any_network_and_its_changes_may_be_said_by_hand(write: Callable[[str], Path]) -> None:
    recipe = load_recipe(Path("any-rgb"), model="net.py:make")
    config = training_config(recipe, (3, 224, 224))
    assert recipe.model == "net.py:make" and config.batch == 16
    assert (config.augment.hflip, config.augment.resized_crop, config.augment.trivial_augment) == (0.5, 0.6, False)
    by_hand = training_config(load_recipe(None, model="net.py:make"), hflip=0.25, resized_crop=0.5, lr=0.1)
    assert by_hand.augment == AugmentConfig(hflip=0.25, resized_crop=0.5) and by_hand.lr == 0.1
    with pytest.raises(CompressError, match=r"hflip \(=2.0\) must lie in \[0, 1\]; 0\.5 suits photographs"):
        training_config(recipe, hflip=2.0)
    with pytest.raises(CompressError, match=r"trivial_augment \(=True\) changes colours, for images of 1 or 3 channels; these have 4"):
        training_config(recipe, (4, 32, 32), trivial_augment=True)
    assert not training_config(load_recipe(None, model="net.py:make"), (4, 32, 32)).augment.varies


def test_the_command_line_wins_over_the_recipe_and_that_over_the_defaults(write: Callable[[str], Path]) -> None:
    path = write('model = "emnist"\ndata = "folder"\nseed = 5\n[train]\nepochs = 2\nbatch = 32\n')
    recipe = load_recipe(path)
    assert (recipe.model, recipe.data, recipe.seed) == ("emnist", "folder", 5)
    config = recipe.stage(FitConfig, "train", epochs=4, batch=None)
    assert (config.epochs, config.batch, config.lr) == (4, 32, 0.002)
    given = load_recipe(path, model="k49", data="k49", seed=0)
    assert (given.model, given.data, given.seed) == ("k49", "k49", 0)
    assert given.stage(FitConfig, "train").lr == load_recipe(None).stage(FitConfig, "train").lr == 0.003
    assert given.stage(FitConfig, "train").epochs == 2


def test_the_seed_of_the_recipe_reaches_every_stage_that_has_one(write: Callable[[str], Path]) -> None:
    recipe = load_recipe(write("seed = 7\n[quantize]\nseed = 3\n"))
    assert recipe.stage(FitConfig, "train").seed == 7
    assert recipe.stage(QuantizeConfig, "quantize").seed == 3
    assert recipe.stage(QuantizeConfig, "quantize", seed=1).seed == 1
    given = load_recipe(write("seed = 7\n[quantize]\nseed = 3\n"), seed=5)
    assert given.stage(QuantizeConfig, "quantize").seed == given.stage(FitConfig, "train").seed == 5, "what is given by hand wins"


def test_whole_numbers_are_floats_and_lists_tuples_where_that_is_meant(write: Callable[[str], Path]) -> None:
    recipe = load_recipe(write("[train]\nlr = 1\n[model-options]\nwidths = [8, 16]\n"))
    lr = recipe.stage(FitConfig, "train").lr
    assert isinstance(lr, float) and lr == 1.0
    assert recipe.table("model-options") == {"widths": [8, 16]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('modell = "k49"', r"modell in .*recipe\.toml is unknown; did you mean model\?"),
        ("[trian]\nepochs = 1", r"trian in .*recipe\.toml is unknown; did you mean train\?"),
        ("[colours]\nred = 1", rf"colours in .* is unknown; known: model, data, seed, {', '.join(TABLES)}"),
        ("train = 3", r"train in .*recipe\.toml must be a table, \[train\]"),
        ("model = 5", r"model \(=5\) in .*recipe\.toml must be of type str, not int"),
        ('seed = "0"', r"seed \(='0'\) in .*recipe\.toml must be of type int, not str"),
        ("data = [1]", r"data \(=\[1\]\) in .* must be of type str, not list"),
        ("[train\nepochs = 1", r"recipe \(=.*recipe\.toml\) is not readable as TOML: "),
        ("seed = 1\nseed = 2", r"is not readable as TOML: "),
    ],
)
def test_a_recipe_that_is_wrong_is_refused(write: Callable[[str], Path], text: str, told: str) -> None:
    with pytest.raises(CompressError, match=told):
        load_recipe(write(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[train]\nepoch = 3", r"epoch in \[train\] is unknown; did you mean epochs\?"),
        ("[train]\ncolour = 3", r"colour in \[train\] is unknown; known: epochs, batch, optimiser"),
        ("[train]\nepochs = 2.5", r"epochs \(=2\.5\) in \[train\] must be of type int, not float"),
        ("[train]\nepochs = true", r"epochs \(=True\) in \[train\] must be of type int, not bool"),
        ('[train]\nlr = "fast"', r"lr \(='fast'\) in \[train\] must be of type float, not str"),
        ("[train]\nlr = false", r"lr \(=False\) in \[train\] must be of type float, not bool"),
    ],
)
def test_a_setting_that_is_wrong_is_refused_when_its_stage_is_made(write: Callable[[str], Path], text: str, told: str) -> None:
    with pytest.raises(CompressError, match=told):
        load_recipe(write(text)).stage(FitConfig, "train")


def test_a_bool_may_not_be_a_number(write: Callable[[str], Path]) -> None:
    with pytest.raises(CompressError, match=r"per_channel \(=1\) in \[quantize\] must be of type bool, not int"):
        load_recipe(write("[quantize]\nper_channel = 1")).stage(QuantizeConfig, "quantize")


def test_a_recipe_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    told = r"recipe \(=.*none\.toml\): there is no such file, and no recipe of the toolkit has this name \(any, any-rgb, emnist, "
    with pytest.raises(CompressError, match=told):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(CompressError, match=r"recipe \(=.*\) is not a file"):
        load_recipe(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CompressError, match=r"binary\.toml\) is not readable as TOML: "):
        load_recipe(tmp_path / "binary.toml")


REFUSED: list[tuple[type, dict[str, Any], str]] = [
    *(
        (PruneConfig, {"sparsity": value}, rf"sparsity \(={value}\) must lie in \(0, 1\); 0\.8 zeroes 80%")
        for value in (0, 1, 1.2, -0.1, float("nan"))
    ),
    (PruneConfig, {"scope": "network"}, r"scope \(=network\) must be global, layer, lamp or fisher"),
    (PruneConfig, {"epochs": -1}, r"epochs \(=-1\) must be at least 0; 0 for no fine-tuning"),
    (PruneConfig, {"lr": 0.0}, r"lr \(=0\.0\) must be a positive number"),
    (PruneConfig, {"lr": float("inf")}, r"lr \(=inf\) must be a positive number"),
    (QuantizeConfig, {"mode": "int4"}, r"mode \(=int4\) must be auto, static, dynamic, int8-weights, fp16-weights or float32"),
    (QuantizeConfig, {"method": "mean"}, r"method \(=mean\) must be minmax, percentile, entropy or mse"),
    (QuantizeConfig, {"method": "mse"}, r"method \(=mse\) is a setting of --mode static; auto tries them all"),
    (QuantizeConfig, {"mode": "dynamic", "equalise": True}, r"equalise \(=True\) is a setting of --mode static; dynamic has none"),
    (QuantizeConfig, {"max_drop": -1.0}, r"max_drop \(=-1\.0\) must be at least 0; points of balanced accuracy, 0\.3"),
    (
        QuantizeConfig,
        {"max_drop": float("nan")},
        r"max_drop \(=nan\) must be at least 0; points of balanced accuracy, 0\.3",
    ),
    (QuantizeConfig, {"epochs": -1}, r"epochs \(=-1\) must be at least 0; 0 does no fine-tuning"),
    (QuantizeConfig, {"mode": "dynamic", "epochs": 2}, r"epochs \(=2\) of fine-tuning need --mode auto or static; dynamic has nothing"),
    (QuantizeConfig, {"lr": 0.0}, r"lr \(=0\.0\) must be a positive number; 0\.0001 is the default"),
    (QuantizeConfig, {"images": 0}, r"images \(=0\) must be at least 32; 256 to 1024 of the training images do well"),
    (QuantizeConfig, {"seed": -1}, r"seed \(=-1\) must be at least 0"),
    (ExportConfig, {"opset": 9}, r"opset \(=9\) must lie in \[18, 23\]; 18 is what older runtimes"),
    (ExportConfig, {"opset": 99}, r"opset \(=99\)"),
    (ExportConfig, {"input": "float16"}, r"input \(=float16\) must be uint8 or float32; uint8 takes the pixels as"),
    (ExportConfig, {"parity_images": 0}, r"parity_images \(=0\) must be at least 1"),
]


@pytest.mark.parametrize(("config", "given", "told"), REFUSED)
def test_a_setting_out_of_range_is_refused(config: type, given: dict[str, Any], told: str) -> None:
    with pytest.raises(CompressError, match=told) as refused:
        checked(config, given, "[table]")
    assert "\n" not in str(refused.value)


def test_optional_settings_take_none_or_their_type() -> None:
    assert checked(Recipe, {"tables": {}}, "here").tables == {}
    with pytest.raises(CompressError, match=r"seed \(=None\) in here must be of type int, not NoneType"):
        checked(Recipe, {"seed": None}, "here")


def test_the_schema_beside_the_recipes_is_that_of_the_settings_and_takes_every_recipe() -> None:
    """Written by `compress recipe --schema > compress/recipes/recipe.schema.json`; an editor finds it by each recipe's first line."""
    schema = recipe_schema()
    assert json.loads((RECIPES / "recipe.schema.json").read_text(encoding="utf-8")) == json.loads(json.dumps(schema))
    checker = jsonschema.Draft202012Validator(schema)
    for path in RECIPES.glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("#:schema recipe.schema.json\n")
        checker.validate(tomllib.loads(text))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("modell = 'k49'", ""),
        ("[train]\nepochs = 0", "train.epochs"),
        ("[train]\nepohcs = 1", "train"),
        ("[prune]\nscope = 'all'", "prune.scope"),
        ("[augment]\nrotate = 500", "augment.rotate"),
        ("[remove-channels]\nmax_macs = 2.0", "remove-channels.max_macs"),
        ("[report]\nmax_drop = 'x'", "report.max_drop"),
    ],
)
def test_the_schema_finds_what_the_toolkit_refuses(text: str, where: str, write: Callable[[str], Path]) -> None:
    errors = list(jsonschema.Draft202012Validator(recipe_schema()).iter_errors(tomllib.loads(text)))
    assert [".".join(map(str, error.absolute_path)) for error in errors] == [where]
    with pytest.raises(CompressError):
        recipe = load_recipe(write(text))
        for name, settings in SETTINGS.items():
            recipe.stage(settings, name)
