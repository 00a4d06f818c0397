"""Averages and TIES: against brute force in numpy, one number at a time."""

import json
import re
import shutil

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from surgery.models import change, logits_of, make_model, tensors_of, tuned

from fastling import load_pretrained
from fastling.errors import UserError
from fastling.surgery import merging
from fastling.surgery.merging import average, merge_models, ties, trimmed

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without


@pytest.fixture(autouse=True)
def fewer_probing_strings(monkeypatch):
    monkeypatch.setattr(merging, "PROOF_STRINGS", 200)


def brute_force_ties(base, models, weights, density, scale):
    """TIES as its definition reads, in Python's numbers."""
    deltas = [[float(x) - float(b) for x, b in zip(model, base, strict=True)] for model in models]
    for delta in deltas:
        largest = sorted(range(len(delta)), key=lambda i: (-abs(delta[i]), i))
        for i in largest[int(density * len(delta)) :]:
            delta[i] = 0.0
    found = []
    for i, start in enumerate(base):
        total = sum(weight * delta[i] for weight, delta in zip(weights, deltas, strict=True))
        sign = 1 if total >= 0 else -1
        chosen = [(w, d[i]) for w, d in zip(weights, deltas, strict=True) if d[i] * sign > 0]
        share = sum(weight for weight, _ in chosen)
        found.append(float(start) + (scale * sum(w * d for w, d in chosen) / share if share else 0.0))
    return numpy.array(found)


# Multiples of 1/8, so that sums are exact and equal magnitudes and cancelling sums are common.
eighths = st.integers(-16, 16).map(lambda number: number / 8)


@given(
    stack=arrays.arrays(numpy.float32, st.tuples(st.integers(2, 5), st.integers(1, 24)), elements=eighths),
    weights=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), min_size=4, max_size=4),
    density=st.sampled_from([0.01, 0.2, 0.25, 0.5, 0.9, 1.0]),
    scale=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
@settings(max_examples=400)
def test_ties_is_its_definition(stack, weights, density, scale):
    base, models = stack[0], stack[1:]
    weights = weights[: len(models)]
    tensors = [torch.from_numpy(model) for model in models]
    found = ties(torch.from_numpy(base), iter(tensors), weights, density, scale)
    expected = brute_force_ties(base, models, weights, density, scale)
    numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    for tensor, model in zip(tensors, stack[1:], strict=True):
        assert torch.equal(tensor, torch.from_numpy(model))  # nothing was written into what was given


@given(delta=arrays.arrays(numpy.float32, st.integers(1, 40), elements=eighths), density=st.floats(0.001, 1))
@settings(max_examples=200)
def test_trimming_keeps_the_largest_and_of_equal_ones_the_first(delta, density):
    found = trimmed(torch.from_numpy(delta), density).numpy()
    order = sorted(range(len(delta)), key=lambda i: (-abs(delta[i]), i))
    kept = set(order[: int(density * len(delta))])
    expected = [value if i in kept else 0.0 for i, value in enumerate(delta)]
    assert found.tolist() == expected


@given(
    stack=arrays.arrays(
        numpy.float32, st.tuples(st.integers(2, 4), st.integers(1, 9)), elements=st.floats(-9, 9, width=32)
    ),
    weights=st.lists(st.floats(0.125, 8), min_size=4, max_size=4),
)
@settings(max_examples=200)
def test_an_average_is_that_of_float64(stack, weights):
    weights = weights[: len(stack)]
    found = average((torch.from_numpy(model) for model in stack), weights)
    expected = numpy.average(stack.astype(numpy.float64), axis=0, weights=weights)
    bound = 4 * 2**-23 * numpy.abs(stack).sum(0) + 1e-30
    assert (numpy.abs(found.numpy() - expected) <= bound).all()
    assert found.dtype == torch.float32


def test_ties_of_a_model_with_itself_is_that_model_and_disjoint_changes_add_up():
    base = torch.zeros(8)
    one, other = base.clone(), base.clone()
    one[:2], other[5:] = torch.tensor([1.0, -2.0]), torch.tensor([3.0, -1.0, 2.0])
    for density in (0.5, 1.0):
        assert torch.equal(ties(base, iter([one, one]), [0.5, 0.5], density, 1.0), one)
        assert torch.equal(ties(base, iter([one, other]), [1.0, 1.0], density, 1.0), one + other)
    conflict = ties(base, iter([one, -3 * one]), [1.0, 1.0], 1.0, 1.0)
    assert torch.equal(conflict, -3 * one)


# Folders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base and two models tuned from it."""
    folder = tmp_path_factory.mktemp("family")
    base = make_model(folder / "base", dtype=torch.bfloat16)
    return base, tuned(base, folder / "a", seed=1), tuned(base, folder / "b", seed=2)


def no_warning(text: str) -> None:
    pytest.fail(f"warned: {text}")


def test_a_merged_folder_is_a_model_of_the_firsts_kind(family, tmp_path):
    base, one, other = family
    merge_models([one, other], [3, 1], tmp_path / "out", no_warning)
    first, second, found = tensors_of(one), tensors_of(other), tensors_of(tmp_path / "out")
    assert found.keys() == first.keys()
    for name, tensor in found.items():
        exact = 0.75 * first[name].double() + 0.25 * second[name].double()
        assert torch.equal(tensor, exact.float().bfloat16())
    assert (tmp_path / "out/config.json").read_bytes() == (one / "config.json").read_bytes()
    ids = [1, 5, 700, 9]
    ours = load_pretrained(tmp_path / "out").logits(
        torch.tensor(ids), torch.tensor([0, 4], dtype=torch.int32)
    )
    torch.testing.assert_close(ours, logits_of(tmp_path / "out", ids), atol=1e-4, rtol=0)


def test_ties_of_folders(family, tmp_path):
    base, one, other = family
    settings = {"base_folder": base, "density": 0.2, "scale": 1.5}
    merge_models([one, other], [0.5, 0.5], tmp_path / "out", no_warning, **settings)
    start, first, second, found = (tensors_of(each) for each in (base, one, other, tmp_path / "out"))
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        flat = [each[name].double().flatten().tolist() for each in (start, first, second)]
        expected = brute_force_ties(flat[0], flat[1:], [0.5, 0.5], 0.2, 1.5)
        # float32 inside, and one rounding to bfloat16
        numpy.testing.assert_allclose(found[name].double().flatten(), expected, rtol=2**-8, atol=1e-6)


def test_the_same_model_merged_with_itself(family, tmp_path):
    _, one, _ = family
    longer = shutil.copytree(one, tmp_path / "longer")
    set_json("config.json", max_position_embeddings=128)(longer)  # which says nothing of its weights
    merge_models([one, one, longer], [1, 1, 1], tmp_path / "out", no_warning)
    first, found = tensors_of(one), tensors_of(tmp_path / "out")
    assert all(torch.equal(found[name], first[name]) for name in first)


def set_json(name: str, **changes):
    def edit(folder):
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_json("config.json", rms_norm_eps=1e-5), "rms_norm_eps is 1e-05 here, and 1e-06 there"),
        (set_json("config.json", rope_parameters={"rope_theta": 5e5, "rope_type": "default"}), "rope_theta is 500000.0"),
        (set_json("config.json", model_type="mistral"), "model_type is mistral here, and llama there"),
        (lambda folder: change(folder, lambda held: held.update({"model.norm.weight": torch.ones(8)})), r"misshapen: model.norm.weight is (8,), the config says (16,)"),
        (lambda folder: change(folder, lambda held: held.pop("model.norm.weight")), "missing: model.norm.weight (16,)"),
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"x"), "is not a SentencePiece model"),
        (lambda folder: change(folder, lambda held: held["model.norm.weight"].fill_(float("inf"))), "holds numbers that are not finite"),
    ],
)  # fmt: skip
def test_models_of_other_kinds_are_refused_in_words(family, tmp_path, edit, said):
    base, one, _ = family
    other = shutil.copytree(base, tmp_path / "other")
    edit(other)
    with pytest.raises(UserError) as caught:
        merge_models([one, other], [1, 1], tmp_path / "out", no_warning)
    assert said in str(caught.value)
    with pytest.raises(UserError) as caught:  # as a base, too
        merge_models([one, base], [1, 1], tmp_path / "out", no_warning, base_folder=other)
    assert said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_other_tokenizers_are_refused_and_missing_ones_said(tmp_path):
    one = make_model(tmp_path / "one", tokenizer="bytes")
    other = shutil.copytree(one, tmp_path / "other")
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    fields = json.loads(text)
    vocabulary = fields["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"tokenizers differ: token \d+ is 'b' here, and 'a' there"):
        merge_models([one, one, other], [1, 1, 1], tmp_path / "out", no_warning)
    fields = json.loads(text)
    fields["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="tokenizers differ on "):
        merge_models([one, other], [1, 1], tmp_path / "out", no_warning)
    (other / "tokenizer.json").write_text(text)
    (one / "added_tokens.json").write_text('{"[PAD]": 500}')
    (other / "added_tokens.json").write_text('{"<|im_end|>": 500}')
    with pytest.raises(UserError, match=r"only one of the folders adds '<\|im_end\|>' as token 500"):
        merge_models([one, other], [1, 1], tmp_path / "out", no_warning)
    (one / "added_tokens.json").unlink()
    (other / "added_tokens.json").write_text('{"[PAD]": 2000}')  # as Llama 2's folders had, for no row
    merge_models([one, other], [1, 1], tmp_path / "merged", no_warning)
    fewer = make_model(tmp_path / "fewer")
    with pytest.raises(UserError, match="2000 tokens here, and 500 there"):
        merge_models([one, fewer], [1, 1], tmp_path / "out", no_warning)
    warnings = []
    merge_models(
        [one, make_model(tmp_path / "bare", tokenizer="none")], [1, 1], tmp_path / "out", warnings.append
    )
    assert len(warnings) == 1 and re.search("no tokenizer to compare in [^,]*bare:", warnings[0])
