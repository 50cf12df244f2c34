"""The page's verdict against `decide`, word by word, at every limit that the sliders have; the script runs in node."""

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress.benchmarks
from compress.benchmarks.limits import Limits, Needs
from compress.benchmarks.page.asked import question
from compress.benchmarks.results import Scoring
from compress.benchmarks.verdict import decide

SCRIPT = Path(compress.benchmarks.__file__).parent / "templates" / "verdict.js"
ASK = """
const asked = JSON.parse(require("fs").readFileSync(0)), found = [];
for (let drop = 0; drop < asked.drop.length; drop++)
  for (let latency = 0; latency < asked.latency.length; latency++)
    for (let size = 0; size < asked.size.length; size++)
      for (const accept of [false, true])
        found.push(decide(asked, { drop, latency, size, accept }));
console.log(JSON.stringify(found));
"""


@pytest.fixture
def page() -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Asks the script at all stops: of the drop, of latency, of size, not accepting and accepting what is not proved."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; it runs the report's script")

    def ask(asked: dict[str, Any]) -> list[dict[str, Any]]:
        code = SCRIPT.read_text(encoding="utf-8") + ASK
        done = subprocess.run([node, "-e", code], input=json.dumps(asked), capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return ask


def variants(made: Any, seed: int) -> list[Any]:
    """Ten files around the baseline: faster and slower, smaller and larger, better and worse, some doubtful, some nearly alike, some in
    other runtimes.
    """
    generator = np.random.default_rng(seed)
    found = [made.one("fp32")]
    for number in range(10):
        ratio = float(np.exp(generator.normal(0.15, 0.3)))
        wide = float(generator.choice([1.005, 1.03, 1.3]))
        p50 = 1e-3 / ratio
        found.append(
            made.one(
                f"int8 $& {number}",
                p50,
                balanced=0.97 - float(generator.choice([0, 0.0003, 0.002, 0.0049, 0.02, -0.003])),
                ratio=(ratio, ratio / wide, ratio * wide),
                samples_ns=made.samples(p50 / wide, p50, p50 * wide),
                runtime=str(generator.choice(["onnxruntime", "litert", "c", "openvino", "torch"])),
                size_bytes=int(generator.choice([250_000, 400_001, 999_999, 1_300_000])),
                doubts=("never became steady",) * int(generator.integers(0, 3)),
            )
        )
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_the_page_says_what_the_command_says_at_every_limit(made: Any, page: Callable[..., Any], seed: int) -> None:
    result = made.result(*variants(made, seed))
    asked = question(result, Limits())
    assert asked is not None
    told = page(asked)
    stops = itertools.product(asked["drop"], asked["latency"], asked["size"], (False, True))
    shipped = set()
    for number, ((drop, _), (latency, _), (size, _), accept) in enumerate(stops):
        if number % 43:  # 43 is prime to the numbers of stops: all of them take part
            continue
        verdict = decide(result, Limits(max_drop=drop, max_latency=latency, max_size=size, accept_unproved=accept))
        assert told[number] == {"ship": verdict.called, "headline": verdict.headline, "reasons": list(verdict.reasons)}
        shipped.add(verdict.ship)
    assert len(shipped) > 3 and None in shipped


def test_a_score_of_the_users_own_and_memory_are_asked_the_same_way(made: Any, page: Callable[..., Any]) -> None:
    generator = np.random.default_rng(3)
    shares = generator.uniform(0.5, 0.9, 30_000)

    def one(name: str, worse: float, **other: Any) -> Any:
        own = tuple((shares - worse * generator.uniform(0, 2, len(shares))).tolist())
        return made.one(name, artifact=name, score=float(np.mean(own)), shares=own, answers=None, **other)

    variants = [one("fp32", 0.0), one("int8", 0.002, ratio=(1.3, 1.2, 1.4), size_bytes=300_000), one("int4", 0.01, ratio=(1.5, 1.4, 1.6))]
    scored = {"labels": None, "scoring": Scoring(name="iou", source="0" * 64, by_image=True)}
    result = made.result(*variants)
    result = type(result)(**vars(result) | scored)
    needs = {"fp32": Needs(ram=50_000, flash=90_000), "int8": Needs(ram=20_000, flash=30_000), "int4": "no C is known for Loop"}
    limits = Limits(max_ram="30kB", max_flash="0.1MB")
    asked = question(result, limits, needs)
    assert asked is not None and asked["short"] == "of iou"
    told = page(asked)
    for number, ((drop, _), (latency, _), (size, _), accept) in enumerate(
        itertools.product(asked["drop"], asked["latency"], asked["size"], (False, True))
    ):
        given = {"max_drop": drop, "max_latency": latency, "max_size": size, "accept_unproved": accept}
        verdict = decide(result, Limits(**given, max_ram="30kB", max_flash="0.1MB"), needs)
        assert told[number] == {"ship": verdict.called, "headline": verdict.headline, "reasons": list(verdict.reasons)}


def test_the_sliders_start_at_the_limits_given_and_stop_where_a_file_is_let_in(made: Any) -> None:
    result = made.result(made.one("fp32"), made.one("int8", 0.80123e-3, size_bytes=412_345))
    asked = question(result, Limits(max_drop=0.4, max_latency=0.9, max_size=500_000))
    assert asked is not None
    assert [text for _, text in asked["latency"]] == ["0.802", "0.9", "1", ""]
    assert [value for value, _ in asked["size"]] == [413_000, 500_000, 1_000_000, None]
    assert [asked[name][at][0] for name, at in zip(("drop", "latency", "size"), asked["start"], strict=True)] == [0.4, 0.9, 500_000]
    assert [asked[name][asked["start"][at]][0] for at, name in enumerate(("drop", "latency", "size"))] == [0.4, 0.9, 500_000]


def test_where_no_limit_makes_a_verdict_nothing_is_asked(made: Any) -> None:
    assert question(made.result(made.missing("fp32", "gone")), Limits()) is None
    assert question(made.result(made.one("fp32", runtime="torch")), Limits()) is None
