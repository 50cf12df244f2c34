"""The page as one text, of the parts that lie beside this file: its drawing, preprocessing and bars are the same wherever it is asked.

::

    service_page()    asks the service that it comes from                     page.html, service.js
    browser_page()    runs the files beside it with onnxruntime-web           page.html, pictures.js, browser.js
    offline_script()  keeps those files for when their host is away           offline.js

Both run under a policy that allows their own script and style, by their hashes, and no other host.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
FORM = """  <form id="ask" hidden>
    <label for="token">This service asks for a token</label>
    <input id="token" type="password" autocomplete="off" required> <button>Use it</button>
  </form>
"""
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'"


def service_page() -> str:
    """The page of ``compress serve``; its policy goes with it as a header."""
    return _whole({"<!-- policy -->\n": "", "  <!-- form -->\n": FORM, "this place": "this host", "// asking\n": _part("service.js")})


def browser_page() -> str:
    """The page of ``compress page``, its policy within, as a static host sends no headers of ours."""
    html = _whole({"  <!-- form -->\n": "", "this place": "this browser", "// asking\n": f"{_part('pictures.js')}\n{_part('browser.js')}"})
    own = f"script-src {_hashes(html, 'script')} 'self' 'wasm-unsafe-eval'; style-src {_hashes(html, 'style')}"
    policy = f"{_NOTHING}; {own}; {_READS}; worker-src 'self'"
    return _replaced(html, "<!-- policy -->\n", f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n')


def offline_script(files: Sequence[str], version: str) -> str:
    """What the browser keeps that page with; ``files``: their addresses, ``version``: another one where one of them changes."""
    prefix = "compress-page-"
    return (
        f"const PREFIX = {json.dumps(prefix)}, NAME = {json.dumps(prefix + version)}, FILES = {json.dumps(files)};\n{_part('offline.js')}"
    )


def page_policy(html: str) -> str:
    """The header under which the page's own script and style run, and nothing else; all it may ask is this host."""
    return f"{_NOTHING}; frame-ancestors 'none'; script-src {_hashes(html, 'script')}; style-src {_hashes(html, 'style')}; {_READS}"


_READS = "connect-src 'self'; img-src 'self' blob: data:; media-src blob:"


def _whole(parts: dict[str, str]) -> str:
    html = _part("page.html")
    for mark, text in parts.items():
        html = _replaced(html, mark, text)
    return html


def _replaced(html: str, mark: str, text: str) -> str:
    assert html.count(mark) == 1, f"{mark} stands once in the page"
    return html.replace(mark, text)


def _part(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hashes(html: str, tag: str) -> str:
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts)
