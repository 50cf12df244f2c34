import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.report import markdown, write_report
from compress.benchmarks.results import write_results
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


@pytest.fixture
def report(made: Any, tmp_path: Path) -> tuple[str, str]:
    one = made.result(
        made.one("fp32"),
        made.one("int8", 8e-4, ratio=(1.25, 1.2, 1.3), balanced=0.969, doubts=("never became steady",)),
        made.missing("gpu", "no CUDA device", device="cuda"),
        made.one(EVIL, 2e-3, ratio=(0.5, 0.4, 0.6)),
    )
    (verdict,) = write_report([one], tmp_path, Limits())
    assert verdict.ship == "int8"
    return (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()


def test_page_asks_nothing_of_the_network_and_runs_no_script(report: tuple[str, str]) -> None:
    page = Reader(report[0])
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert len(page.addresses) == 4 and all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not re.search(r"url\(|@import|http:|https:", re.sub(r"base64,[\w+/=]+", "", report[0]))


def test_page_and_markdown_say_the_same(report: tuple[str, str]) -> None:
    page, text = Reader(report[0]).text, report[1].replace("\\", "")
    for said in (
        "Ship int8: it is faster than fp32 (1.25x, 95% interval 1.20 to 1.30)",
        "1.00",
        "0.800",
        "0.792 to 0.808",
        "0.960",
        "1.25x",
        "1.20 to 1.30",
        "96.90%",
        "0.10",
        "97.00%",
        "1.00 MB",
        "900 kB",
        "258,123",
        "51,625",
        "24,000,000",
        "not measured: no CUDA device",
        "doubtful: never became steady",
        "fingerprint f00d",
        "Toy CPU",
        "2 launches of a fresh process",
        "0123abcd",
    ):
        assert said in page, said
        assert said in text, said


def test_names_are_escaped_in_both(report: tuple[str, str]) -> None:
    page, text = report
    assert EVIL in Reader(page).text
    assert "<script" not in page and "<script" not in text
    table = [line for line in text.splitlines() if line.startswith("|") and "onnxruntime" in line]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {14}


def test_markup_of_markdown_is_escaped() -> None:
    assert markdown("a|b *c* <d>\n&") == r"a\|b \*c\* &lt;d&gt; &amp;"


def test_several_results_are_sections_of_their_own(made: Any, tmp_path: Path) -> None:
    write_results(made.result(made.one("fp32"), cpu="First"), tmp_path / "one.json")
    verdicts = write_report([tmp_path / "one.json", made.result(made.missing("fp32", "gone"), cpu="Second")], tmp_path, Limits())
    assert [verdict.ship for verdict in verdicts] == ["fp32", None]
    text = (tmp_path / "report.md").read_text()
    assert text.index("# toy on First") < text.index("# toy on Second")
    assert (tmp_path / "report-1.png").exists() and not (tmp_path / "report-2.png").exists()
    assert "No verdict: the baseline, fp32, was not measured: gone." in (tmp_path / "report.html").read_text()


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"results \(=none\) must be at least one; run `compress benchmark` first"):
        write_report([], tmp_path, Limits())
