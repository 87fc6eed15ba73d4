"""How the site is made of the files of the repository: hooks of mkdocs, named in ``mkdocs.yml``.

Pages lie where a reader of the repository looks for them, in ``docs/``, ``spec/`` and its root, and link to each other
there. The site has them all under the same names, so that every link holds in both places; ``docs/`` is left out of
addresses.
"""

import re
import tempfile
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parents[1]
_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**/*.md", "docs/**/*.png", "spec/**/*.md")
#: What lies beside the sources and is no page of ours.
_NOT = ("spec/readers/js/vendor/", "spec/vectors/frames/")
#: Packages of the API, by the folder that they lie in.
_PACKAGES = {"bsformat": "bsformat", "bitstack": "bitstack", "kernels": "bitstack/kernels", "loader": "bitstack/loader"}
_LINK = re.compile(r"(?<!\!)\[([^\]\n]+)\]\(([^)\s#:]+)\)")
_farm = tempfile.TemporaryDirectory(prefix="bstk-docs-")


@event_priority(100)  # before the plugin looks at its settings
def on_config(config: Any) -> Any:
    """Show the reader of docstrings, which runs nothing, the packages under the names that they are imported by."""
    farm = Path(_farm.name)
    for folder, place in _PACKAGES.items():
        (farm / place).mkdir(exist_ok=True)
        for path in (_ROOT / folder).glob("*.py"):
            # A colon twice, before an example, is what other formats of docstrings have in the place of one.
            text = re.sub(r"(?<=\S)::$", ":", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            (farm / place / path.name).write_text(text, encoding="utf-8")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(farm)]
    return config


def on_files(files: Files, config: Any) -> Files:
    """The pages of the repository in the place of the contents of ``docs/``."""
    kept = [file for file in files if file.src_uri not in _in_docs()]
    for pattern in _PAGES:
        for path in sorted(_ROOT.glob(pattern)):
            name = path.relative_to(_ROOT).as_posix()
            if not name.startswith(_NOT):
                kept.append(_page(name, config))
    return Files(kept)


def _in_docs() -> set[str]:
    folder = _ROOT / "docs"
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _page(name: str, config: Any) -> File:
    file = File.generated(config, name, abs_src_path=str(_ROOT / name))
    if name.startswith("docs/"):
        plain = File.generated(config, name.removeprefix("docs/"), content="")
        file.dest_uri, file.url = plain.dest_uri, plain.url
        file.abs_dest_path = plain.abs_dest_path
    return file


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to what is in the repository and not on the site: to the page of a folder, else to nothing."""

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        place = normpath(join(dirname(page.file.src_uri), target))
        if files.get_file_from_path(place) is not None or not (_ROOT / place).exists():
            return found[0]  # as it is; if nothing is there, mkdocs says so
        if files.get_file_from_path(f"{place}/README.md") is not None:
            return f"[{text}]({target.rstrip('/')}/README.md)"
        return text

    return _LINK.sub(link, markdown)
