"""The page, of the service and of a folder: whole in itself, under a policy that runs its own script and style and nothing else."""

import base64
import hashlib
import re

import pytest

from compress.serve.page.html import browser_page, page_policy, service_page

SERVICE, BROWSER = service_page(), browser_page()
META = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">\n')
both = pytest.mark.parametrize("html", [SERVICE, BROWSER], ids=["service", "browser"])


@both
def test_nothing_of_it_comes_from_elsewhere(html: str) -> None:
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:)[^"']+|url\(|@import|https?://""", html)
    assert "style=" not in html and not re.findall(r"\son[a-z]+=", html)  # the policy would refuse them
    assert not re.findall(r"<!-- \w+ -->|^// asking", html, re.MULTILINE)


def test_the_policies_have_the_hashes_of_script_and_style() -> None:
    told, within = page_policy(SERVICE), META.findall(BROWSER)
    assert len(within) == 1 and not META.findall(SERVICE) and META.search(BROWSER[: BROWSER.index("<style>")])
    for html, policy in ((SERVICE, told), (BROWSER, within[0])):
        for tag in ("script", "style"):
            [part] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
            assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" in policy
        assert policy.startswith("default-src 'none'") and "unsafe-inline" not in policy and "connect-src 'self'" in policy
    assert "unsafe" not in told and "frame-ancestors 'none'" in told
    assert within[0].endswith("; worker-src 'self'") and "worker-src" not in told
    assert re.findall(r"script-src '[^']*'([^;]*);", within[0]) == [" 'self' 'wasm-unsafe-eval'"]


@both
def test_every_part_that_the_script_asks_for_is_there(html: str) -> None:
    ids = set(re.findall(r'id="([a-z]+)"', html))
    assert set(re.findall(r'\$\("([a-z]+)"\)', html)) <= ids
    classes = {name for names in re.findall(r'class="([^"]+)"', html) for name in names.split()}
    assert set(re.findall(r'part\("([a-z-]+)"\)', html)) <= classes


@both
def test_what_can_be_used_has_a_name(html: str) -> None:
    for tag in re.findall(r"<(?:input|canvas|img|video)[^>]*>", html):
        named = any(word in tag for word in ("aria-label=", "alt=", "hidden", 'class="large sees"', 'class="own"'))
        label = (found := re.search(r'id="(\w+)"', tag)) and f'for="{found[1]}"' in html
        assert named or label or re.search(rf"<label>{re.escape(tag)} \w", html), tag


def test_drawing_preprocessing_and_bars_are_the_same() -> None:
    """What lies between the parts is one text: all functions of the service's page but those that ask are in the other."""
    functions = [set(re.findall(r"^(?:async )?function (\w+)", page, re.MULTILINE)) for page in (SERVICE, BROWSER)]
    assert functions[0] - functions[1] == {"ask"}
    assert {"models", "answer", "evidence", "render", "show", "trace"} <= functions[1]
