"""Greedy generation against transformers' own."""

import pytest
import torch

from fastling.errors import UserError
from fastling.model.generation import Decoding, generate
from fastling.model.huggingface import load_pretrained

PROMPTS = [[5, 9, 2], [11], [3, 4, 5, 6, 7, 8]]


def test_every_prompt_continues_as_in_transformers(oracle):
    ours = generate(load_pretrained(oracle.folder), PROMPTS, Decoding(max_new_tokens=6), stop_ids=set())
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(oracle.model(torch.tensor([ids])).logits[0, -1].argmax().item())
        assert answer.ids == ids[len(prompt) :]


def test_a_stop_id_ends_one_answer_and_is_left_out(oracle):
    model = load_pretrained(oracle.folder)
    free = generate(model, PROMPTS, Decoding(max_new_tokens=6), stop_ids=set())
    stop = free[0].ids[2]
    stopped = generate(model, PROMPTS, Decoding(max_new_tokens=6), stop_ids={stop})
    for whole, cut in zip(free, stopped, strict=True):
        whole = whole.ids
        assert cut.ids == (whole[: whole.index(stop)] if stop in whole else whole)
        assert cut.finish_reason == ("stop" if stop in whole else "length")


def test_an_answer_ends_where_the_models_longest_sequence_does(oracle):
    model = load_pretrained(oracle.folder)
    longest = model.config.longest_sequence
    [answer] = generate(model, [[1] * (longest - 2)], Decoding(max_new_tokens=9), stop_ids=set())
    assert len(answer.ids) == 2


def test_empty_and_overlong_prompts_are_refused(oracle):
    model = load_pretrained(oracle.folder)
    with pytest.raises(UserError, match="a prompt is empty"):
        generate(model, [[1], []], Decoding(max_new_tokens=1), stop_ids=set())
    with pytest.raises(UserError, match="at most"):
        generate(model, [[1] * 99], Decoding(max_new_tokens=1), stop_ids=set())
