"""The site, built strictly from the working tree into a folder of the test."""

import html
import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="what builds the site is not installed (extra docs)",
)

API = {"bitstack": "bitstack", "bsformat": "bsformat", "loader": "bitstack.loader", "kernels": "bitstack.kernels"}
#: What a browser fetches by itself, other than links that a person follows.
FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\bhref=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def site(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=repo_root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def pages(site: Path) -> dict[str, str]:
    found = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(found) > 20
    return found


def test_every_page_of_the_repository_is_there(site: Path, repo_root: Path) -> None:
    there = pages(site)
    assert {"index.html", "spec/bstk-v1/index.html", "spec/readers/js/index.html", "CHANGELOG/index.html"} <= set(there)
    for path in (repo_root / "docs").rglob("*.md"):
        assert f"{path.relative_to(repo_root / 'docs').with_suffix('').as_posix()}/index.html" in there


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    for page, name in API.items():
        text = (site / "api" / page / "index.html").read_text(encoding="utf-8")
        module = importlib.import_module(name)
        described = set(re.findall(r'id="([\w.]+)"', text))
        for public in set(module.__all__) - {"__version__", "BACKENDS"}:
            places = {f"{name}.{public}", f"{name}.{public}.{public}"}
            module_itself = public == "errors" and "bsformat.errors.BstkError" in described
            assert places & described or module_itself, f"{name}.{public} is not on docs/api/{page}.md"


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    fetched = {one or other for text in pages(site).values() for one, other in FETCHED.findall(text)}
    assert len(fetched) > 10
    assert {url for url in fetched if re.match(r"(\w+:)?//", html.unescape(url))} == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8"))


def test_lists_are_lists_on_the_site_too(site: Path) -> None:
    """Where a list follows a line of text at once, GitHub makes a list of it and the site does not."""
    for name, text in pages(site).items():
        prose = re.sub(r"<(pre|script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert re.findall(r"\n *(?:[-*]|\d+\.) [^\n]*", prose) == [], name


def test_links_of_the_repository_lead_to_pages(site: Path) -> None:
    for name, text in pages(site).items():
        for target in re.findall(r'<a\b[^>]*\bhref="([^"#?:]+)[^"]*"', text):
            if not target.startswith(("/", "http")):
                place = (site / name).parent / target
                assert (place / "index.html").is_file() or place.is_file(), f"{name}: {target}"
