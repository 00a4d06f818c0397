"""Every op of kernels/cases.py against its formula in float64: results, and every gradient.

A kernel may be as wrong as PyTorch's plain version of it, and that one may be as wrong as its type rounds.
Run on a GPU, the same tests run the compiled kernels.
"""

import pytest
import torch
from conftest import slow_without_gpu
from torch import Tensor

from fastling.kernels import cases
from fastling.kernels.cases import OPS, RAGGED, Op, Shape

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# More heads, columns and vocabulary than one program holds at a time.
TILED = Shape("several tiles", 3, 24, 4200, 20, 9, 130, 20011)
NO_TOKENS = Shape("no tokens", 0, 24, 20, 2, 1, 6, 37)
# How wrong a plain version may be: an upper bound, so that two wrong formulas cannot agree.
PLAIN_ERROR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def leaves(inputs: cases.Inputs) -> dict[str, Tensor]:
    return {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}


def outputs_of(function, inputs: cases.Inputs) -> tuple[Tensor, ...]:
    outputs = function(**inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def differentiated(function, inputs: cases.Inputs, directions: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, and the gradient of each leaf when the outputs' gradients are `directions`."""
    outputs = outputs_of(function, inputs)
    results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    if wanted := leaves(inputs):
        directions = [x.to(output.dtype) for x, output in zip(directions, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, list(wanted.values()), directions)
        results |= {f"gradient of {name}": x for name, x in zip(wanted, gradients, strict=True)}
    return results


def in_float64(inputs: cases.Inputs) -> cases.Inputs:
    return {
        name: x.detach().double().requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for name, x in inputs.items()
    }


def error(ours: Tensor, truth: Tensor) -> float:
    """Relative, of the whole tensor; NaN where anything is."""
    smallest = torch.finfo(torch.float64).tiny
    return ((ours.double() - truth).norm() / truth.norm().clamp(min=smallest)).item()


def accepted(plain_error: float, dtype: torch.dtype) -> float:
    """How wrong a kernel's result may be where the plain version's is wrong by `plain_error`."""
    if dtype == torch.float32:
        return max(2 * plain_error, 3e-7)
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        return 1e-2  # Triton's interpreter cuts the digits off where it should round
    return 1.5 * plain_error + torch.finfo(dtype).eps / 4  # the plain one may be near by luck


def draw_directions(op: Op, inputs: cases.Inputs) -> list[Tensor]:
    """Gradients, one for each output: random ones, but of a loss a power of two.

    By any other number, what was formed in forward is rounded a second time: of a few rows that may be twice
    the error, as luck has it, and a GPU draws other numbers.
    """
    outputs = outputs_of(op.reference, inputs)
    return [torch.randn_like(x) if x.dim() else torch.full_like(x, -0.5) for x in outputs]


def test_memory_is_poisoned():
    """The tests below prove that everything is written only if what is not written is NaN."""
    for empty in (torch.empty(9, device=DEVICE), torch.ones(1, device=DEVICE).new_empty((3, 3))):
        assert empty.isnan().all()


@slow_without_gpu
@each_dtype
@pytest.mark.parametrize("shape", [*RAGGED, TILED], ids=lambda shape: shape.name)
@each_op
@pytest.mark.usefixtures("either_version")
def test_a_kernel_is_as_exact_as_the_plain_version(op, shape, dtype):
    inputs = op.inputs(shape, dtype, DEVICE)
    directions = draw_directions(op, inputs)
    kernel, plain = (differentiated(f, inputs, directions) for f in (op.kernel, op.reference))
    for name, truth in differentiated(op.exact, in_float64(inputs), directions).items():
        ours, theirs = kernel[name], plain[name]
        assert ours.dtype == theirs.dtype and ours.shape == truth.shape, name
        assert error(theirs, truth) <= PLAIN_ERROR[dtype], name
        assert error(ours, truth) <= accepted(error(theirs, truth), ours.dtype), name


@slow_without_gpu
@each_dtype
@pytest.mark.parametrize("shape", [*RAGGED[1:], TILED], ids=lambda shape: shape.name)
def test_cross_entropy_of_likely_labels_is_as_exact_as_its_dtype(shape, dtype):
    """As in a trained model. The plain version is not: near p = 1 its gradient is p - 1."""
    # Drawn on the CPU, so that it is the same few rows everywhere: of others, luck may triple the loss's error.
    drawn = cases.trained_like_logits(shape, dtype, torch.device("cpu"))
    inputs = {name: x.detach().to(DEVICE).requires_grad_(x.requires_grad) for name, x in drawn.items()}
    op = OPS["cross_entropy"]
    directions = draw_directions(op, inputs)
    kernel = differentiated(op.kernel, inputs, directions)
    for name, truth in differentiated(op.exact, in_float64(inputs), directions).items():
        rounded = truth.to(kernel[name].dtype)
        assert error(kernel[name], truth) <= accepted(error(rounded, truth), rounded.dtype), name


@each_op
@pytest.mark.usefixtures("either_version")
def test_zero_tokens_give_empty_results_and_zero_weight_gradients(op):
    inputs = op.inputs(NO_TOKENS, torch.float32, DEVICE)
    directions = draw_directions(op, inputs)
    kernel, plain = (differentiated(f, inputs, directions) for f in (op.kernel, op.reference))
    for name, ours in kernel.items():
        assert ours.shape == plain[name].shape, name
        assert torch.equal(ours, torch.zeros_like(ours)), name


@slow_without_gpu
@each_op
def test_the_same_inputs_give_the_same_bits(op):
    inputs = op.inputs(RAGGED[2], torch.float32, DEVICE)
    directions = draw_directions(op, inputs)
    first, second = (differentiated(op.kernel, inputs, directions) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
