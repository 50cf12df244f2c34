"""The page: whole in itself, under a policy that runs its own script and style and nothing else."""

import base64
import hashlib
import re

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from compress.serve.app import PAGE
from compress.serve.guard import page_policy

HTML = PAGE.read_text(encoding="utf-8")


def test_nothing_of_it_comes_from_elsewhere() -> None:
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:)[^"']+|url\(|@import|https?://""", HTML)
    assert "style=" not in HTML and not re.findall(r"\son[a-z]+=", HTML)  # the policy would refuse them


def test_the_policy_has_the_hashes_of_script_and_style() -> None:
    policy = page_policy(HTML)
    for tag in ("script", "style"):
        [part] = re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "connect-src 'self'" in policy


def test_every_part_that_the_script_asks_for_is_there() -> None:
    ids = set(re.findall(r'id="([a-z]+)"', HTML))
    assert set(re.findall(r'\$\("([a-z]+)"\)', HTML)) <= ids
    classes = {name for names in re.findall(r'class="([^"]+)"', HTML) for name in names.split()}
    assert set(re.findall(r'part\("([a-z-]+)"\)', HTML)) <= classes


def test_what_can_be_used_has_a_name() -> None:
    for tag in re.findall(r"<(?:input|canvas|img|video)[^>]*>", HTML):
        named = any(word in tag for word in ("aria-label=", "alt=", "hidden", 'class="large sees"', 'class="own"'))
        label = (found := re.search(r'id="(\w+)"', tag)) and f'for="{found[1]}"' in HTML
        assert named or label or re.search(rf"<label>{re.escape(tag)} \w", HTML), tag
