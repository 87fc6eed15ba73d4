"""The measurement of a whole model, on a tiny one."""

import json
from typing import Any

import pytest
import torch
from torch.nn import functional

from bitstack import kernels
from bitstack.tools.bench import variants, whole_model
from bitstack.tools.bench.decoder import GROUPS, SHAPES, Decoder

CPU = torch.device("cpu")
TINY = SHAPES["tiny"]


def test_every_variant_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    budgets = [200_000, 250_000]
    args = ["--model", "tiny", "--budgets", ",".join(map(str, budgets)), "--steps", "4", "--device", "cpu"]
    assert whole_model.main(args) == 0
    result = json.loads(capsys.readouterr().out)
    rows = result["models"]
    assert [row["variant"] for row in rows] == ["packed", "packed", "bf16", "int4", "bf16-joined", "int4-joined"]
    for row, budget in zip(rows[:2], budgets, strict=True):
        assert 0.9 * budget < row["resident_bytes"] <= budget
        assert row["bits_least"] in (row["bits_most"], row["bits_most"] - 1)
    elements = 2 * TINY.vocabulary * TINY.hidden + (2 * TINY.layers + 1) * TINY.hidden
    elements += TINY.layers * sum(m * n for m, n in TINY.matrices.values())
    assert rows[2]["resident_bytes"] == 2 * elements
    assert rows[3]["resident_bytes"] < rows[2]["resident_bytes"]
    assert [row["resident_bytes"] for row in rows[4:]] == [row["resident_bytes"] for row in rows[2:4]]
    for row in rows:
        assert row["steps"] == 4
        assert row["tokens_per_second"] > 0
    resize = rows[0]["resize"]
    assert resize["logits_changed"]
    assert resize["as_a_new_graph"]
    assert resize["back_as_before"]
    assert 0 < resize["bytes_more"] <= budgets[1] - rows[0]["resident_bytes"]
    assert 0 < resize["tables"] <= resize["blocks"]
    assert all("resize" not in row for row in rows[1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_measures_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--model", "tiny", "--budgets", "200000,250000", "--steps", "20", "--device", "cuda"]
    assert whole_model.main(args) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [row["variant"] for row in rows] == ["packed", "packed", "bf16", "int4", "bf16-joined", "int4-joined"]
    resize = rows[0]["resize"]
    assert resize["back_as_before"]
    assert resize["logits_changed"]
    assert resize["as_a_new_graph"]


def test_a_wrong_kernel_fails_its_rows_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = kernels.linear
    monkeypatch.setattr(kernels, "linear", lambda x, chain, **more: right(x, chain, **more) * 1.05)
    args = ["--model", "tiny", "--budgets", "200000", "--variants", "packed,int4", "--steps", "2", "--device", "cpu"]
    assert whole_model.main(args) == 1
    packed, int4 = json.loads(capsys.readouterr().out)["models"]
    assert "wrong result" in packed["failed"]
    assert "tokens_per_second" not in packed
    assert int4["tokens_per_second"] > 0


def test_plans_fill_budgets_from_the_front() -> None:
    sizes = variants.shapes_of(TINY)
    previous = 0
    for budget in range(80_000, 300_000, 17_000):
        bits = variants.planned(TINY, budget, 1000)
        assert bits == sorted(bits, reverse=True)
        assert bits[0] - bits[-1] <= 1
        used = [variants.chain_bytes(m, n, b, share) for (m, n, share), b in zip(sizes, bits, strict=True)]
        assert previous < sum(used) + 1000 <= budget
        previous = sum(used)
    assert set(variants.planned(TINY, 1 << 30, 0)) == {variants.BITS[-1]}
    with pytest.raises(ValueError, match="one bit of every matrix"):
        variants.planned(TINY, 20_000, 0)


def test_a_plan_is_what_its_chains_take() -> None:
    for rows, columns, share in ((256, 128, 0.003), (512, 128, 0.0)):
        for bits in (1, 4):
            chain = variants.default_chain(rows, columns, bits, CPU, share=share)
            planned = variants.chain_bytes(rows, columns, bits, share)
            assert 0.97 * planned <= chain.nbytes <= planned


def test_the_decoder_attends_as_a_model_without_a_cache_does() -> None:
    """Against the same model written for a whole sequence, keys repeated for their query heads."""
    torch.manual_seed(0)
    layers = [{name: torch.randn(m, n) * n**-0.5 for name, (m, n) in TINY.matrices.items()} for _ in range(TINY.layers)]
    table, head = torch.randn(TINY.vocabulary, TINY.hidden), torch.randn(TINY.vocabulary, TINY.hidden)

    def linear(*ws: torch.Tensor) -> Any:
        return lambda x: [functional.linear(x, w) for w in ws]

    decoder = Decoder(
        TINY,
        [[linear(*(layer[name] for name in group)) for group in GROUPS] for layer in layers],
        lambda x: functional.linear(x, head),
        lambda ids: table[ids],
        dtype=torch.float32,
        device=CPU,
    )
    ids, logits = [], []
    for _ in range(5):
        ids.append(int(decoder.token))
        decoder.step()
        logits.append(decoder.logits.clone())
    assert int(decoder.position) == 5

    def heads(x: torch.Tensor, number: int) -> torch.Tensor:
        return x.view(5, number, TINY.head).transpose(0, 1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = TINY.head // 2
        angle = torch.arange(5)[:, None] * 500000.0 ** (-torch.arange(half) / half)
        left, right = x[..., :half], x[..., half:]
        return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], -1)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    x, group = table[torch.tensor(ids)], TINY.heads // TINY.kv_heads
    for w in layers:
        h = norm(x)
        q, k, v = (heads(h @ w[n].T, c) for n, c in (("q", TINY.heads), ("k", TINY.kv_heads), ("v", TINY.kv_heads)))
        k, v = (t.repeat_interleave(group, 0) for t in (turned(k), v))
        a = functional.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        x = x + a.transpose(0, 1).reshape(5, -1) @ w["o"].T
        h = norm(x)
        x = x + (functional.silu(h @ w["gate"].T) * (h @ w["up"].T)) @ w["down"].T
    torch.testing.assert_close(torch.cat(logits), norm(x) @ head.T, rtol=1e-4, atol=1e-3)


def test_what_is_asked_wrongly_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--variants", "gptq"], ["--steps", "0", "--device", "cpu"], ["--steps", "2000", "--device", "cpu"]):
        with pytest.raises(SystemExit) as stop:
            whole_model.main(args)
        assert stop.value.code == 2
        assert "error:" in capsys.readouterr().err
