"""Which parameters are packed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bitstack.targets import EMBEDDING_GROUP_ROWS, Target, find_targets, survey


def _layers(prefix: str, names: str) -> set[str]:
    return {f"{prefix}.{layer}.{name}.weight" for layer in (0, 1) for name in names.split()}


LLAMA = _layers(
    "model.layers",
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj",
)
EXPECTED = {
    "llama-tied": LLAMA | {"model.embed_tokens.weight"},
    "llama-untied": LLAMA | {"model.embed_tokens.weight", "lm_head.weight"},
    "llama-gqa": LLAMA | {"model.embed_tokens.weight", "lm_head.weight"},
    "qwen2": LLAMA | {"model.embed_tokens.weight", "lm_head.weight"},
    # Its embedding multiplies what it looks up, in a forward of its own.
    "gemma": LLAMA | {"model.embed_tokens.weight"},
    "gpt2": _layers("transformer.h", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj")
    | {"transformer.wte.weight", "transformer.wpe.weight"},
    "gpt-neox": _layers(
        "gpt_neox.layers", "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h"
    )
    | {"gpt_neox.embed_in.weight", "lm_head.weight"},
    # Its learned positions shift the ids, in a forward of their own.
    "opt": _layers(
        "model.decoder.layers",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj fc1 fc2",
    )
    | {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_targets_of_an_architecture(make_model: Callable[..., Any], kind: str) -> None:
    model = make_model(kind)
    targets = find_targets(model)
    assert {t.name for t in targets} == EXPECTED[kind]
    assert len(targets) == len(EXPECTED[kind])
    for target in targets:
        shape = tuple(model.get_parameter(target.name).shape)
        assert shape == ((target.columns, target.rows) if target.transposed else (target.rows, target.columns))
        assert target.transposed == (kind == "gpt2" and ".h." in target.name)
        assert target.group_rows == target.rows


@pytest.mark.parametrize(
    ("kind", "embedding", "head"),
    [
        ("llama-tied", "model.embed_tokens", "lm_head"),
        ("gpt2", "transformer.wte", "lm_head"),
        ("opt", "model.decoder.embed_tokens", "lm_head"),
    ],
)
def test_a_tied_parameter_is_one_target_with_both_uses(
    make_model: Callable[..., Any], kind: str, embedding: str, head: str
) -> None:
    uses = [[(u.module, u.role) for u in t.uses] for t in find_targets(make_model(kind)) if t.by_token]
    assert [(embedding, "embedding"), (head, "head")] in uses
    assert sum(u[1] == "head" for use in uses for u in use) == 1


def test_an_untied_head_is_recognised(make_model: Callable[..., Any]) -> None:
    roles = {t.name: [u.role for u in t.uses] for t in find_targets(make_model("qwen2"))}
    assert roles["lm_head.weight"] == ["head"]
    assert roles["model.embed_tokens.weight"] == ["embedding"]
    assert {r for n, rs in roles.items() if n in LLAMA for r in rs} == {"linear"}


class _Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class _ByHand(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


class _Normed(nn.Linear):
    """Its weight is another one than it holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight / self.weight.norm())


class _Twofold(nn.Linear):
    """Uses its weight for a product, and for something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.weight.mean()


class _Strict(nn.Linear):
    """Asks for a tensor, and falls back to something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if isinstance(self.weight, torch.Tensor) else x


class _Needy(nn.Linear):
    """Takes arguments that nobody can guess."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + y


class _SameForward(nn.Linear):
    pass


class _Shifted(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) + 1


class _Reversed(nn.Embedding):
    """A look-up along the other dimension."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(ids, self.weight.T)


class _Holder(nn.Module):
    """Holds a parameter of its own, whatever it does with it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.weight = parameter


def _names(**modules: nn.Module) -> dict[str, Target]:
    return {t.name: t for t in find_targets(nn.ModuleDict(modules))}


def test_subclasses_are_packed_if_a_product_or_a_look_up_is_all_that_they_need() -> None:
    found = survey(
        nn.ModuleDict(
            {
                "doubled": _Doubled(32, 40),
                "by_hand": _ByHand(40, 32),
                "same": _SameForward(32, 32),
                "shifted": _Shifted(64, 32),
                "normed": _Normed(32, 32),
                "twofold": _Twofold(32, 32),
                "strict": _Strict(32, 32),
                "needy": _Needy(32, 32),
                "reversed": _Reversed(64, 32),
                "bounded": nn.Embedding(64, 32, max_norm=1.0),
                "plain": nn.Embedding(64, 32),
            }
        )
    )
    assert {t.name: [(u.role, u.own_forward, t.transposed) for u in t.uses] for t in found.targets} == {
        "doubled.weight": [("linear", True, False)],
        "by_hand.weight": [("linear", True, False)],
        "same.weight": [("linear", False, False)],
        "shifted.weight": [("embedding", True, False)],
        "reversed.weight": [("embedding", True, True)],
        "plain.weight": [("embedding", False, False)],
    }
    assert found.raw == {
        "normed.weight": "_Normed does more with it than a product or a look-up",
        "twofold.weight": "_Twofold does more with it than a product or a look-up",
        "strict.weight": "_Strict does more with it than a product or a look-up",
        "needy.weight": "_Needy does more with it than a product or a look-up",
        "bounded.weight": "Embedding scales its rows down as it looks them up (max_norm)",
    }


def test_probing_changes_nothing() -> None:
    module = _Doubled(32, 40)
    before, state = module.weight.clone(), torch.get_rng_state()
    module.register_forward_hook(lambda *_: pytest.fail("the module itself was run"))
    assert [t.name for t in survey(nn.ModuleDict({"a": module})).targets] == ["a.weight"]
    assert torch.equal(module.weight, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_modules_on_the_meta_device_are_probed_too() -> None:
    with torch.device("meta"):
        found = survey(nn.ModuleDict({"a": _Doubled(32, 40), "b": _Normed(32, 40)}))
    assert [t.name for t in found.targets] == ["a.weight"]
    assert list(found.raw) == ["b.weight"]


def test_a_parameter_with_one_unknown_use_stays_raw() -> None:
    plain, other = nn.Linear(32, 32), _Normed(32, 32)
    other.weight = plain.weight
    held = nn.Linear(32, 32)
    assert list(_names(plain=plain, other=other)) == []
    assert list(_names(held=held, holder=_Holder(held.weight))) == []
    assert survey(nn.ModuleDict({"holder": _Holder(held.weight)})).raw == {
        "holder.weight": "_Holder is no linear layer, embedding or stack of experts"
    }


@pytest.mark.parametrize(
    ("rows", "columns", "packed"), [(32, 32, True), (31, 33, False), (8, 128, True), (7, 1024, False), (1024, 7, False)]
)
def test_too_small_ones_stay_raw(rows: int, columns: int, packed: bool) -> None:
    assert bool(_names(layer=nn.Linear(columns, rows))) is packed


def test_biases_and_other_shapes_stay_raw() -> None:
    holder = nn.Linear(64, 2048)
    assert list(_names(layer=holder, convolution=nn.Conv1d(32, 32, 3))) == ["layer.weight"]
    # A bias that is a matrix is no weight.
    holder.bias = nn.Parameter(torch.zeros(64, 2048))
    assert list(_names(layer=holder)) == ["layer.weight"]


def test_weights_shared_between_layers_are_one_target() -> None:
    a, b = nn.Linear(32, 48), nn.Linear(32, 48)
    b.weight = a.weight
    (target,) = _names(a=a, b=b).values()
    assert [(u.module, u.role) for u in target.uses] == [("a", "linear"), ("b", "linear")]
    assert not target.by_token


def test_a_transposed_weight_that_is_shared_stays_raw() -> None:
    from transformers.pytorch_utils import Conv1D

    a, b = Conv1D(48, 32), Conv1D(48, 32)
    assert _names(a=a)["a.weight"].transposed
    b.weight = a.weight
    assert list(_names(a=a, b=b)) == []


def test_token_matrices_are_cut_into_groups_of_rows() -> None:
    found = _names(table=nn.Embedding(5000, 8), layer=nn.Linear(8, 5000))
    assert found["table.weight"].group_rows == EMBEDDING_GROUP_ROWS == 4096
    assert found["layer.weight"].group_rows == 5000
