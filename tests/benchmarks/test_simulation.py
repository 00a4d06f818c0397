"""The simulation: small cases by hand, what must hold for all, and refusals where nothing was measured."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import simulation
from benchmarks.commands import command_of
from benchmarks.rows import read, runs_of
from benchmarks.simulation import Layout, Links, Measured, Part, copy_group, micro_batch_seconds, shard_group
from benchmarks.training_case import make_shape
from fastling.errors import UserError, run_command

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

FAST = Links(450.0, 50.0, 0.0)
LARGE, SHAPE = make_shape("8b"), make_shape("demo")
LAYER_WEIGHTS = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096
"""Of the large one: queries, keys and values, the output, the MLP, two norms."""
ROW = {
    "bench": "train",
    "case": "8b",
    "provider": "fastling",
    "status": "measured",
    "device": "NVIDIA H200",
    "date": "2026-11-21",
    "commit": "abc",
    "milliseconds": 2000.0,
    "tokens_per_s": 8000.0,
    "supervised_tokens_per_s": 4000.0,
    "settings": {"micro_batches": 2},
    "parts": {"optimizer": 50.0},
}

positive = st.floats(1e-3, 1e3)
links = st.builds(Links, positive, positive, st.floats(0, 50))
layouts = st.builds(
    lambda gpus, copies, kept: Layout(2**gpus, 2 ** min(copies, gpus), kept),
    st.integers(3, 10),
    st.integers(0, 10),
    st.booleans(),
)
steps = st.builds(
    lambda milliseconds, part, micro_batches, supervised: Measured(
        milliseconds, 8192.0, part * milliseconds, micro_batches, supervised
    ),
    st.floats(1, 1e5),
    st.floats(0, 0.5),
    st.integers(1, 8),
    st.floats(0, 1),
)


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# By hand --------------------------------------------------------------------------------------------


def test_one_layer():
    layer = Part(forward=1, backward=2, gather=0.5, reduce=0.25, gather_again=0.5)
    rest = Part(forward=0.3, backward=0.6, gather=0.7, reduce=0.9, gather_again=0.7)
    forward = 0.7 + 0.5 + 1 + 0.3
    backward = 0.6 + 2 + 0.25 + 0.9
    assert micro_batch_seconds(layer, rest, 1) == pytest.approx(forward + backward)


def test_three_layers_that_wait_for_their_weights():
    """Forward: 0.7 and 3, then 3 twice in place of 1, then 1. Backward: 3 in place of the head's 0.6, then
    3, then 3 + 2, then the 2 of the reduction beside the first layer's backward of 2."""
    layer = Part(forward=1, backward=2, gather=3, reduce=2, gather_again=3)
    rest = Part(forward=0.3, backward=0.6, gather=0.7, reduce=0.9, gather_again=0.7)
    forward = 0.7 + 3 + 3 + 3 + 1 + 0.3
    backward = 3 + 3 + 5 + 2 + 2 + 0.9
    assert micro_batch_seconds(layer, rest, 3) == pytest.approx(forward + backward)


@pytest.mark.parametrize(
    ("layout", "seconds"),
    [
        (Layout(8), 7 / 8 * 9 / 450),
        (Layout(16), 15 / 16 * 9 / 450),  # its own links are slower than half of it over the network's
        (Layout(1024), 127 / 128 * 9 / 400),
        (Layout(16, copies=2), 7 / 8 * 9 / 450),
        (Layout(16, copies=16), 0.0),
    ],
)
def test_nine_gigabytes_are_gathered(layout, seconds):
    assert shard_group(layout).seconds(9e9, FAST) == pytest.approx(seconds)


def test_a_node_receives_what_comes_from_outside_once_over_all_its_links():
    slow_inside = Links(node_gb_s=100.0, network_gb_s=50.0, latency_microseconds=0.0)
    assert shard_group(Layout(16)).seconds(9e9, slow_inside) == pytest.approx(15 / 16 * 9 / 100)


@pytest.mark.parametrize(
    ("layout", "seconds"),
    [
        (Layout(16, copies=2), 2 * 1 / 2 * 9 * 8 / 400),  # eight sums share a node's links
        (Layout(1024, copies=128), 2 * 127 / 128 * 9 * 8 / 400),
        (Layout(8, copies=2), 2 * 1 / 2 * 9 / 450),
        (Layout(16, copies=4), 2 * max(3 / 4 * 9 / 450, 1 / 2 * 9 * 4 / 400)),
    ],
)
def test_nine_gigabytes_are_summed_over_copies(layout, seconds):
    assert copy_group(layout).seconds(9e9, FAST, passes=2) == pytest.approx(seconds)


def test_each_step_of_a_collective_adds_the_latency():
    endless = Links(math.inf, math.inf, 10.0)
    assert shard_group(Layout(8)).seconds(1e9, endless) == pytest.approx(7 * 1e-5)
    assert shard_group(Layout(32)).seconds(1e9, endless) == pytest.approx((7 + 3) * 1e-5)
    assert copy_group(Layout(32, copies=4)).seconds(1e9, endless, passes=2) == pytest.approx(2 * 3 * 1e-5)


def test_work_is_divided_by_the_flop_of_matrices():
    measured = Measured(1000.0, 8192.0, optimizer_milliseconds=100.0, micro_batches=3, supervised=0.5)
    layer, rest = simulation.step_parts(LARGE, measured, Layout(8), FAST)
    hidden = 4096
    layer_work = LAYER_WEIGHTS - 2 * hidden
    head_work = 128256 * hidden * 0.5
    # Of the last layer, what follows attention is for supervised tokens only: its projection and the MLP.
    not_done = 0.5 * (hidden * hidden + 3 * hidden * 14336)
    of_head = 0.3 * head_work / (32 * layer_work - not_done + head_work)
    assert rest.forward + rest.backward == pytest.approx(of_head)
    assert layer.forward == pytest.approx((0.3 - of_head) / 32 / 3)
    assert layer.backward == pytest.approx(2 * layer.forward)
    assert layer.gather == layer.gather_again == pytest.approx(7 / 8 * 2 * LAYER_WEIGHTS / 450e9)
    assert layer.reduce == pytest.approx(2 * layer.gather)
    assert rest.gather == pytest.approx(7 / 8 * 2 * (2 * 128256 + 1) * hidden / 450e9)


def test_copies_sum_their_parts_once_a_step():
    layout = Layout(16, copies=2)
    layer, _ = simulation.step_parts(LARGE, Measured(1000.0, 8192.0), layout, FAST)
    summed = copy_group(layout).seconds(4 * LAYER_WEIGHTS / 8, FAST, passes=2)
    assert layer.gather == pytest.approx(7 / 8 * 2 * LAYER_WEIGHTS / 450e9)
    assert layer.reduce == pytest.approx(2 * layer.gather)
    assert layer.of_last_micro_batch().reduce == pytest.approx(2 * layer.gather + summed) and summed > 0
    # Many micro-batches, of which nothing is hidden: the sum of 32 layers and the rest comes once.
    one, four = (
        simulation.simulate(LARGE, Measured(1e-3, 1.0, micro_batches=n), layout, FAST).seconds for n in (1, 4)
    )
    _, rest = simulation.step_parts(LARGE, Measured(1e-3, 1.0), layout, FAST)
    assert 4 * one - four == pytest.approx(3 * (32 * summed + rest.sum_copies), rel=1e-3)


def test_kept_weights_are_not_gathered_for_the_backward():
    measured = Measured(1000.0, 8192.0)
    layer, rest = simulation.step_parts(LARGE, measured, Layout(8, keeps_weights=True), FAST)
    assert layer.gather_again == rest.gather_again == 0 < layer.gather


# For all --------------------------------------------------------------------------------------------


@given(steps, layouts, links)
def test_never_faster_than_linear(measured, layout, links):
    found = simulation.simulate(SHAPE, measured, layout, links)
    assert found.seconds >= found.linear_seconds * (1 - 1e-12)


@given(steps, layouts)
def test_endless_bandwidth_without_latency_is_linear(measured, layout):
    found = simulation.simulate(SHAPE, measured, layout, Links(math.inf, math.inf, 0.0))
    assert found.seconds == pytest.approx(found.linear_seconds)
    assert found.hidden_tokens == 0


@given(steps, layouts, links, st.sampled_from(["node_gb_s", "network_gb_s"]), st.floats(1, 100))
def test_more_bandwidth_is_never_slower(measured, layout, links, name, times):
    more = dataclasses.replace(links, **{name: times * getattr(links, name)})
    slow, fast = (simulation.simulate(SHAPE, measured, layout, each).seconds for each in (links, more))
    assert fast <= slow * (1 + 1e-12)


@given(steps, layouts, links, st.floats(0, 100))
def test_more_latency_is_never_faster(measured, layout, links, more):
    later = dataclasses.replace(links, latency_microseconds=links.latency_microseconds + more)
    soon, late = (simulation.simulate(SHAPE, measured, layout, each).seconds for each in (links, later))
    assert late >= soon * (1 - 1e-12)


@given(steps, layouts, links)
def test_with_as_many_tokens_as_it_says_only_the_ends_are_seen(measured, layout, links):
    """Time is in proportion to tokens: a step of so many more takes so many times as long."""
    assumed = dataclasses.replace(measured, optimizer_milliseconds=0.0)
    hidden = simulation.simulate(SHAPE, assumed, layout, links).hidden_tokens
    longer = 1.001 * hidden * assumed.micro_batches / assumed.tokens
    if longer == 0:
        return
    enough = dataclasses.replace(
        assumed, milliseconds=longer * assumed.milliseconds, tokens=longer * assumed.tokens
    )
    found = simulation.simulate(SHAPE, enough, layout, links)
    layer, rest = simulation.step_parts(SHAPE, enough, layout, links)
    ends = rest.gather + layer.gather + layer.reduce + rest.reduce
    ends += max(0.0, layer.gather_again - rest.backward)
    ends = enough.micro_batches * ends + layer.sum_copies + rest.sum_copies
    assert found.seconds == pytest.approx(found.linear_seconds + ends)


# What it takes, and what it says --------------------------------------------------------------------


def test_without_a_measured_step_it_refuses(capsys):
    assert run_command(simulation.main, ["--size", "8b"]) == 2
    said = capsys.readouterr().err
    assert "it has to be measured" in said and "--milliseconds-a-step" in said and "--results" in said
    assert run_command(simulation.main, ["--milliseconds-a-step", "10"]) == 2


def test_the_command_on_the_page_simulates_the_same_again(tmp_path):
    out = tmp_path / "rows.jsonl"
    asked = (
        "--milliseconds-a-step 900 --tokens-a-step 8192 --micro-batches 2 --supervised 0.3 --replicate nodes"
    )
    assert run_command(simulation.main, [*asked.split(), "--network-bandwidth", "12", "--out", str(out)]) == 0
    (run,) = runs_of(read(out))
    assert command_of(run) == (
        f"python -m benchmarks.simulation {asked} --network-bandwidth 12 --out rows.jsonl"
    )


def test_the_last_row_of_a_gpu_is_taken(tmp_path):
    path = tmp_path / "train.jsonl"
    write(
        path,
        ROW | {"milliseconds": 1.0},
        ROW,
        ROW | {"provider": "trl"},
        ROW | {"status": "out of memory"},
    )
    measured = simulation.read_measured(path, "8b", "fastling")
    assert (measured.milliseconds, measured.tokens, measured.supervised) == (2000.0, 16000.0, 0.5)
    assert (measured.optimizer_milliseconds, measured.micro_batches) == (50.0, 2)
    assert measured.device == "NVIDIA H200" and str(tmp_path) not in json.dumps(dataclasses.asdict(measured))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cpu"}, "measured on a CPU"),
        ({"provider": "trl"}, "holds no measured row"),
        ({"milliseconds": "soon"}, "train.jsonl:1: is no row that"),
        ({"milliseconds": 0.0}, "must be > 0"),
        ({"milliseconds": math.nan}, "must be > 0"),
        ({"tokens_per_s": 0}, "is no row that"),
        ({"parts": []}, "is no row that"),
        ({"parts": {"optimizer": 3000.0}}, "must be a part of the step's"),
    ],
)
def test_a_row_that_says_nothing_is_refused(tmp_path, change, words):
    path = tmp_path / "train.jsonl"
    write(path, ROW | change)
    with pytest.raises(UserError, match=words):
        simulation.read_measured(path, "8b", "fastling")


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "3b"],
        ["--replicate", "3"],
        ["--network-bandwidth", "0"],
        ["--node-bandwidth", "nan"],
        ["--latency-microseconds", "-1"],
    ],
)
def test_impossible_options_are_refused(options, capsys):
    given = ["--milliseconds-a-step", "10", "--tokens-a-step", "8192"]
    assert run_command(simulation.main, [*given, *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_a_step_given_twice_is_refused(tmp_path, capsys):
    path = write(tmp_path / "train.jsonl", ROW)
    assert run_command(simulation.main, ["--results", path, "--tokens-a-step", "3"]) == 2
    assert "--tokens-a-step: has no effect beside --results" in capsys.readouterr().err


def test_every_row_says_that_it_is_simulated_and_from_what(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    results = write(tmp_path / "train.jsonl", ROW)
    options = ["--results", results, "--replicate", "nodes", "--out", str(out)]
    assert run_command(simulation.main, options) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["gpus"] for row in rows] == simulation.GPUS
    assert [row["replicate"] for row in rows] == [gpus // 8 for gpus in simulation.GPUS]
    for row in rows:
        assert row["simulated"] and row["assumptions"] == list(simulation.ASSUMPTIONS)
        assert row["measured"]["milliseconds"] == 2000.0 and row["links"]["network_gb_s"] == 50.0
        assert 0 < row["share_of_linear"] <= 1
        assert row["simulated_tokens_per_s"] == pytest.approx(
            16000 * row["gpus"] / row["simulated_milliseconds"] * 1e3
        )
    shares = [row["share_of_linear"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    said = capsys.readouterr().out
    assert "SIMULATED" in said and "Nothing" not in said and "only the step of one GPU was measured" in said


def test_more_copies_than_gpus_leave_a_number_out():
    assert [layout.gpus for layout in simulation.make_layouts("32", "full")] == simulation.GPUS[2:]
