"""Bugs that kernels like these have had, each with the test that would have found it."""

import importlib
import mmap
import pkgutil

import pytest
import torch
import torch.distributed as dist
from conftest import slow_without_gpu
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastling.kernels
from fastling.kernels import cases
from fastling.kernels.adamw import adamw_
from fastling.kernels.cases import OPS, RAGGED, Op, Shape
from fastling.kernels.cross_entropy import (
    IGNORE_INDEX,
    cross_entropy,
    cross_entropy_reference,
    rows_and_gradient,
)
from fastling.kernels.linear_cross_entropy import (
    chunked_linear_cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from fastling.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_reference
from fastling.kernels.rotary import rotary, rotary_qkv, rotary_qkv_reference, rotary_reference
from fastling.kernels.swiglu import swiglu, swiglu_reference

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DIFFERENTIABLE = {name: op for name, op in OPS.items() if name != "adamw_"}
FORMED_IN_FORWARD = ("cross_entropy", "linear_cross_entropy")  # these gradients can be had once

each_op = pytest.mark.parametrize("op", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)


def draw(op: Op, shape: Shape = RAGGED[1]) -> tuple[cases.Inputs, list[Tensor]]:
    """Inputs of an op in float32, and those of them that are differentiated."""
    inputs = op.inputs(shape, torch.float32, DEVICE)
    return inputs, [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]


def outputs_of(op: Op, inputs: cases.Inputs) -> list[Tensor]:
    outputs = op.kernel(**inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def all_equal(some, others) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


# Gradients that come in and graphs that go on ------------------------------------------------------


def scaled_sum(output: Tensor) -> Tensor:
    return output.sum() * 0.25


@slow_without_gpu
@each_op
@pytest.mark.parametrize("reduce", [torch.sum, torch.mean, scaled_sum], ids=lambda f: f.__name__)
def test_a_gradient_that_is_one_expanded_scalar(op, reduce):
    """.sum().backward() hands in a tensor of strides 0; read as if dense, it is one value and then garbage."""
    inputs, leaves = draw(op)
    expanded = torch.autograd.grad(sum(reduce(x) for x in outputs_of(op, inputs)), leaves)
    outputs = outputs_of(op, inputs)
    values = [torch.autograd.grad(reduce(x := output.detach().requires_grad_()), x)[0] for output in outputs]
    dense = torch.autograd.grad(outputs, leaves, [x.contiguous() for x in values])
    assert all_equal(expanded, dense)


@slow_without_gpu
@each_op
def test_a_gradient_that_is_transposed_in_memory(op):
    inputs, leaves = draw(op)
    outputs = outputs_of(op, inputs)
    dense = [torch.randn_like(x) for x in outputs]
    transposed = [x.mT.contiguous().mT if x.dim() > 1 else x for x in dense]
    first = torch.autograd.grad(outputs, leaves, transposed)
    second = torch.autograd.grad(outputs_of(op, inputs), leaves, dense)
    assert all_equal(first, second)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_inputs_are_never_written_to(op):
    """A gradient that is written over is wrong for whoever else gets it: in a residual stream, everyone."""
    inputs, leaves = draw(op)
    outputs = outputs_of(op, inputs)
    given = [torch.randn_like(x) for x in outputs]
    everything = [*given, *(x for x in inputs.values() if isinstance(x, Tensor))]
    copies = [x.detach().clone() for x in everything]
    if leaves:
        torch.autograd.grad(outputs, leaves, given)
    assert all_equal(everything, copies)


@each_op
@pytest.mark.parametrize("shape", RAGGED[:2], ids=lambda shape: shape.name)
def test_nothing_is_written_outside_the_results(op, shape, monkeypatch):
    """A mask that is one too wide writes into whatever lies behind, or into the next row."""
    fence, fences, new_empty = 64, [], Tensor.new_empty

    def fenced(tensor: Tensor, *sizes, **options) -> Tensor:
        shape = torch.Size(sizes if isinstance(sizes[0], int) else sizes[0])
        around = new_empty(tensor, shape.numel() + 2 * fence, **options).fill_(1)
        before, found, after = around.split([fence, shape.numel(), fence])
        fences.extend((before, after))
        return found.view(shape)

    inputs, leaves = draw(op, shape)
    monkeypatch.setattr(Tensor, "new_empty", fenced)
    outputs = outputs_of(op, inputs)
    torch.autograd.grad(outputs, leaves, [torch.randn_like(x) for x in outputs])
    assert fences and all((each == 1).all() for each in fences)


@slow_without_gpu
@each_op
def test_inputs_used_elsewhere_keep_their_gradients(op):
    """As in a residual stream: the op's gradient and the other one add up."""
    inputs, leaves = draw(op)
    outputs = outputs_of(op, inputs)
    directions = [torch.randn_like(x) for x in outputs]
    others = [torch.randn_like(x) for x in leaves]
    alone = torch.autograd.grad(outputs, leaves, directions)
    outputs = [x.sin() for x in leaves] + outputs_of(op, inputs) + [x.square() for x in leaves]
    both = torch.autograd.grad(outputs, leaves, [*others, *directions, *others])
    for x, other, own, total in zip(leaves, others, alone, both, strict=True):
        torch.testing.assert_close(total, own + other * x.cos() + other * 2 * x, atol=1e-5, rtol=1e-5)


@each_op
def test_a_second_backward_is_right_or_refused(op):
    """A gradient formed in forward, or a buffer reused by the first backward, cannot serve a second."""
    inputs, leaves = draw(op)
    outputs = outputs_of(op, inputs)
    directions = [torch.randn_like(x) for x in outputs]
    first = torch.autograd.grad(outputs, leaves, directions, retain_graph=True)
    kept = [x.clone() for x in first]
    if op.name in FORMED_IN_FORWARD:
        with pytest.raises(RuntimeError, match=f"{op.name}: backward has used up .*; call forward again"):
            torch.autograd.grad(outputs, leaves, directions)
    else:
        assert all_equal(kept, torch.autograd.grad(outputs, leaves, directions))
    assert all_equal(kept, first)


@each_op
def test_the_gradient_of_a_gradient_is_refused(op):
    """No kernel computes it; silence would be zero."""
    inputs, leaves = draw(op)
    gradients = torch.autograd.grad(
        sum(x.sin().sum() for x in outputs_of(op, inputs)), leaves, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(x.sum() for x in gradients).backward()


def test_every_row_has_its_own_weight():
    """Kernels that return a loss by row have scaled all gradients by the first row's."""
    logits = torch.randn(3, 37, device=DEVICE).requires_grad_()
    labels = torch.tensor([0, 1, 2], device=DEVICE)
    by_row = [
        torch.autograd.grad(cross_entropy(logits, labels, row).loss, logits)[0]
        for row in torch.eye(3, device=DEVICE)
    ]
    weights = torch.tensor([0.5, 2.0, 0.0], device=DEVICE)
    (together,) = torch.autograd.grad(cross_entropy(logits, labels, weights).loss, logits)
    torch.testing.assert_close(together, sum(w * x for w, x in zip(weights, by_row, strict=True)))


# Numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.9, 0.99, 0.999, 0.999999])
def test_the_label_gradient_keeps_its_digits_where_p_is_nearly_one(p, dtype):
    """p - 1 has lost them in float32, before it is rounded to the gradient's type."""
    vocab, others = 37, 36
    peak = torch.tensor(p / (1 - p) * others, dtype=torch.float64).log()
    logits = torch.zeros(1, vocab, dtype=torch.float64)
    logits[0, 5] = peak
    logits = logits.float().to(DEVICE)
    labels, weights = torch.tensor([5], device=DEVICE), torch.tensor([1000.0], device=DEVICE)
    truth = logits.double().softmax(-1)
    truth[0, 5] = -truth[0][torch.arange(vocab, device=DEVICE) != 5].sum()
    gradient = torch.empty_like(logits, dtype=dtype)
    _, nll, *_ = rows_and_gradient(logits, labels, weights, gradient)
    rtol = {torch.float32: 2e-6, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(gradient.double(), 1000 * truth, atol=0.0, rtol=rtol)
    torch.testing.assert_close(nll.double(), -torch.log1p(truth[:, 5]), atol=0.0, rtol=2e-6)


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "mean"])
@pytest.mark.parametrize(
    "loss_of", [linear_cross_entropy, chunked_linear_cross_entropy, linear_cross_entropy_reference]
)
def test_with_all_labels_ignored_the_fused_loss_and_its_gradients_are_zero(loss_of, weights):
    """The mean of no rows is 0 / 0."""
    hidden, weight = (torch.randn(n, 8, device=DEVICE).requires_grad_() for n in (5, 37))
    labels = torch.full((5,), IGNORE_INDEX, device=DEVICE)
    loss, nll = loss_of(hidden, weight, labels, torch.rand(5, device=DEVICE) if weights else None)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert all(x.eq(0).all() for x in (loss, nll, *gradients))


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "mean"])
@pytest.mark.parametrize("loss_of", [cross_entropy, cross_entropy_reference])
def test_with_all_labels_ignored_the_loss_is_zero(loss_of, weights):
    logits = torch.randn(5, 37, device=DEVICE).requires_grad_()
    labels = torch.full((5,), IGNORE_INDEX, device=DEVICE)
    result = loss_of(logits, labels, torch.rand(5, device=DEVICE) if weights else None, entropy=True)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    assert all(x.eq(0).all() for x in (*result, gradient))


def test_ignored_rows_never_affect_the_others():
    """Padding may hold anything, NaN too."""
    logits = torch.randn(5, 37, device=DEVICE)
    labels = torch.tensor([3, IGNORE_INDEX, 0, IGNORE_INDEX, 36], device=DEVICE)
    padded = logits.index_fill(0, torch.tensor([1, 3], device=DEVICE), float("nan")).requires_grad_()
    expected, result = (cross_entropy(x, labels).loss for x in (logits, padded))
    assert torch.equal(expected, result)
    assert torch.autograd.grad(result, padded)[0][[1, 3]].eq(0).all()


@pytest.mark.slow
def test_the_loss_of_many_rows_is_summed_in_float32():
    """At 128, neighbouring bfloat16 values are 1 apart: every further row would be rounded."""
    logits = (torch.randn(200, 3, device=DEVICE)).bfloat16()
    labels, weights = torch.randint(3, (200,), device=DEVICE), torch.ones(200, device=DEVICE)
    loss = cross_entropy(logits, labels, weights).loss
    truth = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
    assert loss.dtype == torch.float32 and abs(loss - truth) <= 1e-6 * truth
    head = torch.eye(3, device=DEVICE).bfloat16()
    loss, _ = linear_cross_entropy(logits, head, labels, weights, chunk_bytes=50 * 3 * 4)
    assert loss.dtype == torch.float32 and abs(loss - truth) <= 1e-6 * truth


# Addresses -----------------------------------------------------------------------------------------

MAP_NORESERVE = 0x4000  # Python's mmap names it from 3.13 on
STRIDE = 2**30 + 16  # twice this is beyond 31 bits, while stride and row each fit


@pytest.fixture(autouse=True)
def memory_given_back():
    """What a test held of a GPU, tens of GiB of one: other test processes share it."""
    yield
    torch.cuda.empty_cache()


def far_apart(*row_shape: int) -> Tensor:
    """Three float16 rows, 2 GiB from one to the next, in memory of which only what is touched exists.

    Below the first lie as many zeros as an offset that has wrapped round to the negative can reach.
    """
    num_values = 2**31 + 3 * STRIDE
    if DEVICE.type == "cuda":
        memory = torch.zeros(num_values, dtype=torch.float16, device=DEVICE)
    else:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = torch.frombuffer(mmap.mmap(-1, 2 * num_values, flags=flags), dtype=torch.float16)
    strides = torch.empty(row_shape, device="meta").stride()
    rows = memory.as_strided((3, *row_shape), (STRIDE, *strides), 2**31)
    return rows.copy_(torch.randn(rows.shape))


@triton.jit
def _copy_with_offsets_of_32_bits(out_ptr, x_ptr, stride, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + tl.program_id(0) * stride + columns)
    tl.store(out_ptr + tl.program_id(0) * WIDTH + columns, x)


def test_rows_this_far_apart_overflow_32_bit_offsets():
    """Else the tests that follow would prove nothing."""
    x = far_apart(16)
    out = torch.empty(3, 16, dtype=torch.float16, device=DEVICE)
    _copy_with_offsets_of_32_bits[(3,)](out, x, x.stride(0), WIDTH=16)
    assert torch.equal(out[:2], x[:2]) and out[2].eq(0).all()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("over_heads", [False, True], ids=["tokens", "heads"])
def test_rms_norm_counts_in_64_bits(over_heads):
    x = far_apart(16).unsqueeze(0) if over_heads else far_apart(2, 16)
    x.requires_grad_()
    weight = torch.randn(16, device=DEVICE).half()
    (y, gradient), (plain, plain_gradient) = (
        (y := norm(x, weight, 1e-5), *torch.autograd.grad(y.sum(), x))
        for norm in (rms_norm, rms_norm_reference)
    )
    torch.testing.assert_close(y, plain, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-2, rtol=1e-2)


def test_swiglu_counts_in_64_bits():
    x = far_apart(32).requires_grad_()
    (y, gradient), (plain, plain_gradient) = (
        (y := op(x), *torch.autograd.grad(y.sum(), x)) for op in (swiglu, swiglu_reference)
    )
    torch.testing.assert_close(y, plain, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("over_heads", [False, True], ids=["tokens", "heads"])
def test_rotary_counts_in_64_bits(over_heads, interleaved):
    x = far_apart(8).unsqueeze(0) if over_heads else far_apart(3, 8)
    angles = torch.rand(9, 4, device=DEVICE)
    tables = angles.cos(), angles.sin(), torch.arange(len(x), device=DEVICE)
    plain = rotary_reference(x, *tables, interleaved=interleaved)
    for results in (
        rotary(x, x, *tables, interleaved=interleaved),
        rotary(x, x[:, :1].clone(), *tables, interleaved=interleaved, in_place=True)[:1],
    ):
        for y in results:
            torch.testing.assert_close(y, plain, atol=1e-2, rtol=1e-2)


def test_rotary_of_qkv_counts_in_64_bits():
    qkv = far_apart(5, 8)
    angles = torch.rand(9, 4, device=DEVICE)
    tables = angles.cos(), angles.sin(), torch.arange(3, device=DEVICE)
    expected = rotary_qkv_reference(qkv, 3, 1, *tables)
    for result, plain in zip(rotary_qkv(qkv, 3, 1, *tables, in_place=True), expected, strict=True):
        torch.testing.assert_close(result, plain, atol=1e-2, rtol=1e-2)


def test_cross_entropy_counts_in_64_bits():
    logits = far_apart(37)
    labels, weights = torch.tensor([0, 36, 5], device=DEVICE), torch.ones(3, device=DEVICE)
    truth = logits.double().softmax(-1) - torch.nn.functional.one_hot(labels, 37)
    nll = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    gradient = far_apart(37)
    for out in (gradient, logits):
        row, *_ = rows_and_gradient(logits, labels, weights, out)
        torch.testing.assert_close(row.double(), nll, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.double(), truth, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cpu", reason="more programs than an interpreter can run")
@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "swiglu", "cross_entropy"])
def test_tensors_of_more_than_31_bits(name):
    """Dense ones: the last rows of results and gradients are those of the plain version."""
    op, rows = OPS[name], 2**31 // 8192 + 5
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    inputs = op.inputs(Shape("large", rows, 8192, 8192 // 2, 1, 1, 8, 8192), torch.bfloat16, DEVICE)
    output = outputs_of(op, inputs)[0]
    (gradient,) = torch.autograd.grad(output.float().sum(), next(iter(inputs.values())))
    last = {
        name: x[-3:].detach().requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and len(x) == rows
        else x
        for name, x in inputs.items()
    }
    plain = op.reference(**last)
    plain = plain[0] if isinstance(plain, tuple) else plain
    (plain_gradient,) = torch.autograd.grad(plain.float().sum(), next(iter(last.values())))
    pairs = [(gradient[-3:], plain_gradient)] + ([(output[-3:], plain)] if output.dim() else [])
    for ours, theirs in pairs:
        assert (ours.float() - theirs.float()).norm() <= 1e-2 * theirs.float().norm()


# What runs on the device, and what must not wait for it --------------------------------------------


class Launches:
    """Stands in for a kernel: notes its grids and computes nothing."""

    def __init__(self):
        self.grids: list[tuple] = []

    def __getitem__(self, grid: tuple):
        return lambda *_, **__: self.grids.append(grid)


@pytest.fixture
def launches(monkeypatch) -> Launches:
    """Of all kernels; none of them runs."""
    recorded = Launches()
    for found in pkgutil.iter_modules(fastling.kernels.__path__):
        module = importlib.import_module(f"fastling.kernels.{found.name}")
        for name, value in vars(module).copy().items():
            if isinstance(value, triton.runtime.jit.KernelInterface):
                monkeypatch.setattr(module, name, recorded)
    return recorded


def step(op: Op, inputs: cases.Inputs, leaves: list[Tensor]) -> None:
    """Forward, and backward where there is one."""
    outputs = outputs_of(op, inputs)
    if leaves:
        torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_many_tokens_are_on_the_first_axis_of_the_grid(op, launches):
    """The other axes end at 65535 programs."""
    step(op, *draw(op, Shape("many tokens", 70_000, 8, 8, 2, 1, 4, 8)))
    assert launches.grids and all(len(grid) == 1 and grid[0] < 2**31 for grid in launches.grids)


class NoWaiting(TorchDispatchMode):
    """Raises where PyTorch would have to know a value on the host, or a shape that depends on values."""

    ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "bincount", "equal"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        by_mask = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
        if name in self.ASKS or by_mask:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs or {})


def forbid(monkeypatch, *methods: str) -> None:
    def refused(*_, **__):
        raise AssertionError("this waits for the device")

    for method in methods:
        monkeypatch.setattr(Tensor, method, refused)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(), lambda x: bool(x[0] > 0), lambda x: x[x > 0], lambda x: x.nonzero(),
        lambda x: x.tolist(), lambda x: range(int(x[0])), lambda x: x.cpu(), lambda x: torch.equal(x, x),
    ],
    ids=["item", "bool", "mask", "nonzero", "tolist", "int", "cpu", "equal"],
)  # fmt: skip
def test_the_check_notices_a_host_sync(wait, monkeypatch):
    forbid(monkeypatch, "tolist", "cpu", "numpy")
    x = torch.ones(3)
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        wait(x)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_no_op_syncs_with_the_device(op, launches, monkeypatch):
    """One .item() on the way, and the GPU idles while Python thinks."""
    inputs, leaves = draw(op)
    forbid(monkeypatch, "tolist", "cpu", "numpy")
    with NoWaiting():
        step(op, inputs, leaves)
        step(op, {name: x for name, x in inputs.items() if name != "weights_S"}, leaves)  # the mean


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_no_op_syncs_with_a_gpu(op):
    inputs, leaves = draw(op)
    step(op, inputs, leaves)  # compiling may wait
    try:
        torch.cuda.set_sync_debug_mode("error")  # which warns that it is new, once it is set
        step(op, inputs, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_tensors_on_another_gpu_than_the_current_one(op):
    """A kernel is launched on the current device, where those addresses mean nothing."""
    inputs, leaves = draw(op)
    moved = {
        name: x.detach().to("cuda:1").requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
        for name, x in inputs.items()
    }
    results = []
    for given in (inputs, moved):
        outputs = outputs_of(op, given)
        wanted = [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad]
        gradients = (
            torch.autograd.grad(outputs, wanted, [torch.ones_like(x) for x in outputs]) if leaves else ()
        )
        results.append([x.detach().cpu() for x in (*outputs, *gradients)])
    assert all_equal(*results)


# Sharded weights -----------------------------------------------------------------------------------


@pytest.fixture
def mesh():
    """Of this one process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_sharded_weight_is_refused(mesh):
    """Its local rows would give a loss, of another vocabulary."""
    weight, norm = (distribute_tensor(torch.ones(shape), mesh, [Shard(0)]) for shape in ((37, 8), (8,)))
    x, labels = torch.ones(3, 8), torch.zeros(3, dtype=torch.int64)
    for op, call in {
        "linear_cross_entropy": lambda: linear_cross_entropy(x, weight, labels),
        "rms_norm": lambda: rms_norm(x, norm, 1e-5),
        "add_rms_norm": lambda: add_rms_norm(x, x, norm, 1e-5),
    }.items():
        name = "weight_VH" if op == "linear_cross_entropy" else "weight"
        words = f"{op}: {name} is a DTensor, sharded over ranks; call {op} inside the forward of the module"
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="adamw_: parameter is a DTensor"):
        states = (weight, *torch.ones(3, 37, 8), torch.ones(()))
        adamw_(*states, step=1, lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    loss, _ = linear_cross_entropy(x, weight.full_tensor(), labels)
    assert loss.isfinite()
