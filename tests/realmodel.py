"""SmolLM2-135M-Instruct, packed: a fixture for tests marked `model`."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_bstk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `smollm2_gguf`, packed once a session with little text and one design for all: minutes on two cores.

    BSTK_TEST_FILE names a file that was packed before, which saves that time while developing.
    """
    if named := os.environ.get("BSTK_TEST_FILE"):
        return Path(named)
    gguf: Path = request.getfixturevalue("smollm2_gguf")
    import bitstack

    recipe = bitstack.Recipe().changed(
        {
            "calib.tokens": 2048,
            "calib.gradient_tokens": 2048,
            "calib.window": 512,
            "decompose.linear.designs": ("s0.3 b3 s0.5 b2",),
            "decompose.linear.ranks": (1, 4),
            "decompose.token.designs": ("b1 b1 b1 b1 b1 b1",),
            "decompose.token.ranks": (2, 8),
            "tune.steps": 4,
            "eval.heldout_tokens": 1024,
            "eval.curve_points": 3,
        }
    )
    path = tmp_path_factory.mktemp("smollm2") / "smollm2.bstk"
    bitstack.pack(gguf, path, recipe=recipe)
    return path
