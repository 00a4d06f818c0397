"""The ops under torch.compile: registered as PyTorch wants them, and the same as without it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastling.kernels import (
    adamw,
    cross_entropy,
    linear,
    linear_cross_entropy,
    rms_norm,
    rotary,
    runtime,
    swiglu,
    tiled_attention,
)
from fastling.kernels.cases import OPS, RAGGED
from fastling.kernels.cross_entropy import IGNORE_INDEX

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
T, H, N, K, D, V = 3, 10, 3, 2, 6, 17


@pytest.fixture(autouse=True)
def compile_afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE).requires_grad_()


def strided_leaf(num_tokens: int, num_heads: int, head_dim: int) -> Tensor:
    """Some heads of a fused projection."""
    return torch.randn(num_tokens, num_heads + 2, head_dim, device=DEVICE)[:, 1:-1].requires_grad_()


def plain(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def labels() -> Tensor:
    return torch.tensor([4, IGNORE_INDEX, 16], device=DEVICE)


def tables() -> tuple[Tensor, Tensor, Tensor]:
    return plain(9, D // 2), plain(9, D // 2), torch.tensor([0, 8, 1], dtype=torch.int32, device=DEVICE)


def test_tensors_constant_in_a_graph_are_marked_as_pytorch_marks_them():
    asked = torch.compiler.assume_constant_result(lambda: None)
    for function in (runtime.missing, runtime.total_memory):
        assert vars(asked) and vars(asked).items() <= vars(function).items()


# Registration --------------------------------------------------------------------------------------

# Arguments for each custom op; what requires grad is differentiated.
SAMPLES: dict[str, list[Callable[[], tuple]]] = {
    "rms_norm": [
        lambda: (leaf(T, H), leaf(H), 1e-5, 0.0),
        lambda: (strided_leaf(T, N, D), leaf(D), 1e-5, 1.0),
    ],
    "rms_norm_backward": [
        lambda: (plain(T, H), None, plain(T, H), plain(H), plain(T), 0.0, True),
        lambda: (plain(T, H), plain(T, H), plain(T, H), plain(H), plain(T), 1.0, False),
        lambda: (plain().expand(T, H), plain(H, T).t(), plain(T, H), plain(H), plain(T), 0.0, True),
    ],
    "add_rms_norm": [lambda: (leaf(T, H), leaf(T, H), leaf(H), 1e-5, 0.0)],
    "rotary": [
        lambda: (leaf(T, N, D), leaf(T, K, D), *tables(), False, False),
        lambda: (strided_leaf(T, N, D), leaf(T, K, D), *tables(), True, True),
    ],
    "swiglu": [lambda: (leaf(T, H),)],
    "swiglu_backward": [
        lambda: (plain(T, H // 2), plain(T, H)),
        lambda: (plain().expand(T, H // 2), plain(T, H)),
    ],
    "linear": [
        lambda: (leaf(T, H), leaf(V, H), leaf(V)),
        lambda: (leaf(T, H).bfloat16(), leaf(V, H), None),
    ],
    "linear_input": [lambda: (plain(T, V).bfloat16(), plain(V, H))],
    "linear_weight": [lambda: (plain(T, V).bfloat16(), plain(T, H).bfloat16())],
    "tiled_attention": [
        lambda: (leaf(T, 2 * K, D), leaf(T, K, D), leaf(T, K, D), torch.tensor([0, 1, T]).int()),
        lambda: (strided_leaf(T, K, D), plain(T, 1, D), leaf(T, 1, D), torch.tensor([0, T]).int()),
    ],
    "tiled_attention_backward": [
        lambda: (
            plain().expand(T, K, D),
            *(plain(T, heads, D) for heads in (K, 1, 1, K)),
            plain(T, K),
            torch.tensor([0, 2, T]).int(),
        )
    ],
    "cross_entropy": [
        lambda: (leaf(T, V), labels(), plain(T), 0.1, 1e-3, True, True),
        lambda: (plain(T, V), labels(), plain(T), 0.0, 0.0, False, False),
    ],
    "linear_cross_entropy": [
        lambda: (leaf(T, H), leaf(V, H), labels(), plain(T), 2 * V * 4, torch.float32, True, True, True),
        lambda: (leaf(T, H), plain(V, H), labels(), plain(T), 9999, torch.float32, False, True, False),
        lambda: (plain(T, H), leaf(V, H), labels(), plain(T), 9999, torch.float32, True, False, True),
    ],
    "adamw_": [
        lambda: (
            plain(T, H),
            plain(T, H),
            plain(T, H),
            plain(T, H).abs(),
            plain().abs() + 1,
            2,
            0.1,
            0.9,
            0.95,
            1e-8,
            0.1,
        )
    ],
}


def test_every_custom_op_is_checked():
    assert tiled_attention.tiled_attention  # operators are there once their file is
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastling::")}
    assert registered == {f"fastling::{name}" for name in SAMPLES}


# PyTorch 2.14 looks at a copy's gradient while it checks, and warns of itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("name", "sample"),
    [
        pytest.param(name, sample, id=f"{name} {number}")
        for name, samples in SAMPLES.items()
        for number, sample in enumerate(samples)
    ],
)
def test_pytorch_finds_nothing_wrong_with_the_registration(name, sample):
    """Its schema, that it writes to nothing else, its shapes without data, and its gradient when traced."""
    torch.library.opcheck(getattr(torch.ops.fastling, name).default, sample())


# The public ops ------------------------------------------------------------------------------------


def results_of(function: Callable, inputs: dict) -> list[Tensor]:
    """Outputs, and gradients of leaves for gradients of the outputs that are drawn alike each time."""
    outputs = function(**inputs)
    outputs = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x is not None]
    wanted = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
    results = [x.detach() for x in outputs]
    if wanted:
        torch.manual_seed(1)
        outputs = [x for x in outputs if x.requires_grad]
        results += torch.autograd.grad(outputs, wanted, [torch.randn_like(x) for x in outputs])
    return results


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_compiled_it_gives_the_same_bits(op):
    """In one graph, with rows that are left out."""
    inputs = op.inputs(RAGGED[1], torch.float32, DEVICE)
    compiled = torch.compile(op.kernel, fullgraph=True, backend="aot_eager")
    for one, other in zip(results_of(op.kernel, inputs), results_of(compiled, inputs), strict=True):
        assert torch.equal(one, other)


def cross_entropy_with_options(**inputs):
    return cross_entropy.cross_entropy(**inputs, label_smoothing=0.1, z_loss=1e-3, entropy=True)[0]


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (rms_norm.rms_norm, lambda: {"x": leaf(T, H), "weight": leaf(H), "eps": 1e-5, "weight_offset": 1.0}),
        (rms_norm.rms_norm, lambda: {"x": strided_leaf(T, N, D), "weight": leaf(D), "eps": 1e-5}),
        (
            lambda **inputs: rms_norm.add_rms_norm(**inputs)[0],
            lambda: {"x": leaf(T, H), "residual": leaf(T, H), "weight": leaf(H), "eps": 1e-5},
        ),
        (
            lambda **inputs: rms_norm.add_rms_norm(**inputs)[1] + inputs["weight"],
            lambda: {"x": leaf(T, H), "residual": leaf(T, H), "weight": leaf(H), "eps": 1e-5},
        ),
        (
            lambda qkv, **tables: rotary.rotary_qkv(qkv * 1, N, K, *tables.values(), in_place=True),
            lambda: {"qkv": leaf(T, N + 2 * K, D)} | dict(zip("csp", tables(), strict=True)),
        ),
        (
            lambda qkv, **tables: rotary.rotary_qkv(qkv, N, K, *tables.values(), interleaved=True),
            lambda: {"qkv": leaf(T, N + 2 * K, D)} | dict(zip("csp", tables(), strict=True)),
        ),
        (swiglu.swiglu, lambda: {"gate_up_T2F": leaf(T, 2 * H)}),
        (
            cross_entropy_with_options,
            lambda: {"logits_SV": leaf(T, V), "labels_S": labels(), "weights_S": plain(T)},
        ),
        (
            lambda **inputs: linear_cross_entropy.linear_cross_entropy(**inputs, chunk_bytes=2 * V * 4)[0],
            lambda: {"hidden_SH": leaf(T, H), "weight_VH": leaf(V, H), "labels_S": labels()},
        ),
        (
            lambda **inputs: linear_cross_entropy.chunked_linear_cross_entropy(**inputs)[0],
            lambda: {"hidden_SH": leaf(T, H), "weight_VH": leaf(V, H).detach(), "labels_S": labels()},
        ),
    ],
    ids=[
        "weight_offset", "strided heads", "only the norm of a sum", "only the sum", "in place", "interleaved",
        "swiglu", "smoothing and z-loss", "mean in chunks", "frozen head",
    ],
)  # fmt: skip
def test_compiled_with_options_it_gives_the_same_bits(function, inputs):
    inputs = inputs()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(results_of(function, inputs), results_of(compiled, inputs), strict=True):
        assert torch.equal(one, other)


def block(x, residual, norm_weight, gate_up, head, labels):
    """As in a model: each op between PyTorch's own."""
    normed, residual = rms_norm.add_rms_norm(x, residual, norm_weight, 1e-5)
    hidden = swiglu.swiglu(normed @ gate_up.t()) + residual[:, : H // 2]
    return linear_cross_entropy.linear_cross_entropy(hidden, head, labels)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_inductor_drops_no_op_from_a_graph():
    """Custom ops whose results seem unused, or whose buffers seem uninitialised, must survive."""
    inputs = {
        "x": leaf(T, H), "residual": leaf(T, H), "norm_weight": leaf(H), "gate_up": leaf(H, H),
        "head": leaf(V, H // 2), "labels": labels(),
    }  # fmt: skip
    compiled = torch.compile(block, fullgraph=True)
    for one, other in zip(results_of(block, inputs), results_of(compiled, inputs), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_another_number_of_tokens_needs_no_new_graph(op):
    """Packs differ in how many tokens they have, and in how many of them are trained on."""
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(op.kernel, fullgraph=True, dynamic=True, backend=count)
    for num_tokens in (8, 13, 21):
        compiled(**op.inputs(replace(RAGGED[1], tokens=num_tokens), torch.float32, DEVICE))
    assert len(graphs) == 1


def test_another_number_of_tokens_needs_no_new_graph_of_a_linear_layer_either():
    """Of a float32 weight: after eight graphs PyTorch gives up, and runs the layer uncompiled."""
    graphs, weight = [], leaf(V, H)

    def count(graph, given):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, given)

    compiled = torch.compile(linear.linear, fullgraph=True, dynamic=True, backend=count)
    for num_tokens in (8, 13, 21):
        compiled(plain(num_tokens, H).bfloat16().requires_grad_(), weight).sum().backward()
    assert len(graphs) == 1


def test_measured_results_are_detached_when_compiled_too():
    def losses(hidden, head, labels):
        of_head = linear_cross_entropy.linear_cross_entropy(hidden, head, labels)
        return of_head, cross_entropy.cross_entropy(hidden, labels.clamp(max=H - 1), entropy=True)

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    (loss, nll), (other_loss, *by_row) = compiled(leaf(T, H), leaf(V, H), labels())
    assert loss.requires_grad and other_loss.requires_grad
    assert not any(x.requires_grad for x in (nll, *by_row))


def test_adamw_updates_in_place_when_compiled():
    def update(parameter, gradient, exp_avg, exp_avg_sq, scale):
        numbers = {"step": 2, "lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
        adamw.adamw_(parameter, gradient, exp_avg, exp_avg_sq, scale, **numbers)

    states = [plain(T, H), plain(T, H), plain(T, H), plain(T, H).abs(), plain().abs() + 1]
    copies = [x.clone() for x in states]
    update(*states)
    torch.compile(update, fullgraph=True, backend="aot_eager")(*copies)
    assert all(torch.equal(one, other) for one, other in zip(states, copies, strict=True))
