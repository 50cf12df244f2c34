import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compress.api.files import compare as compare_files
from compress.benchmarks.compare import compare
from compress.benchmarks.page.diff import as_markdown, headline, write_diff
from compress.benchmarks.results import write_results
from compress.errors import CompressError

EVIL = '<b>"x" | y'


class Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.fixture
def results(made: Any) -> tuple[Any, Any]:
    """The second candidate became 1.5x slower and loses 300 of 30,000 images, its file grew; the other is as it was."""
    old = made.result(made.one("fp32"), made.one(EVIL, balanced=0.969))
    slower = made.one(
        EVIL, 1.5e-3, balanced=0.959, samples_ns=made.samples(1.49e-3, 1.5e-3, 1.51e-3), size_bytes=1_200_000, artifact="beef"
    )
    return old, made.result(made.one("fp32"), slower, libraries={"numpy": "2.5"})


def test_page_says_what_the_command_says_and_draws_every_interval(results: tuple[Any, Any], tmp_path: Path) -> None:
    found = compare(*results, slower=5, less_accurate=0.5)
    write_diff(*results, found, tmp_path / "page.html", slower=5, less_accurate=0.5)
    page = (tmp_path / "page.html").read_text()
    text = Reader(page).text
    assert headline(found) == f"1 of 2 fail: {EVIL} (onnxruntime, cpu) is too slow and too inaccurate."
    figures = ("1.00 ms", "1.50 ms", "0.67x", "1.00 MB to 1.20 MB", "0123abcd to beef", "300 lost, 0 gained of 30,000")
    facts = ("machine: libraries numpy", "libraries differ: numpy was 2.4, is 2.5", "at most 5% slower, at most 0.5 points lost")
    for said in (headline(found), *figures, *facts):
        assert said in text, said
    assert "<b>" not in page and page.count('<tr class="fails">') == 1
    at = {name: [float(x) for x in re.findall(rf'class="{name}"[^>]*?(?:d="M|cx=")([\d.]+)', page)] for name in ("grid", "limit", "sign")}
    assert [len(places) for places in at.values()] == [4, 4, 4]
    unchanged, slow = slice(0, 2), slice(2, 4)  # of speed and of accuracy
    assert at["sign"][unchanged] == at["grid"][unchanged]
    assert at["sign"][slow][0] < at["limit"][slow][0] < at["grid"][slow][0], "slower than the limit is left of it"
    assert at["sign"][slow][1] > at["limit"][slow][1] > at["grid"][slow][1], "more lost is right of it"


def test_markdown_has_a_row_per_candidate_and_escapes_names(results: tuple[Any, Any]) -> None:
    text = as_markdown(compare(*results, slower=5))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4 and len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert text.startswith("**1 of 2 fail: ") and "&lt;b&gt;" in text and "<b>" not in text
    assert as_markdown(compare(results[0], results[0])).startswith("**Nothing fails: of 2 candidates none is surely faster or slower.**")


def test_a_result_is_not_overwritten_by_its_comparison(results: tuple[Any, Any], tmp_path: Path) -> None:
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    for result, file in zip(results, files, strict=True):
        write_results(result, file)
    for option in ("html", "markdown"):
        with pytest.raises(CompressError, match=rf"{option} \(=.*new.json\) is one of the results that are compared; name another file"):
            compare_files(*files, **{option: files[1]})  # type: ignore[misc]
    compare_files(*files, html=tmp_path / "page.html", markdown=tmp_path / "summary.md")
    compare_files(*files, markdown=tmp_path / "summary.md")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>") and (tmp_path / "summary.md").read_text().count("**") == 4
