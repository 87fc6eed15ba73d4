"""Tuning the kernels: the search, what it keeps, and what a damaged file of configurations does."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bitstack.kernels import configs
from bitstack.kernels.configs import HOPPER, OTHER, Config
from bitstack.tools.tuning import CHOICES, neighbours, search


def _valley(config: Config) -> float:
    """Least where every number is the last of its choices, and reached by better steps only."""
    return 100.0 - sum(3 * CHOICES[name].index(getattr(config, name)) for name in ("rows", "warps", "stages"))


def test_the_search_ends_in_the_valley() -> None:
    seen: list[Config] = []
    found = search(OTHER, _valley, 60, lambda config, time: seen.append(config))
    assert found.complete
    assert (found.config.rows, found.config.warps, found.config.stages) == (256, 8, 4)
    assert found.microseconds == _valley(found.config) < found.before == _valley(OTHER)
    assert len(seen) == len(set(seen)) == len(found.tried)


def test_what_does_not_run_is_passed_over() -> None:
    found = search(OTHER, lambda config: None if config.rows > 64 else _valley(config), 60, lambda *_: None)
    assert found.config.rows == 64
    with pytest.raises(ValueError, match="to begin with does not run"):
        search(OTHER, lambda config: None, 60, lambda *_: None)


def test_noise_is_no_gain() -> None:
    found = search(OTHER, lambda config: 100.0 if config == OTHER else 99.5, 60, lambda *_: None)
    assert found.config == OTHER


def test_nothing_is_begun_after_the_time() -> None:
    found = search(OTHER, _valley, -1, lambda *_: None)
    assert (found.config, len(found.tried), found.complete) == (OTHER, 1, False)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("start", [OTHER, HOPPER])
def test_every_neighbour_is_sound(start: Config, name: str) -> None:
    values = [getattr(config, name) for config in neighbours(start, name)]
    assert values
    assert getattr(start, name) not in values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 100}, "rows must be a power of two, not 100"),
        ({"rows": 1 << 20}, "rows must be a whole number from 16 to 256"),
        ({"warps": 0}, "warps must be a whole number from 1 to 16, not 0"),
        ({"stages": "2"}, "stages must be a whole number"),
        ({"chunk": 128}, "8 \\* bytes = 256 must divide chunk = 128"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(OTHER, **change)


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "kernels.json"
    configs.keep_config(path, "GPU 1", HOPPER)
    configs.keep_config(path, "GPU 2", OTHER)
    assert configs.kept_configs(path) == {"GPU 1": HOPPER, "GPU 2": OTHER}
    configs.keep_config(path, "GPU 1", None)
    assert configs.kept_configs(path) == {"GPU 2": OTHER}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "it is no object"),
        ('{"GPU 1": 3}', "'GPU 1' must have bytes, chunk, "),
        ('{"GPU 1": {"rows": 64}}', "'GPU 1' must have bytes, chunk, "),
        (json.dumps({"GPU 1": asdict(OTHER) | {"warps": 3}}), "'GPU 1': warps must be a power of two, not 3"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "kernels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        configs.kept_configs(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("mend it, or remove it to use what is shipped")


def test_a_backend_that_is_not_there_is_one_line(failed: Callable[..., str], tiny_bstk: Path) -> None:
    said = failed("generate", tiny_bstk, "--prompt", "the", "--device", "cpu", "--kernels", "hopper")
    assert "backend 'hopper' does not run on cpu; there: " in said
    said = failed("generate", tiny_bstk, "--prompt", "the", "--device", "cpu", "--kernels", "fast")
    assert "backend 'fast' is unknown; there: " in said


def test_there_is_nothing_to_tune_on_a_cpu(failed: Callable[..., str]) -> None:
    assert "there is nothing to tune on cpu" in failed("tune", "--device", "cpu")
