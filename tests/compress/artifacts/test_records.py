"""The door for settings and records. The truth is the annotation beside each setting, and JSON as its specification has it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import UNSET, Meta, UnsetType

from compress.artifacts.records import checked, parse_record, read_toml, seconds_of
from compress.benchmarks.run import BenchmarkConfig
from compress.benchmarks.verdict import Limits
from compress.errors import CompressError
from compress.stages.tune import Tuning
from compress.train.settings import AugmentConfig, DistilConfig, FitConfig

NAN = float("nan")
REFUSED: list[tuple[type, str, Any, str]] = [
    (FitConfig, "epochs", 0, "must be at least 1"),
    (FitConfig, "batch", 1, "must be at least 2; batch norm needs two images; left out: 128, fewer of large images"),
    (FitConfig, "optimiser", "sgdd", "must be adam or adamw"),
    (FitConfig, "lr", 0.0, "must be a positive number; 0.001 is a good start for Adam"),
    (FitConfig, "lr", NAN, "must be a positive number"),
    (FitConfig, "lr", float("inf"), "must be a positive number"),
    (FitConfig, "weight_decay", -1.0, "must be at least 0"),
    (FitConfig, "schedule", "step", "must be constant or cosine"),
    (FitConfig, "warmup", 1.0, "must lie in [0, 1); 0.1 warms up over the first tenth of the steps"),
    (FitConfig, "label_smoothing", 1.2, "must lie in [0, 1); 0.1 is usual"),
    (FitConfig, "precision", "fp8", "must be auto, fp32 or bf16; auto is bf16 on CUDA and fp32 on the CPU"),
    (FitConfig, "seed", -1, "must lie in [0, 2147483648)"),
    (FitConfig, "seed", 2**31, "must lie in [0, 2147483648)"),
    (AugmentConfig, "rotate", -1.0, "must lie in [0, 180]; degrees, 10 suits characters"),
    (AugmentConfig, "shear", 90.0, "must lie in [0, 60]"),
    (AugmentConfig, "scale", 1.0, "must lie in [0, 0.9]"),
    (AugmentConfig, "shift", NAN, "must lie in [0, 1000]"),
    (AugmentConfig, "elastic", -0.5, "must lie in [0, 1000]"),
    (AugmentConfig, "mixup", -0.1, "must lie in [0, 100]; Beta's parameter, 0.2 is usual"),
    (AugmentConfig, "grid", 1, "must lie in [2, 64]"),
    (DistilConfig, "weight", 1.5, "must lie in [0, 1]; 0.7 is the default, 0 learns from labels alone"),
    (DistilConfig, "weight", NAN, "must lie in [0, 1]"),
    (DistilConfig, "temperature", 0.0, "must be a positive number"),
    (DistilConfig, "features", -1.0, "must be at least 0"),
    (Tuning, "trials", 0, "must be at least 1; 40 is the default"),
    (Tuning, "fraction", 0.0, "must lie in (0, 1]; 0.25 trains on a quarter of the training images"),
    (Tuning, "max_params", 0, "must be at least 1; leave it out for no limit"),
    (BenchmarkConfig, "samples", 0, "must be at least 1"),
    (BenchmarkConfig, "threads", -1, "must be at least 1"),
    (BenchmarkConfig, "launches", 1, "must lie in [2, 30]; an interval needs two, 5 is the default"),
    (BenchmarkConfig, "seed", -1, "must be at least 0"),
    (Limits, "max_drop", -1, "must be at least 0; points, 0.5 allows 97.0% to become 96.5%"),
    (Limits, "max_drop", NAN, "must be at least 0"),
    (Limits, "max_latency", 0, "must be a positive number; milliseconds, leave it out for no limit"),
    (Limits, "max_size", -5, "must be a positive number; bytes, leave it out for no limit"),
]


@pytest.mark.parametrize(("config", "name", "value", "rule"), REFUSED)
def test_a_setting_is_refused_by_name_value_and_rule(config: type, name: str, value: Any, rule: str) -> None:
    with pytest.raises(CompressError) as refused:
        checked(config, {name: value}, "[table]")
    assert str(refused.value).startswith(f"{name} (={value}) {rule}")


@dataclass(frozen=True, kw_only=True)
class Inner:
    count: int
    names: tuple[str, ...] | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    shares: tuple[Annotated[float, Meta(gt=0, lt=1)], ...] | UnsetType = UNSET
    anything: dict[str, Any] | UnsetType = UNSET


GOOD = {"inner": {"count": 1, "names": ["a"]}, "shares": [0.5]}


def test_a_record_is_what_was_written() -> None:
    record = parse_record(json.dumps(GOOD), Outer, where="file", again="make it again")
    assert record == Outer(inner=Inner(count=1, names=("a",)), shares=(0.5,))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"inner": {"count": "1"}}', "file is damaged: inner.count must be int, not str; make it again"),
        ('{"inner": {"count": 1, "names": ["a", 2]}}', "file is damaged: inner.names[1] must be str, not int; make it again"),
        ('{"inner": {"count": 1, "colour": 2}}', "file is damaged: inner.colour is unknown; make it again"),
        ('{"inner": {"count": 1}, "shares": [0.5, 2]}', "file is damaged: shares[1] must be float < 1.0; make it again"),
        ('{"shares": []}', "file is damaged: Object missing required field inner; make it again"),
        ("[]", "file is damaged: must be object, not array; make it again"),
        ("", "file is damaged: "),
        ('{"inner": {"count": 1}, "shares": [NaN]}', "file is damaged: "),
        ('{"inner": {"count": ' + "9" * 5000 + "}}", "file is damaged: "),
        ('{"inner": {"count": 1}, "anything": {"a": ' + "9" * 5000 + "}}", "file is damaged: "),
        ('{"inner": {"count": 1}, "anything": {"a": 1e999}}', "file is damaged: "),
        ('{"inner": {"count": 1}, "anything": {"a": "\\ud800"}}', "file is damaged: "),
        ('{"inner": {"count": 1}, "anything": {"a": ' + "[" * 100_000, "file is damaged: "),
        (b'{"inner": {"count": 1}, "anything": {"a": "\xff"}}', "file is damaged: "),
    ],
)
def test_a_damaged_record_is_one_line(text: str | bytes, told: str) -> None:
    with pytest.raises(CompressError) as refused:
        parse_record(text, Outer, where="file", again="make it again")
    said = str(refused.value)
    assert said.startswith(told) and said.endswith("; make it again")
    assert "\n" not in said and len(said) <= 300 and said.isprintable()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = " + "[" * 5000, "is not readable as TOML: "),
        ("a = " + "[" * 40 + "]" * 40, "a is nested more than 32 deep"),
        ("seed = " + "9" * 5000, "is not readable as TOML: "),
        ("seed = " + "9" * 30, "seed (=999999999999999999999999999999) must be a finite number of at most 64 bits"),
        ("[train]\nlr = nan", "train.lr (=nan) must be a finite number"),
        ("[train]\nlr = [1.0, -inf]", "train.lr[1] (=-inf) must be a finite number"),
        ("[model-options]\nhidden = 2020-01-01", "model-options.hidden (=2020-01-01) is a date; write it as a text in quotes"),
        ("at = 07:32:00", "at (=07:32:00) is a time; write it as a text in quotes"),
        ('a = "\\ud800"', "is not readable as TOML: "),
        ("a = 1 # \x1b[31m", "is not readable as TOML: "),
    ],
)
def test_a_toml_holds_plain_values_only(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CompressError) as refused:
        read_toml(path, "recipe")
    said = str(refused.value)
    assert told in said and "\n" not in said and len(said.replace(str(path), "")) <= 300 and said.isprintable()


def test_what_is_read_is_a_file_and_not_large(tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_bytes(b"#" * (2**20 + 1))
    for path, told in (
        (tmp_path, "is not a file"),
        (Path("/dev/zero"), r"recipe \(=/dev/zero\) is not a file"),
        (tmp_path / "none.toml", "there is no such file"),
        (tmp_path / "large.toml", "has 1,048,577 bytes, at most 1,048,576 are read"),
    ):
        with pytest.raises(CompressError, match=told):
            read_toml(path, "recipe")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("300", 300), (300, 300), (0.5, 0.5), ("1.5h", 5400), (" 2 m ", 120), (".5m", 30)],
)
def test_times_are_read_as_people_write_them(text: str | float, seconds: float) -> None:
    assert seconds_of(text, "time_limit") == seconds


@pytest.mark.parametrize("text", ["", "m5", "5d", "5mm", "-5m", "0", "0s", "nan", "inf", "5m30s", "\u0665m", "9" * 400, "1e3", True])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(CompressError, match=r"time_limit \(=.*\) must be a time above 0, such as 90s, 5m or 1h; a plain number is seconds"):
        seconds_of(text, "time_limit")
