"""Bytes of collectives: the theory by hand, the count of real collectives, and both on real processes."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.ranks import CountedTraffic, Traffic, padded_weights, theory
from fastling.config import Parallel
from fastling.errors import RunError, run_command
from fastling.model.llama_config import LlamaConfig

# A layer has matrices (6, 2), (2, 2), (6, 2), (2, 3) and norms (2), (2); the rest (3, 2), (3, 2) and (2).
BY_HAND = LlamaConfig(
    vocab_size=3, hidden_size=2, intermediate_size=3, num_hidden_layers=2, num_attention_heads=1
)
NUMBERS = 4 * (4 + 2 * 6 + 3)
"""Bytes of the loss, its sums, whether to stop, and a norm for each parameter."""


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def test_rows_are_filled_up_to_a_multiple():
    shapes = [torch.Size([5, 3]), torch.Size([4]), torch.Size([8, 1])]
    assert padded_weights(shapes, 1) == 15 + 4 + 8
    assert padded_weights(shapes, 2) == 18 + 4 + 8
    assert padded_weights(shapes, 8) == 24 + 8 + 8


def test_theory_by_hand_on_four_ranks():
    """Filled up to 4: a layer is 16 + 8 + 16 + 12 + 4 + 4 = 60 weights, the rest 8 + 8 + 4 = 20."""
    assert theory(BY_HAND, Parallel(), 4, micro_batches=3) == Traffic(
        gathered=3 * (2 * 2 * 2 * 45 + 2 * 15), scattered=3 * (2 * 4 * 45 + 4 * 15), all_reduced=NUMBERS
    )


def test_kept_weights_are_gathered_once():
    kept = theory(BY_HAND, Parallel(shard="gradients"), 4, micro_batches=1)
    assert kept == Traffic(gathered=2 * 2 * 45 + 2 * 15, scattered=2 * 4 * 45 + 4 * 15, all_reduced=NUMBERS)


def test_two_copies_on_four_ranks_by_hand():
    """Filled up to 2: a layer is 12 + 4 + 12 + 6 + 2 + 2 = 38 weights, the rest 8 + 8 + 2 = 18."""
    assert theory(BY_HAND, Parallel(replicate=2), 4, micro_batches=3) == Traffic(
        gathered=3 * (2 * 2 * 2 * 19 + 2 * 9),
        scattered=3 * (2 * 4 * 19 + 4 * 9),
        all_reduced=2 * 4 * 19 + 4 * 9 + NUMBERS,  # once, whatever the number of micro-batches
    )


def test_one_rank_sends_nothing():
    assert theory(BY_HAND, Parallel(), 1, micro_batches=5) == Traffic()


def test_two_copies_on_two_ranks_sum_gradients_and_losses_only():
    """Nothing is filled up: a layer is 12 + 4 + 12 + 6 + 2 + 2 = 38 weights, the rest 6 + 6 + 2 = 14."""
    found = theory(BY_HAND, Parallel(replicate=2), 2, micro_batches=1)
    assert found == Traffic(all_reduced=4 * (2 * 38 + 14) + 4 * 4)


def test_the_models_rows_cannot_be_shared_evenly():
    layer, rest = ranks.layer_and_rest(ranks.MODEL)
    for shards in (2, 4, 8):
        assert padded_weights(layer + rest, shards) > padded_weights(layer + rest, 1)


def test_traffic_is_counted_as_pytorch_hands_it_to_the_backend(group):
    # Named so from 2.13 on, where the former names warn.
    named_anew = hasattr(dist, "all_gather_single")
    all_gather = dist.all_gather_single if named_anew else dist.all_gather_into_tensor
    reduce_scatter = dist.reduce_scatter_single if named_anew else dist.reduce_scatter_tensor
    with CountedTraffic() as counted:
        dist.all_reduce(torch.ones(6))
        dist.all_reduce(torch.ones(2, 2, dtype=torch.bfloat16))
        all_gather(torch.empty(4), torch.ones(4))
        reduce_scatter(torch.empty(4), torch.ones(4))
    assert counted.traffic == Traffic(gathered=0, scattered=0, all_reduced=24 + 8)


def test_a_collective_that_is_not_known_is_refused(group):
    with pytest.raises(RunError, match="broadcast_: is a collective that is not counted"):
        with CountedTraffic():
            dist.broadcast(torch.ones(3), src=0)


def test_one_rank_that_counts_something_else_is_enough_to_be_unequal():
    expected = dataclasses.astuple(theory(ranks.MODEL, Parallel(), 2, ranks.MICRO_BATCHES))
    right, wrong = [*expected], [expected[0], expected[1] + 4, expected[2]]
    told = {"counts": [right, right], "seconds": [0.5, 2.0, 1.0], "tokens": 2048}
    row = ranks.make_row(2, Parallel(), told)
    assert row["equal"] and row["tokens_per_s"] == 2048 and row["milliseconds"] == 1000
    assert row["counted_bytes"] == row["theory_bytes"]
    assert not ranks.make_row(2, Parallel(), told | {"counts": [right, wrong]})["equal"]


def test_layouts_by_number_of_ranks():
    assert ranks.layouts(1) == [Parallel()]
    assert ranks.layouts(3) == [Parallel(), Parallel(shard="gradients")]
    assert ranks.layouts(4) == [Parallel(), Parallel(shard="gradients"), Parallel(replicate=2)]


@pytest.mark.parametrize("options", [["--ranks", "2", "0"], ["--steps", "0"]])
def test_impossible_options_are_refused(options, capsys):
    assert run_command(ranks.main, options) == 2
    assert options[0] in capsys.readouterr().err


def test_the_processes_see_no_gpu(monkeypatch):
    """They would train on it, over NCCL, and be told as gloo's on a CPU."""
    launched = []

    def run(command, **options):
        launched.append(options["env"]["CUDA_VISIBLE_DEVICES"])
        return SimpleNamespace(returncode=0, stdout="{}\n")

    monkeypatch.setattr(ranks.subprocess, "run", run)
    ranks.launch(2, Parallel(), steps=1)
    assert launched == [""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "parallel"),
    [(2, Parallel()), (2, Parallel(shard="gradients")), (4, Parallel(replicate=2))],
    ids=str,
)
def test_processes_send_what_theory_says(processes, parallel):
    row = ranks.make_row(processes, parallel, ranks.launch(processes, parallel, steps=1))
    assert row["counted_bytes"] == row["theory_bytes"] and row["equal"]
    assert row["tokens"] == processes * ranks.MICRO_BATCHES * sum(ranks.LENGTHS)


@pytest.mark.slow
def test_processes_that_fail_are_named():
    with pytest.raises(RunError, match="1 processes: ended with status 1"):
        ranks.launch(1, Parallel(replicate=2), steps=1)
