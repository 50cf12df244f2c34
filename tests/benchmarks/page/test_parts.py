"""The page in Chromium: what its script does, and that no other script runs. One start of the browser, asked many things."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from compress.benchmarks.limits import Limits
from compress.benchmarks.page.parts import embedded
from compress.benchmarks.report import write_report
from compress.benchmarks.verdict import decide

# Another script may not run under the page's policy: this one runs in a copy without it.
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy".*?>')
ASK = """<script>
const found = {}, form = document.querySelector(".ask"), every = selector => [...document.querySelectorAll(selector)];
const seen = selector => every(selector).filter(one => one.getClientRects().length);
const texts = selector => seen(selector).map(one => one.textContent.trim());
const state = () => ({ headline: texts(".verdict")[0], reasons: texts(".reasons li"), chosen: texts(".chosen th > span:first-child"),
  ringed: [...new Set(seen(".ship.point").map(one => one.dataset.name))], command: texts(".ask code")[0] });
const set = (name, value) => { form.elements[name].value = value; form.dispatchEvent(new Event("input")); };
found.start = state();
set("drop", 0); found.strict = state();
set("drop", 12); set("latency", 0); found.fast = state();
form.querySelector("button").click(); found.again = state();
const boxes = seen(".layout:not([hidden]) .name text").map(one => one.getBoundingClientRect());
const collide = (a, b) => a.x < b.right && b.x < a.right && a.y < b.bottom && b.y < a.bottom;
found.collide = boxes.flatMap((one, at) => boxes.slice(at + 1).filter(other => collide(one, other))).length;
found.torch = [seen('.point[data-kind="torch, cpu"]').length];
const [entry] = document.querySelectorAll('.legend [data-kind="torch, cpu"] button');
entry.click(); found.torch.push(seen('.plot:first-of-type .point[data-kind="torch, cpu"]').length, entry.getAttribute("aria-pressed"));
const table = document.querySelector("table.asks"), rows = () => [...table.tBodies[0].rows].filter(row => !row.hidden);
const names = () => rows().map(row => row.cells[0].firstElementChild.textContent);
const sizes = table.tHead.rows[0].cells[8].querySelector("button");
sizes.click(); found.up = names(); sizes.click(); found.down = names(); sizes.click(); found.measured = names();
const filter = document.querySelector(".tools input");
filter.value = "INT8"; filter.dispatchEvent(new Event("input")); found.filtered = names();
document.querySelector(".point").dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
found.tip = texts(".tip")[0]; found.wide = document.documentElement.scrollWidth - innerWidth;
let copied; Object.defineProperty(navigator, "clipboard", { value: { writeText: async text => { copied = text; } }, configurable: true });
for (const button of document.querySelector(".tools").querySelectorAll("button")) {
  button.click();
  found[button.textContent.split(" ")[1]] = copied;
}
document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("chromium is not installed; it opens the report")
    return found


def opened(chromium: str, page: Path, width: int = 1280) -> str:
    """The document after its scripts."""
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([chromium, *arguments, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def result(made: Any) -> Any:
    return made.result(
        made.one("fp32"),
        made.one("int8", 8e-4, ratio=(1.25, 1.2, 1.3), balanced=0.969, size_bytes=300_000, doubts=("never became steady",)),
        made.one("int8, =1+1", 6e-4, ratio=(1.7, 1.6, 1.8), balanced=0.955, size_bytes=250_000),
        made.missing("gpu", "no CUDA device", device="cuda"),
        made.one("fp32", 9e-3, runtime="torch", ratio=(0.11, 0.1, 0.12)),
    )


def test_the_page_moves_hides_sorts_and_copies(chromium: str, result: Any, tmp_path: Path) -> None:
    write_report([result], tmp_path, Limits())
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "asked.html").write_text(POLICY.sub("", page).replace("</body>", f"{ASK}</body>"))
    found = json.loads(html.unescape(opened(chromium, tmp_path / "asked.html").rpartition('<pre id="found">')[2].partition("</pre>")[0]))

    def told(**limits: Any) -> list[Any]:
        verdict = decide(result, Limits(**limits))
        return [verdict.headline, list(verdict.reasons), [verdict.ship], [verdict.ship]]

    def seen(state: dict[str, Any]) -> list[Any]:
        return [state[name] for name in ("headline", "reasons", "chosen", "ringed")]

    assert seen(found["start"]) == seen(found["again"]) == told() and found["start"]["chosen"] == ["int8"]
    assert seen(found["strict"]) == told(max_drop=0) and found["strict"]["chosen"] == ["fp32"]
    assert seen(found["fast"]) == told(max_drop=10, max_latency=0.6) and found["fast"]["chosen"] == ["int8, =1+1"]
    assert found["fast"]["command"] == "compress report --max-drop 10 --max-latency 0.6"
    assert found["collide"] == 0
    assert found["torch"] == [0, 1, "true"]  # it squeezes the plot of latencies, and its file is that of fp32
    assert found["up"] == ["int8, =1+1", "int8", "fp32", "fp32", "gpu"] and found["down"] == ["fp32", "fp32", "int8", "int8, =1+1", "gpu"]
    assert found["measured"] == ["fp32", "int8", "int8, =1+1", "gpu", "fp32"] and found["filtered"] == ["int8", "int8, =1+1"]
    assert found["tip"].startswith("int8, =1+1 (onnxruntime, cpu): 0.600 ms (0.594 to 0.606), balanced accuracy 95.50%, drop 1.50")
    assert found["wide"] <= 0
    lines = found["Markdown"].splitlines()
    assert lines[0].startswith("| Variant | Runtime, device | p50, ms |") and lines[2].startswith(
        "| int8 (ship) | onnxruntime, cpu | 0.800 (?) (0.792"
    )
    assert found["CSV"].splitlines()[0].startswith('Variant,"Runtime, device","p50, ms","p50, ms, interval"')
    assert '"int8, =1+1","onnxruntime, cpu",0.600,0.594 to 0.606' in found["CSV"]


def test_no_other_script_runs_and_on_a_phone_nothing_sticks_out(chromium: str, result: Any, tmp_path: Path) -> None:
    write_report([result], tmp_path, Limits())
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "evil.html").write_text(page.replace("</body>", "<script>document.body.id = 'evil'</script></body>"))
    seen = opened(chromium, tmp_path / "evil.html", 390)
    assert "<body>" in seen and 'class="ask" hidden' not in seen and seen.count('aria-pressed="false"') == 1


def test_without_the_script_everything_is_there(result: Any, tmp_path: Path) -> None:
    write_report([result], tmp_path, Limits())
    page = re.sub(r"<script.*?</script>", "", (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    verdict = decide(result, Limits())
    for said in (verdict.headline, *verdict.reasons):
        assert said.replace("'", "&#39;") in page
    assert page.count('class="layout" data-layout="all">') == 4 and page.count("<title>") == 1 + 2 * (4 + 3) + 2 * 3


def test_what_stands_in_a_script_cannot_end_it() -> None:
    text = str(embedded({"name": "</script><!-- & ü"}))
    assert not set("<>&") & set(text) and json.loads(text) == {"name": "</script><!-- & ü"}
