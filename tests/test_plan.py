"""`fastling plan`: steps and work are those of the run, and what it advises fits."""

import json
import re

import pytest
from conftest import config_of

from fastling import plan
from fastling.config import Config, Data, Train
from fastling.data.batches import Loader
from fastling.errors import UserError
from fastling.prepare import prepare_data, summary
from fastling.training.build import make_loader, share_of_step
from fastling.training.parallel import open_world

BILLIONS = {  # LLaMA-7B's shape
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def planned(capsys, config, *options: str) -> tuple[int, dict, str]:
    status = plan.main(["--config", str(config), "--json", *options])
    out, err = capsys.readouterr()
    return status, json.loads(out.splitlines()[-1]), err


def test_steps_and_tokens_are_those_that_training_makes(capsys, tiny_run):
    path = tiny_run(train={"steps": None, "epochs": 2})
    status, found, _ = planned(capsys, path, "--gpus", "2")
    config = config_of("--config", path)
    prepared = prepare_data(config)
    with open_world(config) as world:
        steps = list(make_loader(config, world, prepared.training, prepared.plan).steps())
    assert status == 0 and found["fits"]
    assert found["steps"] == len(steps) == summary(prepared)["steps"]
    assert found["tokens"] == sum(step.tokens for step in steps)
    assert found["supervised_tokens"] == sum(step.supervised_tokens for step in steps)
    # 1024 tokens a step make 4 packs: two of each GPU, which one micro-batch of 512 holds.
    assert found["micro_batch_tokens"] == 512
    layer = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 64  # q, k and v, o, MLP
    every, wanted = 2 * layer - (32 * 32 + 3 * 32 * 64), (32 * 32 + 3 * 32 * 64) + 2000 * 32
    squares = sum(step.squared_tokens for step in steps)
    attention = 12 * 2 * 32 * squares / 2
    assert found["flops"] == 6 * (every * found["tokens"] + wanted * found["supervised_tokens"]) + attention


@pytest.mark.parametrize(
    ("processes", "most_packs", "micro_batches", "packs"),
    [(1, 1, 12, 1), (1, 5, 3, 4), (1, 7, 2, 6), (3, 3, 2, 2), (3, 4, 1, 4), (5, 2, 2, 2), (12, 4, 1, 1)],
)
def test_a_process_makes_its_share_in_the_fewest_micro_batches_and_those_alike(
    processes, most_packs, micro_batches, packs
):
    """Of the 12 packs of a step, which 5 processes do not share evenly."""
    train = Train(global_batch_tokens=12 * 256, micro_batch_tokens=most_packs * 256 + 100)
    config = Config(data=Data(sequence_length=256), train=train)
    assert share_of_step(config, processes, evenly=False) == (micro_batches, packs)


@pytest.mark.parametrize(("gpus", "packs"), [(4, 1), (1, 4)])
def test_the_loss_is_given_room_for_the_micro_batch_that_is_trained_on_most(capsys, tiny_run, gpus, packs):
    """Not for a mean one: packs of long answers come beside packs of long questions."""
    path = tiny_run(train={"steps": None, "epochs": 1, "micro_batch_tokens": packs * 256})
    _, found, _ = planned(capsys, path, "--gpus", str(gpus))
    config = config_of("--config", path)
    prepared = prepare_data(config)
    rows = []
    for rank in range(gpus):
        options = {"global_packs": 4, "ranks": gpus, "rank": rank, "micro_batches": 1, "loss": "token"}
        steps = Loader(prepared.training, prepared.plan, **options).steps()
        rows += [len(batch.loss_index) for step in steps for batch in step.batches]
    logits, gradient, around = 4 * max(rows) * 2000, 4 * 2000 * 32, 4 * 3 * max(rows) * 32
    assert found["memory_gib"]["head and loss"] * 2**30 == logits + gradient + around


def test_time_is_work_over_the_rate_that_is_stated(capsys, tiny_run):
    _, found, shown = planned(
        capsys, tiny_run(model=BILLIONS), "--gpus", "4", "--gpu-tflops", "312", "--mfu", "0.5"
    )
    assert found["gpu_hours"] == pytest.approx(found["flops"] / 312e12 / 0.5 / 3600)
    assert found["hours"] == pytest.approx(found["gpu_hours"] / 4)
    assert "on 4 GPU(s) at 50% of 312 TFLOP/s" in shown


@pytest.mark.slow
def test_where_it_does_not_fit_the_advice_does(capsys, tiny_run):
    path = tiny_run(
        model=BILLIONS,
        data={"sequence_length": 2048},
        train={"precision": "bf16", "global_batch_tokens": 262144, "micro_batch_tokens": 32768},
    )
    eight = ("--gpus", "8", "--gpu-memory-gib", "80")
    status, found, shown = planned(capsys, path, *eight)
    assert (status, found["fits"]) == (1, False) and found["total_gib"] > 80
    assert sum(found["memory_gib"].values()) == pytest.approx(found["total_gib"])
    advice = re.search(r"does not fit: (--.*) fits", " ".join(shown.split()))[1]
    status, found, _ = planned(capsys, path, *eight, *advice.split())
    assert status == 0 and found["total_gib"] <= 80
    # One GPU has no room for 16 bytes of each of 6.7 billion weights, whatever is recomputed.
    status, found, shown = planned(capsys, path, "--gpus", "1", "--gpu-memory-gib", "80")
    assert status == 1 and found["total_gib"] > 100
    advice = re.search(r"does not fit: (--gpus 2 .*) fits", " ".join(shown.split()))[1]
    assert planned(capsys, path, "--gpu-memory-gib", "80", *advice.split())[0] == 0
    assert "No number of such GPUs" in planned(capsys, path, "--gpus", "1", "--gpu-memory-gib", "4")[2]


def test_checkpoints_take_twelve_bytes_a_weight_each(capsys, tiny_run):
    """Of six steps every second is kept, two and the one that is written; two copies of a half in memory."""
    path = tiny_run(model=BILLIONS, checkpoint={"every_steps": 2, "keep_last": 2})
    _, found, _ = planned(capsys, path, "--gpus", "2", "--gpu-memory-gib", "141")
    weights = (found["memory_gib"]["weights and moments"] * 2) / 12  # in 2**30
    assert found["disk_gib"] == pytest.approx(3 * 12 * weights)
    assert found["checkpoint_host_gib"] == pytest.approx(2 * 12 * weights / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "0"], "--gpus: must be at least 1: 0"),
        (["--gpus", "3"], "train.global_batch_tokens: 1024 makes 4 packs of 256, which 3 processes"),
        (["--gpu-memory-gib", "-1"], "--gpu-memory-gib: must be from 1e-06 to 1e+06: -1"),
        (["--gpu-memory-gib", "1e300"], "--gpu-memory-gib: must be from 1e-06 to 1e+06: 1e+300"),
        (["--gpu-tflops", "nan"], "--gpu-tflops: must be from 1e-06 to 1e+06: nan"),
        (["--mfu", "1e-320"], "--mfu: must be from 1e-06 to 1: 9.99989e-321"),
        (["--mfu", "40"], "--mfu: must be from 1e-06 to 1: 40"),
        (["--gpus", "4", "--parallel.replicate", "3"], "parallel.replicate: does not divide 4 GPUs: 3"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_impossible_plans_are_explained(tiny_run, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan.main(["--config", str(tiny_run()), *options])
