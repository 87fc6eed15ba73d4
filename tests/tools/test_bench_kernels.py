"""The measurement of kernels, on matrices so small that a CPU will do. Counts and structure; no times."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bitstack import kernels
from bitstack.kernels import SignBlock, SparseBlock
from bitstack.tools.bench import anchors, timing
from bitstack.tools.bench import kernels as bench
from bitstack.tools.bench.accuracy import WrongResult, check, errors_of
from bitstack.tools.bench.random_chains import KINDS, random_chain

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "REPLAYS", (3, 3))


@pytest.fixture
def measured(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Exit code, result and stderr of the command."""

    def run(*args: str) -> tuple[int, dict[str, Any], str]:
        code = bench.main([*args, "--device", "cpu"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return run


def test_every_row_has_a_time_an_error_and_a_floor(measured: Callable[..., Any]) -> None:
    code, result, err = measured("--shapes", "48x128,64x256", "--blocks", "1,2", "--tokens", "1,3")
    assert code == 0
    shapes, tokens, counts = 2, 2, 2
    names = Counter(row["name"] for row in result["rows"])
    assert names == dict.fromkeys(anchors.ANCHORS, shapes * tokens) | dict.fromkeys(KINDS, shapes * tokens * counts)
    for row in result["rows"]:
        if row["name"] == "nf4":
            assert row["skipped"]
            continue
        assert 0 < row["least"] <= row["microseconds"]
        assert 0 < row["error_rms"] <= row["error_max"] < 0.1
        assert row["copies"] == 2
        assert row["replays"] == 3
        assert row["calls"] >= timing.CALLS
        moved = row["nbytes"] + 2 * row["tokens"] * (row["rows"] + row["columns"])
        assert row["floor"] == pytest.approx(1e6 * moved / result["copy_bandwidth"], abs=1e-3)
        assert row["floor_share"] == pytest.approx(row["floor"] / row["microseconds"], rel=0.02, abs=1e-3)
    assert result["left_out"] == []
    assert result["method"] == "wall clock"
    assert {"hardware", "versions", "rotated_bytes", "l2_bytes"} <= set(result)
    assert err.count("\n") == 1 + len(result["rows"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_measure_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--shapes", "1024x4096", "--blocks", "1,3", "--tokens", "1,32", "--device", "cuda"]
    assert bench.main(args) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "CUDA graph replay"
    assert result["rotated_bytes"] >= 3 * result["l2_bytes"] > 0
    for row in result["rows"]:
        assert "skipped" in row or row["copies"] * row["nbytes"] > 0.5 * result["rotated_bytes"]
    assert bench.main(["--once", "256x512", "--blocks", "2", "--device", "cuda"]) == 0


def test_the_default_run_has_the_rows_of_the_page() -> None:
    rows = list(bench.cases([*anchors.ANCHORS, *KINDS]))
    chains = [case for case in rows if case.blocks]
    one = [case for case in chains if case.tokens == 1 and case.dtype == "bfloat16"]
    assert len(one) == 4 * 6 * 3
    assert len([case for case in chains if case.tokens > 1]) == 3 * 6 * 3
    assert len([case for case in chains if case.dtype == "float16"]) == 6 * 3
    assert len([case for case in rows if not case.blocks]) == 3 * (3 * 7 + 1 + 1)
    assert len(rows) == len(set(rows))


def test_what_is_asked_for_is_what_is_measured() -> None:
    rows = list(bench.cases(["default"], [(1024, 4096)], [2], [1, 4]))
    assert [(case.blocks, case.tokens) for case in rows] == [(2, 1), (2, 4)]


@pytest.mark.parametrize("wrong", ["scaled", "nan", "unwritten", "one row"])
def test_a_wrong_kernel_gets_no_time(wrong: str, measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.linear

    def linear(x: torch.Tensor, chain: Any, *, out: torch.Tensor, backend: str) -> torch.Tensor:
        if wrong == "unwritten":
            return out
        right(x, chain, out=out, backend=backend)
        if wrong == "scaled":
            return out.mul_(1.02)
        out[:, :1] = torch.nan if wrong == "nan" else 0
        return out

    monkeypatch.setattr(kernels, "linear", linear)
    code, result, err = measured("--shapes", "64x128", "--blocks", "1", "--tokens", "1", "--only", "cublas,sign")
    assert code == 1
    cublas, sign = result["rows"]
    assert cublas["microseconds"] > 0
    assert "wrong result" in sign["refused"]
    assert "microseconds" not in sign
    assert "wrong result" in err


def test_a_kernel_that_fails_takes_no_other_row_along(
    measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def linear(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(kernels, "linear", linear)
    code, result, _ = measured("--shapes", "64x128", "--blocks", "1", "--tokens", "1", "--only", "sign,cublas")
    assert code == 1
    by_name = {row["name"]: row for row in result["rows"]}
    assert by_name["sign"]["refused"] == "RuntimeError: no such instruction"
    assert "microseconds" in by_name["cublas"]


def test_the_last_plane_of_eight_is_missed() -> None:
    chain = random_chain("default", 256, 512, 8, CPU)
    x = torch.randn(4, 512)
    dense = kernels.rebuild(chain, dtype=torch.float64, backend="reference")
    short = kernels.Chain(256, 512, chain.row_scale, chain.col_scale, chain.blocks[:-1])
    for used, good in ((chain, True), (short, False)):
        y = kernels.linear(x.bfloat16(), used)
        errors = errors_of(y, x.bfloat16(), dense)
        if good:
            check(errors, torch.bfloat16)
        else:
            with pytest.raises(WrongResult, match="error_rms"):
                check(errors, torch.bfloat16)


def test_what_the_time_does_not_reach_is_listed(measured: Callable[..., Any]) -> None:
    code, result, err = measured("--shapes", "64x128", "--blocks", "1", "--tokens", "1", "--seconds", "-1")
    assert code == 0
    assert result["rows"] == []
    assert [row["name"] for row in result["left_out"]] == [*anchors.ANCHORS, *KINDS]
    assert "6 cases are left out" in err


def test_once_runs_without_a_report(measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    right = kernels.linear
    monkeypatch.setattr(kernels, "linear", lambda x, chain, **more: seen.append(chain) or right(x, chain, **more))
    assert measured("--once", "64x128", "--blocks", "3", "--only", "default")[:2] == (0, {})
    # One to compare, then every copy to warm up and to be profiled.
    assert len(seen) == 1 + 2 * 2
    assert {len(chain.blocks) for chain in seen} == {4}


def test_what_is_asked_wrongly_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--only", "sign,gptq"], ["--blocks", "0"], ["--shapes", "64"]):
        with pytest.raises(SystemExit) as stop:
            bench.main(args)
        assert stop.value.code == 2
        assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_chains_are_what_their_kind_says(kind: str) -> None:
    chain = random_chain(kind, 200, 512, 3, CPU)
    signs = [block for block in chain.blocks if isinstance(block, SignBlock)]
    assert len(signs) == 3
    assert {block.rank for block in signs} == {2 if kind == "default" else 16}
    assert {block.u.dtype for block in signs} == {torch.float16 if kind == "sign" else torch.float8_e4m3fn}
    dense = kernels.rebuild(chain, dtype=torch.float64, backend="reference")
    assert dense.isfinite().all()
    assert dense.norm(dim=1).mean().item() == pytest.approx(1, abs=0.5)
    if kind == "default":
        (sparse,) = [block for block in chain.blocks if isinstance(block, SparseBlock)]
        assert 0.001 < sparse.entries / (200 * 512) < 0.006
        assert [block.gain for block in signs] == [1, 0.5, 0.25]
        assert len({block.u.data_ptr() for block in signs}) == 1
    for block in signs:
        assert (block.u.float() > 0).all()
        assert (block.v.float() > 0).all()


def test_an_unknown_kind_of_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of chain 'x'"):
        random_chain("x", 8, 8, 1, CPU)


def test_tinygemm_says_what_it_cannot_take() -> None:
    for shape, dtype in (((64, 128), torch.float16), ((24, 128), torch.bfloat16), ((64, 192), torch.bfloat16)):
        with pytest.raises(anchors.Unavailable):
            anchors.tinygemm(*shape, dtype, CPU)
