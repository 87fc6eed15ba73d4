"""From logits to tokens: what is drawn, how often, and that it can be drawn again."""

import math
from collections import Counter

import pytest
import torch

from bitstack.tools.serving.sampling import Sampler, Sampling

LOGITS = torch.log(torch.tensor([0.1, 0.5, 0.25, 0.15]))


def drawn(sampling: Sampling, count: int = 4000, branch: int = 0) -> list[int]:
    sampler = Sampler(sampling, branch)
    return [sampler.choose(LOGITS).token for _ in range(count)]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert set(drawn(Sampling(temperature=0), 5)) == {1}
    tie = torch.tensor([0.0, 3.0, 3.0])
    assert Sampler(Sampling(temperature=0)).choose(tie).token == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_follow_the_temperature(temperature: float) -> None:
    found = Counter(drawn(Sampling(temperature=temperature, seed=1)))
    expected = torch.softmax(LOGITS / temperature, -1).tolist()
    for token, share in enumerate(expected):
        assert abs(found[token] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.0, {1}), (0.5, {1}), (0.51, {1, 2}), (0.76, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, tokens: set[int]) -> None:
    assert set(drawn(Sampling(top_p=top_p, seed=2))) == tokens


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-5])
def test_the_smallest_temperatures_take_the_likeliest(temperature: float) -> None:
    assert set(drawn(Sampling(temperature=temperature), 50)) == {1}


def test_draws_depend_on_seed_and_branch_alone() -> None:
    first = drawn(Sampling(seed=3), 50)
    torch.manual_seed(12)
    torch.rand(5)
    assert drawn(Sampling(seed=3), 50) == first
    assert drawn(Sampling(seed=4), 50) != first
    assert drawn(Sampling(seed=3), 50, branch=1) != first
    assert drawn(Sampling(), 50) != drawn(Sampling(), 50)


def test_penalties_and_biases() -> None:
    assert drawn(Sampling(temperature=0, presence_penalty=1), 4) == [1, 2, 1, 1]
    assert drawn(Sampling(temperature=0, frequency_penalty=1), 5) == [1, 2, 1, 3, 0]
    assert drawn(Sampling(temperature=0, logit_bias={0: 5.0, 1: -5.0}), 3) == [0, 0, 0]


def test_probabilities_are_the_models_own() -> None:
    sampling = Sampling(temperature=0, logit_bias={0: 9.0}, logprobs=2)
    chosen = Sampler(sampling).choose(LOGITS)
    assert chosen.token == 0
    assert chosen.logprob == pytest.approx(math.log(0.1))
    assert [token for token, _ in chosen.top] == [1, 2]
    assert Sampler(Sampling(logprobs=0)).choose(LOGITS).top == ()
    assert Sampler(Sampling()).choose(LOGITS).logprob is None


def test_what_is_impossible_has_a_number() -> None:
    logits = torch.tensor([0.0, -math.inf])
    assert Sampler(Sampling(logprobs=2)).choose(logits).top == ((0, 0.0), (1, -9999.0))


def test_logits_are_left_as_they_are() -> None:
    logits = LOGITS.clone()
    Sampler(Sampling(presence_penalty=1, logit_bias={1: 2.0}, top_p=0.5, logprobs=1)).choose(logits)
    assert torch.equal(logits, LOGITS)
