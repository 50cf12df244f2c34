"""The parts of a page in one file: its style, its script with the hash that alone lets it run, and data that the script reads."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parents[1] / "templates"


def page_parts(*scripts: str) -> dict[str, Any]:
    """``style``, ``script`` and ``script_hash`` for a template; the script is these files one after the other, in a scope of its own."""
    from markupsafe import Markup

    code = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)
    script = f'(() => {{\n"use strict";\n{code}}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")), "script": Markup(script), "script_hash": Markup(digest)}


def embedded(value: Any) -> Any:
    """A value as JSON that may stand within a script element: whatever it holds, nothing in it ends that; None stays None."""
    from markupsafe import Markup

    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
