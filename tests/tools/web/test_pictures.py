"""What the page draws: counted from the file, escaped, within bounds."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

import bsformat
from bitstack.tools import summary
from bitstack.tools.curve import Point, QualityCurve
from bitstack.tools.web import levels
from bitstack.tools.web.levels import Levels
from bitstack.tools.web.pictures import curve_picture, escaped, levels_picture
from tests.bsformat.encoder import Image

SVG = "{http://www.w3.org/2000/svg}"


def test_every_cell_is_the_number_of_levels_of_its_matrix(tiny_bstk: Path) -> None:
    with bsformat.open(tiny_bstk) as container:
        counted = Levels(container)
        for n_blocks in (container.index.required, len(container) // 2, len(container)):
            grid = counted.grid(n_blocks)
            assert grid.layers == (0, 1)
            assert len(grid.projections) == 7
            assert "mlp.down_proj" in grid.projections
            assert grid.left_out == 0
            held = np.bincount(container.index.chain[:n_blocks].astype(int), minlength=container.metadata.n_chains)
            for i, name in enumerate(grid.projections):
                for j in grid.layers:
                    tensor = container.model_tensors[f"model.layers.{j}.{name}.weight"]
                    assert grid.held[i, j] == held[tensor.first_chain]
            assert [name for name, _, _ in grid.others] == ["model.embed_tokens", "lm_head"]
        assert np.array_equal(counted.grid(len(container)).held, grid.most)
        assert np.nansum(counted.grid(container.index.required).held) == 0
        # The same levels as `bstk plan` counts.
        assert counted.most == max(summary.levels_held(container, len(container)))


def test_the_heat_map_says_each_cell_in_words(tiny_bstk: Path) -> None:
    with bsformat.open(tiny_bstk) as container:
        counted = Levels(container)
        picture = ElementTree.fromstring(levels_picture(counted.grid(len(container)), 0, counted.most))
    titles = [title.text for title in picture.iter(f"{SVG}title")]
    assert len(titles) == 2 * 7 + 2
    assert "layer 1, mlp.down_proj: 5 of 5 levels" in titles
    assert picture.get("aria-label") == "Levels held by layer and projection: 100% of all levels"


def test_names_of_any_architecture_find_a_cell() -> None:
    assert levels._projection("model.layers", "mlp.experts.17.w1") == "mlp.experts.*.w1"
    assert levels._projection("encoder.block", "layer.0.SelfAttention.q") == "encoder layer.*.SelfAttention.q"


def test_a_file_of_very_many_layers_is_cut(tiny_bstk: Path, monkeypatch: object) -> None:
    with bsformat.open(tiny_bstk) as container:
        levels_before = levels.MOST_LAYERS, levels.MOST_PROJECTIONS
        try:
            levels.MOST_LAYERS, levels.MOST_PROJECTIONS = 1, 3  # type: ignore[misc]
            grid = Levels(container).grid(len(container))
        finally:
            levels.MOST_LAYERS, levels.MOST_PROJECTIONS = levels_before  # type: ignore[misc]
    assert (len(grid.layers), len(grid.projections)) == (1, 3)
    assert grid.left_out == 14 - 3
    assert "11 more tensors are not drawn" in levels_picture(grid, 0, 5)


def test_the_curve_has_its_points_and_both_budgets() -> None:
    curve = QualityCurve([Point(100, 80.0), Point(200, 40.0), Point(300, 20.0)])
    text = curve_picture(curve, 18.0, [("Left", 150), ("Right", 50)], 300)
    picture = ElementTree.fromstring(text)
    circles = list(picture.iter(f"{SVG}circle"))
    assert len(circles) == 3 + 1  # nothing is claimed where nothing was measured
    assert f"about {math.sqrt(80 * 40):.2f}" in str(picture.get("aria-label"))
    assert "Right: 50 B, not measured here" in str(picture.get("aria-label"))
    assert "dense 18.00" in text


def test_a_file_without_a_curve_says_so() -> None:
    assert "no quality curve" in curve_picture(QualityCurve([]), None, [], 300)
    one = curve_picture(QualityCurve([Point(100, 20.0)]), math.inf, [("Left", 100)], 300)
    assert len(list(ElementTree.fromstring(one).iter(f"{SVG}circle"))) == 2


def test_what_a_file_says_is_no_markup(tiny_image: Image, tmp_path: Path) -> None:
    assert escaped('<script>"${x}"') == "&lt;script&gt;&quot;&#36;&#123;x&#125;&quot;"
    evil = "model.layers.0.<img src=x onerror=alert(1)>${1}.weight"
    row = next(t for t in tiny_image.meta["tensors"] if t["name"] == "model.layers.0.mlp.up_proj.weight")
    row["name"] = evil
    path = tmp_path / "evil.bstk"
    path.write_bytes(tiny_image.seal())
    with bsformat.open(path) as container:
        counted = Levels(container)
        text = levels_picture(counted.grid(len(container)), 1, counted.most)
    ElementTree.fromstring(text)
    assert "<img" not in text
    assert "${" not in text
