"""Batches and steps, against a computation document by document; the same documents for any world (P6)."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from fastling.data.batches import IGNORED, Loader, Normaliser, make_batch
from fastling.data.packing import make_plan
from fastling.data.store import Recipe, SourceFile, Store, open_store
from fastling.data.template import TEMPLATES

DEMO = Path(__file__).parents[2] / "fastling" / "demo"
LOSSES = ("token", "turn", "sample")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """The demo's conversations, some plain text, and some with a language pair of their source."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"Nummer {i}. " * i}) + "\n" for i in range(1, 9))
    )
    sources = (
        SourceFile("demo", DEMO / "train.jsonl", None),
        SourceFile("text", folder / "text.jsonl", None),
    )
    recipe = Recipe(sources, DEMO / "tokenizer.model", TEMPLATES["llama2"], 256)
    return open_store(recipe, folder, workers=1)


@pytest.fixture(scope="module")
def plan(store):
    return make_plan(store.document_tokens, store.sources, [1.0, 2.0], capacity=256, seed=0, epochs=1)


def loader(store, plan, *, ranks=1, rank=0, micro_batches=1, global_packs=24, loss="token") -> Loader:
    return Loader(
        store, plan, global_packs=global_packs, ranks=ranks, rank=rank, micro_batches=micro_batches, loss=loss
    )


def same(first, second) -> bool:
    """Are two batches equal in everything?"""
    return all(
        torch.equal(value, vars(second)[name])
        if isinstance(value, torch.Tensor)
        else value == vars(second)[name]
        for name, value in vars(first).items()
    )


def documents_of(batch, store) -> list[tuple[int, ...]]:
    """The documents in a batch, by their tokens."""
    parts = batch.tokens.split(batch.lengths)
    return [tuple(part.tolist()) for part in parts]


# One batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_is_its_documents_end_to_end(loss, store):
    documents = numpy.array([3, 431, 0, 57, 3])  # a text, and one document twice
    normaliser = Normaliser(store, loss)
    total = normaliser.total(documents)
    batch = make_batch(store, documents, normaliser, total)

    tokens, labels, positions, weights, sources, pairs, borders = [], [], [], [], [], [], [0]
    units = 0
    for number in documents:
        ids, spans = (each.tolist() for each in store.document(number))
        learned = {place for start, stop in spans for place in range(start, stop)}
        for position, token in enumerate(ids):
            tokens.append(token)
            positions.append(position)
            following = position + 1
            labels.append(ids[following] if following in learned else IGNORED)
            if following in learned:
                turn = next(stop - start for start, stop in spans if start <= following < stop)
                weights.append({"token": 1, "turn": 1 / turn, "sample": 1 / len(learned)}[loss])
                sources.append(store.sources[number])
                pair = store.pairs[number]
                pairs.append(pair if pair >= 0 else len(store.pair_names))
        units += {"token": len(learned), "turn": len(spans), "sample": 1}[loss]
        borders.append(len(tokens))

    assert batch.tokens.tolist() == tokens
    assert batch.labels.tolist() == labels
    assert batch.positions.tolist() == positions
    assert batch.cu_seqlens.tolist() == borders
    assert batch.lengths == numpy.diff(borders).tolist()
    assert batch.max_seqlen == max(batch.lengths)
    assert batch.loss_index.tolist() == [place for place, label in enumerate(labels) if label != IGNORED]
    assert batch.sources.tolist() == sources
    assert batch.pairs.tolist() == pairs
    assert total == units
    assert batch.weights.tolist() == pytest.approx([weight / units for weight in weights], rel=1e-6)
    assert batch.weights.sum().item() == pytest.approx(1, rel=1e-5)


def test_no_label_reaches_over_a_border(store):
    batch = make_batch(store, numpy.arange(430, 438), Normaliser(store, "token"), 1)  # text, all supervised
    last = batch.cu_seqlens[1:].long() - 1
    assert (batch.labels[last] == IGNORED).all()
    others = torch.ones(len(batch.labels), dtype=torch.bool)
    others[last] = False
    assert (batch.labels[others] != IGNORED).all()


def test_types_and_shapes_are_what_the_model_takes(store):
    batch = make_batch(store, numpy.array([1, 2]), Normaliser(store, "turn"), 5)
    kinds = {name: value.dtype for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert kinds == {
        "tokens": torch.int64,
        "labels": torch.int64,
        "positions": torch.int32,
        "cu_seqlens": torch.int32,
        "loss_index": torch.int64,
        "weights": torch.float32,
        "sources": torch.int64,
        "pairs": torch.int64,
    }
    assert all(
        value.is_contiguous() and value.dim() == 1 for value in vars(batch).values() if hasattr(value, "dim")
    )


def test_an_empty_batch_has_one_token_and_no_labels(store):
    batch = make_batch(store, numpy.empty(0, numpy.int64), Normaliser(store, "token"), 7)
    assert (batch.tokens.tolist(), batch.labels.tolist(), batch.lengths) == ([0], [IGNORED], [1])
    assert (batch.cu_seqlens.tolist(), batch.max_seqlen, batch.positions.tolist()) == ([0, 1], 1, [0])
    for name in ("loss_index", "weights", "sources", "pairs"):
        assert len(getattr(batch, name)) == 0
    kinds = {name: value.dtype for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    full = make_batch(store, numpy.array([1]), Normaliser(store, "token"), 7)
    assert kinds == {
        name: value.dtype for name, value in vars(full).items() if isinstance(value, torch.Tensor)
    }


def test_a_copy_on_a_device_holds_the_same(store):
    batch = make_batch(store, numpy.array([1, 2]), Normaliser(store, "turn"), 5)
    assert same(batch.to(torch.device("cpu")), batch)
    assert batch.to(torch.device("meta")).tokens.device.type == "meta"


# Steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [1, 7, 64, 1000])
@pytest.mark.parametrize("numbers", [[3, 431, 0, 57], [], [3] * 9])
def test_a_rounded_batch_adds_only_rows_of_zero_weight(numbers, multiple, store):
    normaliser = Normaliser(store, "token")
    batch = make_batch(store, numpy.array(numbers, dtype=int), normaliser, 1000)
    rounded = batch.rounded(multiple)
    tokens, rows = len(batch.tokens), len(batch.loss_index)
    assert len(rounded.tokens) % multiple == len(rounded.loss_index) % multiple == 0
    assert len(rounded.tokens) < tokens + multiple and len(rounded.loss_index) < rows + multiple
    if multiple == 1:
        assert same(batch, rounded)
    for name in ("tokens", "labels", "positions"):
        assert torch.equal(getattr(rounded, name)[:tokens], getattr(batch, name))
    for name in ("loss_index", "weights"):
        assert torch.equal(getattr(rounded, name)[:rows], getattr(batch, name))
    assert torch.equal(rounded.sources, batch.sources) and torch.equal(rounded.pairs, batch.pairs)
    # What is new is never learned from, lies in documents of its own, and is no longer than the others.
    assert not rounded.weights[rows:].any() and (rounded.labels[tokens:] == IGNORED).all()
    assert (rounded.labels[rounded.loss_index[rows:]] == IGNORED).all()
    assert rounded.lengths[: len(batch.lengths)] == batch.lengths
    assert sum(rounded.lengths) == len(rounded.tokens) and max(rounded.lengths) == rounded.max_seqlen
    assert rounded.cu_seqlens.diff().tolist() == rounded.lengths
    assert rounded.positions.tolist() == [place for length in rounded.lengths for place in range(length)]
    assert rounded.max_seqlen == batch.max_seqlen


@pytest.mark.parametrize("loss", LOSSES)
def test_a_long_turn_in_a_large_step_weighs_its_share(loss, store):
    """A turn of 30,000 tokens among 100,000 units: their product is no number of 32 bits."""
    spans = numpy.array([[1, 30_001], [30_010, 30_060]], dtype=numpy.int32)
    weights = Normaliser(store, loss).weights(spans, 100_000)
    units = {"token": 30_050, "turn": 2, "sample": 1}[loss]
    assert (weights > 0).all() and weights.astype(float).sum() == pytest.approx(units / 100_000, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (3, 2)])
def test_the_weights_of_every_step_add_up_to_one_over_all_ranks(loss, ranks, micro_batches, store, plan):
    loaders = [
        loader(store, plan, ranks=ranks, rank=rank, micro_batches=micro_batches, loss=loss)
        for rank in range(ranks)
    ]
    for number in range(len(loaders[0])):
        steps = [each.step(number) for each in loaders]
        weights = sum(batch.weights.double().sum().item() for step in steps for batch in step.batches)
        assert weights == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_token_weighs_the_same_whatever_the_world(loss, store, plan):
    def weighed(ranks, micro_batches):
        found = []
        for rank in range(ranks):
            step = loader(store, plan, ranks=ranks, rank=rank, micro_batches=micro_batches, loss=loss).step(1)
            for batch in step.batches:
                found += zip(batch.labels[batch.loss_index].tolist(), batch.weights.tolist(), strict=True)
        return sorted(found)

    assert weighed(1, 1) == weighed(4, 3) == weighed(8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_any_world_size_makes_the_same_steps(micro_batches, store, plan):
    alone = loader(store, plan, global_packs=840 * micro_batches // 10)  # 840 = 1 * ... * 8, tenth of it
    for ranks in (1, 2, 3, 4, 6, 7):
        assert alone.global_packs % (ranks * micro_batches) == 0
        loaders = [
            loader(
                store,
                plan,
                ranks=ranks,
                rank=rank,
                micro_batches=micro_batches,
                global_packs=alone.global_packs,
            )
            for rank in range(ranks)
        ]
        assert {len(each) for each in loaders} == {len(alone)}
        for number in range(len(alone)):
            whole = alone.step(number)
            steps = [each.step(number) for each in loaders]
            assert {len(step.batches) for step in steps} == {micro_batches}
            for step in steps:
                facts = ("tokens", "supervised_tokens", "packs", "squared_tokens")
                assert all(getattr(step, fact) == getattr(whole, fact) for fact in facts)
            found = [each for step in steps for batch in step.batches for each in documents_of(batch, store)]
            assert sorted(each for each in found if each != (0,)) == sorted(
                documents_of(whole.batches[0], store)
            )


def test_eight_ranks_and_five_share_a_step_too(store, plan):
    for ranks in (5, 8):
        whole = loader(store, plan, global_packs=40).step(0)
        steps = [
            loader(store, plan, ranks=ranks, rank=rank, global_packs=40).step(0) for rank in range(ranks)
        ]
        found = [each for step in steps for batch in step.batches for each in documents_of(batch, store)]
        assert sorted(found) == sorted(documents_of(whole.batches[0], store))


def test_all_steps_together_are_the_plan_and_the_last_is_filled_up(store, plan):
    ranks, global_packs = 4, 24
    loaders = [
        loader(store, plan, ranks=ranks, rank=rank, global_packs=global_packs) for rank in range(ranks)
    ]
    steps = [[each.step(number) for each in loaders] for number in range(len(loaders[0]))]
    assert len(plan) % global_packs, "the last step must be short for this test"
    assert len(steps) == len(plan) // global_packs + 1
    found = [
        each
        for step in steps
        for rank in step
        for batch in rank.batches
        for each in documents_of(batch, store)
    ]
    planned = [tuple(store.document(number)[0].tolist()) for number in plan.documents]
    assert sorted(each for each in found if each != (0,)) == sorted(planned)
    assert [rank.packs for rank in steps[-1]] == [global_packs] * ranks
    assert sum(step[0].tokens for step in steps) == store.document_tokens[plan.documents].sum()
    assert sum(step[0].supervised_tokens for step in steps) == store.document_supervised[plan.documents].sum()
    squares = int((store.document_tokens[plan.documents] ** 2).sum())
    assert sum(step[0].squared_tokens for step in steps) == squares


def test_a_rank_without_a_pack_in_the_last_step_still_takes_part(store, plan):
    short = plan.first(25)
    batches = [
        batch
        for rank in range(24)
        for batch in loader(store, short, ranks=24, rank=rank, global_packs=24).step(1).batches
    ]
    assert len(batches) == 24
    assert sum(batch.tokens.tolist() == [0] for batch in batches) == 23


def test_no_micro_batch_is_larger_than_its_packs(store, plan):
    one = loader(store, plan, ranks=2, rank=0, micro_batches=3)  # 24 packs: 4 in a micro-batch
    for step in one.steps():
        assert all(len(batch.tokens) <= 4 * 256 for batch in step.batches)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_steps_from_any_start_are_the_tail_of_all_steps(start, store, plan):
    def make():
        return loader(store, plan, ranks=2, rank=1, micro_batches=2)

    whole = list(make().steps())
    assert len(whole) == len(make()) > 3
    assert list(make().steps(len(whole))) == []
    tail = list(make().steps(start))
    assert len(tail) == len(whole) - start
    for first, second in zip(whole[start:], tail, strict=True):
        assert (first.tokens, first.packs) == (second.tokens, second.packs)
        assert all(same(*pair) for pair in zip(first.batches, second.batches, strict=True))


def test_a_step_depends_on_its_number_alone(store, plan):
    one = loader(store, plan)
    before = one.step(2)
    list(one.steps())
    assert same(one.step(2).batches[0], before.batches[0])
    assert not same(one.step(1).batches[0], before.batches[0])
