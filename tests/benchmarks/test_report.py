import base64
import dataclasses
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compress.artifacts.payloads import read_results
from compress.benchmarks.accuracy import Comparison, RecallChange
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.formats import MISSING
from compress.benchmarks.pictures import Flip
from compress.benchmarks.report import markdown, write_report
from compress.benchmarks.results import Choice, Facts, Finalist, LayerZeros, write_results
from compress.benchmarks.verdict import Limits

EVIL = '<script>alert("x")</script> | `a` $b$'


class Reader(HTMLParser):
    """Gathers a page's text, tags and the addresses that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.addresses = "", [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


COMPARED = Comparison(
    images=200,
    lost=(7,),
    gained=(),
    p_value=0.5,
    recalls=(RecallChange(label=0, images=100, before=99, after=98), RecallChange(label=2, images=100, before=90, after=90)),
    worse_confusions=((0, 2, 1, 2), (0, 7, 0, 1)),
)
FLIPS = (Flip(index=7, truth=0, before=0, after=2, png="iVBORw0KGgo="),)


@pytest.fixture
def report(made: Any, tmp_path: Path) -> tuple[str, str]:
    one = made.result(
        made.one("fp32"),
        made.one("int8", 8e-4, ratio=(1.25, 1.2, 1.3), balanced=0.969, doubts=("never became steady",), comparison=COMPARED, flips=FLIPS),
        made.missing("gpu", "no CUDA device", device="cuda"),
        made.one(EVIL, 2e-3, ratio=(0.5, 0.4, 0.6)),
    )
    (verdict,) = write_report([one], tmp_path, Limits())
    assert verdict.ship == "int8"
    return (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()


def test_page_asks_nothing_of_the_network_and_lets_no_script_run_but_its_own(report: tuple[str, str]) -> None:
    page = Reader(report[0])
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    assert [address.partition(";")[0] for address in page.addresses] == ["data:image/png"]
    assert not re.search(r"url\(|@import|http:|https:", re.sub(r"base64,[\w+/=]+", "", report[0]))
    data, script = re.findall(r"<script(.*?)>(.*?)</script>", report[0], re.DOTALL)
    assert data[0] == ' type="application/json" class="asked"' and json.loads(data[1])["baseline"] == "fp32"
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">" in report[0]
    assert not re.search(r"\son\w+=|javascript:", re.sub(r"<script.*?</script>", "", report[0], flags=re.DOTALL))


def test_what_ships_is_marked_in_the_table_and_in_every_plot(report: tuple[str, str]) -> None:
    assert re.findall(r'<tr class="chosen" data-ships="(.*?)">', report[0]) == ["int8"]
    assert re.findall(r'<g class="point ship" data-name="(.*?)"', report[0]) == ["int8"] * 4  # latency and size, wide and narrow


def test_pictures_that_flipped_are_left_out_where_the_page_would_be_too_large(made: Any, tmp_path: Path) -> None:
    flips = tuple(Flip(index=n, truth=0, before=0, after=2, png="iVBORw0KGgo=" * 8_000) for n in range(16))
    worse = [made.one(f"int8 {n}", 8e-4, comparison=COMPARED, flips=flips) for n in range(2)]
    write_report([made.result(made.one("fp32"), *worse)], tmp_path, Limits())
    page = (tmp_path / "report.html").read_text()
    assert len(page.encode()) < 1_500_000
    assert page.count('<figure class="pair">') == 6 and "evenly from all of them (3 of 16 fit here)" in page


def test_page_and_markdown_say_the_same(report: tuple[str, str]) -> None:
    page, text = Reader(report[0]).text, report[1].replace("\\", "")
    for said in (
        "Ship int8: it is faster than fp32 (1.25x, 95% interval 1.20 to 1.30; doubtful, int8: never became steady; measure again with "
        "nothing else running: `compress benchmark --force`), loses 0.10 points",
        "1.00",
        "0.800",
        "0.792 to 0.808",
        "0.960",
        "1.25x",
        "1.20 to 1.30",
        "96.90%",
        "0.10",
        "at most 0.14",
        "97.00%",
        "1.00 MB",
        "900 kB",
        "258,123",
        "51,625",
        "24,000,000",
        "not measured: no CUDA device",
        "fingerprint f00d",
        "Toy CPU",
        "2 launches of a fresh process",
        "0123abcd",
        "96.60 to 97.30",
        "doubtful; the doubt stands under the name",
        "1 images lost, 0 gained of 200; McNemar's p 0.500",
        "あ 99.0% to 98.0% of 100",
        "あ read as <c>: 1 to 2; あ read as 7: 0 to 1",
        "12.5 mJ",
        "CPU 67 nodes",
        "50 GMAC/s",
        "RAPL, packages: 1",
        "2,000",
    ):
        assert said in page, said
        assert said in html.unescape(text), said


def test_names_are_escaped_in_both(report: tuple[str, str]) -> None:
    page, text = report
    assert EVIL in Reader(page).text
    assert page.count("<script") == page.count("</script") == 2 and "<script" not in text
    tables = [block.splitlines() for block in re.split(r"\n\n+", text) if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table


def test_markup_of_markdown_is_escaped() -> None:
    assert markdown("a|b *c* <d>\n&") == r"a\|b \*c\* &lt;d&gt; &amp;"


def test_several_results_are_sections_of_their_own(made: Any, tmp_path: Path) -> None:
    write_results(made.result(made.one("fp32"), cpu="First"), tmp_path / "one.json")
    verdicts = write_report(
        [read_results(tmp_path / "one.json"), made.result(made.missing("fp32", "gone"), cpu="Second")], tmp_path, Limits()
    )
    assert [verdict.ship for verdict in verdicts] == ["fp32", None]
    text = (tmp_path / "report.md").read_text()
    assert text.index("# k49, toy, First") < text.index("# k49, toy, Second")
    assert (tmp_path / "report-1.png").exists() and (tmp_path / "report-1-size.png").exists()
    assert not list(tmp_path.glob("report-2*.png"))
    assert [section["machine"]["cpu"] for section in json.loads((tmp_path / "report.json").read_text())["sections"]] == ["First", "Second"]
    assert len((tmp_path / "report.csv").read_text().splitlines()) == 1 + 2
    refused = "No speedup is given from one section to another: these machines are unlike (cpu)."
    assert all(refused in (tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert "No verdict: the baseline, fp32, was not measured: gone." in (tmp_path / "report.html").read_text()


def test_sections_of_one_machine_are_not_compared_either(made: Any, tmp_path: Path) -> None:
    write_report([made.result(made.one("fp32")), made.result(made.one("fp32"))], tmp_path, Limits())
    assert "they were not measured side by side" in (tmp_path / "report.md").read_text()
    write_report([made.result(made.one("fp32"))], tmp_path, Limits())
    assert "No speedup is given" not in (tmp_path / "report.md").read_text()


def test_layers_of_a_pruned_network_have_a_table_that_its_variants_share(made: Any, tmp_path: Path) -> None:
    def pruned(*nonzeros: int) -> Facts:
        names = ("stem.conv.weight", f"{EVIL}.weight")
        return {"layers": tuple(LayerZeros(name=name, weights=1000, nonzeros=count) for name, count in zip(names, nonzeros, strict=True))}

    # None is measured: then no plot is drawn, which takes seconds.
    variants = (("pruned 80%", "onnxruntime"), ("pruned 80%, int8", "onnxruntime"), ("pruned 80%", "openvino"))
    lighter = [made.missing(name, "gone", runtime=runtime, facts=pruned(300, 101)) for name, runtime in variants]
    heavier = made.missing("pruned 50%", "gone", facts=pruned(1000, 0))
    write_results(made.result(made.missing("fp32", "gone"), *lighter, heavier), tmp_path / "one.json")
    write_report([read_results(tmp_path / "one.json")], tmp_path, Limits())
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text().replace("\\", "")
    assert page.count("<details>") == page.count("</details>") == page.count('<table class="layers">') == 2
    assert page.count("<script") == 1
    for said in (
        "pruned 80%; pruned 80%, int8: 79.95% of the weights are zero",
        "pruned 50%: 50.00% of the weights are zero",
        "Zeros make the gzipped file smaller. Dense runtimes run no faster for them, and the file on disk is no smaller.",
    ):
        assert said in Reader(page).text and said in text
    rows = re.findall(r"<tr><th scope=\"row\">(.*)</th><td>(.*)</td><td>(.*)</td><td>(.*)</td></tr>", page)
    told = [(html.unescape(name), *numbers) for name, *numbers in rows]
    assert told == [
        ("all layers", "2,000", "401", "79.95%"),
        ("stem.conv", "1,000", "300", "70.00%"),
        (EVIL, "1,000", "101", "89.90%"),
        ("all layers", "2,000", "1,000", "50.00%"),
        ("stem.conv", "1,000", "1,000", "0.00%"),
        (EVIL, "1,000", "0", "100.00%"),
    ]
    assert all(f"| {' | '.join(row)} |" in html.unescape(text) for row in told)
    write_report([made.result(made.missing("fp32", "gone"))], tmp_path, Limits())
    assert "Zeros by layer" not in (tmp_path / "report.html").read_text() + (tmp_path / "report.md").read_text()


def test_a_choice_by_measurement_is_told_with_what_it_was_chosen_from(made: Any, tmp_path: Path) -> None:
    rows = [
        {"what": "fp32", "ratio": 1.0, "low": 1.0, "high": 1.0, "drop": 0.0, "size": 1000},
        {"what": EVIL, "ratio": 1.66, "low": 1.6, "high": 1.7, "drop": None, "size": 400},
        {"what": "int8", "ratio": 0.9, "low": 0.88, "high": 0.92, "drop": 0.1, "bound": 0.254, "size": 400},
    ]
    choice = Choice(verdict=f"Do not compute in int8: {EVIL}.", tried=177, finalists=tuple(Finalist(**row) for row in rows))
    facts = {"choice": choice}
    both = [made.missing("int8 weights", "gone", runtime=runtime, facts=facts) for runtime in ("onnxruntime", "openvino")]
    write_results(made.result(made.missing("fp32", "gone"), *both), tmp_path / "one.json")
    write_report([read_results(tmp_path / "one.json")], tmp_path, Limits())
    page, text = (tmp_path / "report.html").read_text(), html.unescape((tmp_path / "report.md").read_text().replace("\\", ""))
    assert page.count("<script") == 1
    for said in ("int8 weights", "177 candidates tried", f"Do not compute in int8: {EVIL}."):
        assert Reader(page).text.count(said) >= 1 and said in text
    assert Reader(page).text.count("177 candidates tried") == 1, "the same in both runtimes"
    told = re.findall(r"<tr><th scope=\"row\">(.*)</th><td>(.*)</td><td>(.*)</td><td>(.*)</td></tr>", page)
    assert [tuple(map(html.unescape, row)) for row in told] == [
        ("fp32", "1.00x (1.00 to 1.00)", "0.00", "1.00 kB"),
        (EVIL, "1.66x (1.60 to 1.70)", MISSING, "400 bytes"),
        ("int8", "0.90x (0.88 to 0.92)", "0.10 (at most 0.25)", "400 bytes"),
    ]
    assert f"| {EVIL} | 1.66x (1.60 to 1.70) | {MISSING} | 400 bytes |" in text
    facts["choice"] = dataclasses.replace(choice, tried="many")
    write_results(made.result(made.missing("fp32", "gone"), made.missing("int8", "gone", facts=facts)), tmp_path / "two.json")
    with pytest.raises(BenchmarkError, match=r"is damaged: measurements\[1\]\.facts\.choice\.tried must be int, not str"):
        read_results(tmp_path / "two.json")


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"results \(=none\) must be at least one; run `compress benchmark` first"):
        write_report([], tmp_path, Limits())


def test_section_says_which_network_data_and_machine(made: Any, tmp_path: Path) -> None:
    result = made.result(made.one("fp32"))
    write_report([result], tmp_path, Limits())
    assert f"k49, toy, {result.machine['cpu']}" in (tmp_path / "report.md").read_text()
