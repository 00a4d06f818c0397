"""What is drawn from is what transformers would draw from, and draws follow it."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastling.model.decoding import Decoding
from fastling.model.sampling import SeenTokens, draw, probabilities


@pytest.mark.parametrize("temperature", [0.5, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 9, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.01])
def test_sampling_distributions_equal_transformers_processors(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(5, 40, generator=generator) * 3
    logits_RV[0, :20] = 1.0  # ties
    prompts = torch.randint(40, (5, 7), generator=generator)
    seen = SeenTokens(8, 40, 1.3, torch.device("cpu"))
    for row, prompt in enumerate(prompts.tolist()):
        seen.begin(row, prompt)
    decoding = Decoding(temperature=temperature, top_k=top_k, top_p=top_p)
    processors = [RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(temperature)]
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = LogitsProcessorList(processors)(prompts, logits_RV.clone()).softmax(-1)
    assert torch.equal(probabilities(seen.penalise(logits_RV), decoding), expected)


@pytest.mark.parametrize("temperature", [1e-9, 1e-40, 1e-300])
@pytest.mark.parametrize("limits", [{}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_a_tiny_temperature_draws_the_likeliest_token(temperature, limits):
    """Scores divided by it would be infinite, and what is drawn from them no token."""
    logits_RV = torch.tensor([[3.0, 9.0, -4.0], [-8.0, -7.0, -6.0]])
    found = probabilities(logits_RV, Decoding(temperature=temperature, **limits))
    assert found.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_draws_follow_the_probabilities():
    """Uniform numbers on an even grid: a token is drawn for as many of them as its probability says."""
    generator = torch.Generator().manual_seed(0)
    probabilities_RV = torch.rand(3, 11, generator=generator)
    probabilities_RV[:, [0, 4, 10]] = 0
    probabilities_RV /= probabilities_RV.sum(-1, keepdim=True)
    draws = 5000
    grid = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    for row in probabilities_RV:
        tokens = draw(row.expand(draws, -1), grid)
        counts = torch.bincount(tokens, minlength=11)
        assert (counts - row * draws).abs().max() <= 1.001
        assert not counts[row == 0].any()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_a_token_of_probability_0_is_never_drawn(uniform):
    probabilities_RV = torch.tensor([[0.0, 0.3, 0.7, 0.0], [0.0, 0.0, 1.0, 0.0]])
    tokens = draw(probabilities_RV, torch.tensor([uniform, uniform], dtype=torch.float64)).tolist()
    assert tokens == [1 if uniform == 0 else 2, 2]
