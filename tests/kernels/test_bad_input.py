"""What the ops refuse, and in which words: op, argument, what it takes, and what came.

Nothing is copied or converted on the quiet: what a kernel cannot read as it lies is refused.
"""

import re

import pytest
import torch
from torch import Tensor

from fastling.kernels.adamw import adamw_
from fastling.kernels.attention import attention
from fastling.kernels.cross_entropy import cross_entropy
from fastling.kernels.linear_cross_entropy import chunked_linear_cross_entropy, linear_cross_entropy
from fastling.kernels.rms_norm import LONGEST_ROW, add_rms_norm, rms_norm, rms_norm_reference
from fastling.kernels.rotary import rotary, rotary_qkv, rotary_reference
from fastling.kernels.swiglu import swiglu, swiglu_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = DEVICE) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def elsewhere(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return zeros(*shape, dtype=dtype, device="meta")


def doubles(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.float64)


def halves(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.bfloat16)


def integers(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.int64)


def int32s(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.int32)


def transposed(*shape: int) -> Tensor:
    """Of that shape, with its last dimension not contiguous."""
    return zeros(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)


# For each op: arguments that it takes, and what each change of one of them brings.
NORM = {"x": zeros(3, 4), "weight": zeros(4), "eps": 1e-5}
ADD_NORM = NORM | {"residual": zeros(3, 4)}
TABLES = {"cos": zeros(9, 2), "sin": zeros(9, 2), "positions_T": int32s(3)}
ROTARY = {"q_TND": zeros(3, 2, 4), "k_TKD": zeros(3, 1, 4)} | TABLES
ROTARY_QKV = {"qkv_TMD": zeros(3, 4, 4), "num_heads": 2, "num_kv_heads": 1} | TABLES
LABELS = {"labels_S": integers(3), "weights_S": zeros(3)}
CROSS_ENTROPY = {"logits_SV": zeros(3, 9)} | LABELS
HEAD = {"hidden_SH": zeros(3, 4), "weight_VH": zeros(9, 4)} | LABELS
MOMENTS = {
    "parameter": zeros(3, 4),
    "gradient": zeros(3, 4),
    "exp_avg": zeros(3, 4),
    "exp_avg_sq": zeros(3, 4),
}
NUMBERS = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
ADAMW = MOMENTS | {"scale": torch.ones((), device=DEVICE)} | NUMBERS
ATTENTION = {
    "q_TND": zeros(3, 2, 4), "k_TKD": zeros(3, 1, 4), "v_TKD": zeros(3, 1, 4),
    "cu_seqlens": torch.tensor([0, 3], dtype=torch.int32, device=DEVICE), "max_seqlen": 3, "backend": "sdpa",
}  # fmt: skip
FLOATS = "torch.float32 or torch.bfloat16 or torch.float16"
HERE = f"on {zeros().device}"

REFUSED = [
    (rms_norm, NORM, {"x": doubles(3, 4)}, f"x must be {FLOATS}: torch.float64"),
    (rms_norm, NORM, {"x": integers(3, 4)}, f"x must be {FLOATS}: torch.int64"),
    (rms_norm, NORM, {"weight": doubles(4)}, f"weight must be {FLOATS}: torch.float64"),
    (rms_norm, NORM, {"weight": zeros(5)}, "weight must be (4,): (5,)"),
    (rms_norm, NORM, {"weight": zeros(1, 4)}, "weight must be (4,): (1, 4)"),
    (rms_norm, NORM, {"weight": elsewhere(4)}, f"weight must be {HERE}: meta"),
    (rms_norm, NORM, {"weight": zeros(8)[::2]}, "weight must be contiguous in its last dimension: strides (2,)"),
    (rms_norm, NORM, {"x": transposed(3, 4)}, "x must be contiguous in its last dimension: strides (1, 3)"),
    (
        rms_norm, NORM, {"x": zeros(2, 3, 2, 8)[..., :4]},
        "x must be contiguous, or have 2 or 3 dimensions: strides (48, 16, 8, 1)",
    ),
    (
        rms_norm, NORM, {"x": zeros(1, LONGEST_ROW + 1), "weight": zeros(LONGEST_ROW + 1)},
        f"x must have rows of at most {LONGEST_ROW} values: (1, {LONGEST_ROW + 1})",
    ),
    (add_rms_norm, ADD_NORM, {"residual": zeros(4, 3)}, "residual must be (3, 4): (4, 3)"),
    (add_rms_norm, ADD_NORM, {"residual": zeros(4)}, "residual must be (3, 4): (4,)"),
    (add_rms_norm, ADD_NORM, {"residual": halves(3, 4)}, "residual must be torch.float32: torch.bfloat16"),
    (add_rms_norm, ADD_NORM, {"residual": elsewhere(3, 4)}, f"residual must be {HERE}: meta"),
    (add_rms_norm, ADD_NORM, {"residual": zeros(3, 8)[:, :4]}, "residual must be contiguous: strides (8, 1)"),
    (add_rms_norm, ADD_NORM, {"x": zeros(3, 8)[:, :4]}, "x must be contiguous: strides (8, 1)"),
    (add_rms_norm, ADD_NORM, {"x": doubles(3, 4)}, f"x must be {FLOATS}: torch.float64"),
    (add_rms_norm, ADD_NORM, {"weight": zeros(3)}, "weight must be (4,): (3,)"),
    (rotary, ROTARY, {"q_TND": zeros(3, 8)}, "q_TND must have 3 dimensions: (3, 8)"),
    (rotary, ROTARY, {"q_TND": zeros(3, 2, 5)}, "q_TND must have an even head dimension: (3, 2, 5)"),
    (rotary, ROTARY, {"q_TND": doubles(3, 2, 4)}, f"q_TND must be {FLOATS}: torch.float64"),
    (rotary, ROTARY, {"k_TKD": halves(3, 1, 4)}, "k_TKD must be torch.float32: torch.bfloat16"),
    (
        rotary, ROTARY, {"k_TKD": transposed(3, 2, 4)},
        "k_TKD must be contiguous in its last dimension: strides (8, 1, 2)",
    ),
    (rotary, ROTARY, {"cos": halves(9, 2)}, "cos must be torch.float32: torch.bfloat16"),
    (rotary, ROTARY, {"sin": doubles(9, 2)}, "sin must be torch.float32: torch.float64"),
    (rotary, ROTARY, {"cos": zeros(9, 4)}, "cos must be (9, 2): (9, 4)"),
    (rotary, ROTARY, {"sin": zeros(8, 2)}, "sin must be (9, 2): (8, 2)"),
    (rotary, ROTARY, {"sin": elsewhere(9, 2)}, f"sin must be {HERE}: meta"),
    (rotary, ROTARY, {"cos": zeros(9, 4)[:, :2]}, "cos must be contiguous: strides (4, 1)"),
    (rotary, ROTARY, {"positions_T": int32s(4)}, "positions_T must be (3,): (4,)"),
    (rotary, ROTARY, {"positions_T": zeros(3)}, "positions_T must be torch.int32 or torch.int64: torch.float32"),
    (rotary, ROTARY, {"positions_T": int32s(6)[::2]}, "positions_T must be contiguous: strides (2,)"),
    (
        rotary, ROTARY, {"positions_T": elsewhere(3, dtype=torch.int32)},
        f"positions_T must be {HERE}: meta",
    ),
    (rotary_qkv, ROTARY_QKV, {"qkv_TMD": zeros(3, 16)}, "qkv_TMD must have 3 dimensions: (3, 16)"),
    (rotary_qkv, ROTARY_QKV, {"num_heads": 3}, "qkv_TMD must be (3, 5, 4): (3, 4, 4)"),
    (rotary_qkv, ROTARY_QKV, {"qkv_TMD": doubles(3, 4, 4)}, f"qkv_TMD must be {FLOATS}: torch.float64"),
    (
        rotary_qkv, ROTARY_QKV, {"qkv_TMD": transposed(3, 4, 4)},
        "qkv_TMD must be contiguous in its last dimension: strides (16, 1, 4)",
    ),
    (swiglu, {}, {"gate_up_T2F": zeros(3, 5)}, "gate_up_T2F must have an even last dimension: (3, 5)"),
    (swiglu, {}, {"gate_up_T2F": zeros(2, 3, 4)}, "gate_up_T2F must have 2 dimensions: (2, 3, 4)"),
    (swiglu, {}, {"gate_up_T2F": doubles(3, 4)}, f"gate_up_T2F must be {FLOATS}: torch.float64"),
    (
        swiglu, {}, {"gate_up_T2F": transposed(3, 4)},
        "gate_up_T2F must be contiguous in its last dimension: strides (1, 3)",
    ),
    (cross_entropy, CROSS_ENTROPY, {"logits_SV": zeros(9)}, "logits_SV must have 2 dimensions: (9,)"),
    (cross_entropy, CROSS_ENTROPY, {"logits_SV": doubles(3, 9)}, f"logits_SV must be {FLOATS}: torch.float64"),
    (
        cross_entropy, CROSS_ENTROPY, {"logits_SV": transposed(3, 9)},
        "logits_SV must be contiguous in its last dimension: strides (1, 3)",
    ),
    (cross_entropy, CROSS_ENTROPY, {"labels_S": integers(4)}, "labels_S must be (3,): (4,)"),
    (cross_entropy, CROSS_ENTROPY, {"labels_S": int32s(3)}, "labels_S must be torch.int64: torch.int32"),
    (
        cross_entropy, CROSS_ENTROPY, {"labels_S": integers(6)[::2]},
        "labels_S must be contiguous in its last dimension: strides (2,)",
    ),
    (
        cross_entropy, CROSS_ENTROPY, {"labels_S": elsewhere(3, dtype=torch.int64)},
        f"labels_S must be {HERE}: meta",
    ),
    (cross_entropy, CROSS_ENTROPY, {"weights_S": halves(3)}, "weights_S must be torch.float32: torch.bfloat16"),
    (cross_entropy, CROSS_ENTROPY, {"weights_S": zeros(1)}, "weights_S must be (3,): (1,)"),
    (cross_entropy, CROSS_ENTROPY, {"weights_S": elsewhere(3)}, f"weights_S must be {HERE}: meta"),
    (linear_cross_entropy, HEAD, {"hidden_SH": zeros(1, 3, 4)}, "hidden_SH must have 2 dimensions: (1, 3, 4)"),
    (linear_cross_entropy, HEAD, {"weight_VH": zeros(9, 5)}, "weight_VH must be (9, 4): (9, 5)"),
    (linear_cross_entropy, HEAD, {"weight_VH": halves(9, 4)}, "weight_VH must be torch.float32: torch.bfloat16"),
    (linear_cross_entropy, HEAD, {"weight_VH": elsewhere(9, 4)}, f"weight_VH must be {HERE}: meta"),
    (
        linear_cross_entropy, HEAD, {"hidden_SH": doubles(3, 4), "weight_VH": doubles(9, 4)},
        f"hidden_SH must be {FLOATS}: torch.float64",
    ),
    (linear_cross_entropy, HEAD, {"labels_S": int32s(3)}, "labels_S must be torch.int64: torch.int32"),
    (linear_cross_entropy, HEAD, {"labels_S": integers(2)}, "labels_S must be (3,): (2,)"),
    (linear_cross_entropy, HEAD, {"weights_S": doubles(3)}, "weights_S must be torch.float32: torch.float64"),
    (adamw_, ADAMW, {"parameter": halves(3, 4)}, "parameter must be torch.float32: torch.bfloat16"),
    (adamw_, ADAMW, {"exp_avg": doubles(3, 4)}, "exp_avg must be torch.float32: torch.float64"),
    (adamw_, ADAMW, {"exp_avg_sq": zeros(4, 3)}, "exp_avg_sq must be (3, 4): (4, 3)"),
    (adamw_, ADAMW, {"gradient": zeros(4, 3)}, "gradient must be (3, 4): (4, 3)"),
    (adamw_, ADAMW, {"gradient": doubles(3, 4)}, f"gradient must be {FLOATS}: torch.float64"),
    (adamw_, ADAMW, {"gradient": transposed(3, 4)}, "gradient must be contiguous: strides (1, 3)"),
    (adamw_, ADAMW, {"parameter": transposed(3, 4)}, "parameter must be contiguous: strides (1, 3)"),
    (adamw_, ADAMW, {"exp_avg": elsewhere(3, 4)}, f"exp_avg must be {HERE}: meta"),
    (adamw_, ADAMW, {"scale": zeros(1)}, "scale must be (): (1,)"),
    (adamw_, ADAMW, {"scale": doubles()}, "scale must be torch.float32: torch.float64"),
    (attention, ATTENTION, {"q_TND": zeros(3, 8)}, "q_TND must have 3 dimensions: (3, 8)"),
    (attention, ATTENTION, {"k_TKD": zeros(4, 1, 4)}, "k_TKD must be (3, 1, 4): (4, 1, 4)"),
    (attention, ATTENTION, {"v_TKD": zeros(3, 1, 6)}, "v_TKD must be (3, 1, 4): (3, 1, 6)"),
    (attention, ATTENTION, {"v_TKD": halves(3, 1, 4)}, "v_TKD must be torch.float32: torch.bfloat16"),
    (attention, ATTENTION, {"k_TKD": elsewhere(3, 1, 4)}, f"k_TKD must be {HERE}: meta"),
    (attention, ATTENTION, {"cu_seqlens": integers(2)}, "cu_seqlens must be torch.int32: torch.int64"),
    (attention, ATTENTION, {"cu_seqlens": int32s(1, 2)}, "cu_seqlens must have 1 dimensions: (1, 2)"),
    (attention, ATTENTION, {"k_TKD": zeros(3, 0, 4), "v_TKD": zeros(3, 0, 4)}, "2 heads over 0 kv heads"),
    (
        attention, ATTENTION, {"backend": "flash"},
        "backend must be one of flash3, flash2, torch, xformers, tiled, sdpa: 'flash'",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0].__name__}: {case[3]}")
def test_unreadable_inputs_are_refused_by_name(case):
    op, arguments, changes, message = case
    with pytest.raises(ValueError) as refused:
        op(**arguments | changes)
    assert str(refused.value) == f"{op.__name__}: {message}"


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "reference"])
@pytest.mark.parametrize("position", [-1, 9])
@pytest.mark.skipif(DEVICE.type == "cuda", reason="nothing looks at values there")
def test_a_negative_position_does_not_index_from_the_end_of_the_tables(position, tiled):
    positions = torch.tensor([0, 1, position], dtype=torch.int32)
    with pytest.raises(IndexError):
        if tiled:
            rotary(**ROTARY | {"positions_T": positions}, tiled=True)
        else:
            rotary_reference(zeros(3, 2, 4), TABLES["cos"], TABLES["sin"], positions)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rms_norm(integers(3, 4), zeros(4), 1e-5, tiled=True),
        lambda: rms_norm_reference(integers(3, 4), zeros(4), 1e-5),
        lambda: add_rms_norm(integers(3, 4), integers(3, 4), zeros(4), 1e-5, tiled=True),
        lambda: swiglu(integers(3, 4), tiled=True),
        lambda: swiglu_reference(integers(3, 4)),
        lambda: rotary(**ROTARY | {"q_TND": integers(3, 2, 4)}, tiled=True),
        lambda: rotary_qkv(**ROTARY_QKV | {"qkv_TMD": integers(3, 4, 4)}, tiled=True),
    ],
)
def test_integer_inputs_are_refused_by_the_plain_versions_too(call):
    """Which would cut their results to whole numbers."""
    with pytest.raises(ValueError, match=f"must be {FLOATS}: torch.int64"):
        call()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: rms_norm(zeros(3, 4), elsewhere(4), 1e-5, tiled=True), "weight"),
        (lambda: rotary(**ROTARY | {"cos": elsewhere(9, 2)}, tiled=True), "cos"),
        (lambda: rotary_qkv(**ROTARY_QKV | {"sin": elsewhere(9, 2)}, tiled=True), "sin"),
    ],
)
def test_tensors_on_another_device_are_refused_by_the_plain_versions_too(call, name):
    with pytest.raises(ValueError, match=f"{name} must be {HERE}: meta"):
        call()


def test_keys_on_another_device_are_named():
    with pytest.raises(ValueError, match=re.escape(f"rotary: k_TKD must be {HERE}: meta")):
        rotary(**ROTARY | {"k_TKD": elsewhere(3, 1, 4)})


@pytest.mark.parametrize(
    ("op", "arguments"),
    [(rms_norm, NORM | {"x": zeros()}), (rotary, ROTARY | {"cos": zeros()})],
    ids=["rms_norm", "rotary"],
)
def test_tensors_without_dimensions_are_refused_in_words(op, arguments):
    with pytest.raises(ValueError, match=rf"{op.__name__}: (x|cos) must .*: \(\)"):
        op(**arguments)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (rms_norm, NORM), (add_rms_norm, ADD_NORM), (rotary, ROTARY), (rotary_qkv, ROTARY_QKV),
        (swiglu, {"gate_up_T2F": zeros(3, 4)}), (cross_entropy, CROSS_ENTROPY), (linear_cross_entropy, HEAD),
        (adamw_, {name: x.clone() if isinstance(x, Tensor) else x for name, x in ADAMW.items()}),
        (attention, ATTENTION),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_the_valid_arguments_of_the_table_are_accepted(op, arguments):
    """Else the table would prove nothing."""
    op(**arguments)


def test_the_chunked_loss_refuses_the_same_inputs_in_the_same_words():
    for op, arguments, changes, message in REFUSED:
        if op is linear_cross_entropy:
            with pytest.raises(ValueError, match=re.escape(f"linear_cross_entropy: {message}")):
                chunked_linear_cross_entropy(**arguments | changes)


@pytest.mark.parametrize("loss_of", [linear_cross_entropy, chunked_linear_cross_entropy])
def test_autocast_beside_float32_weights_is_refused_in_words(loss_of):
    """The head's input comes out of autocast in half precision, its weight is a float32 parameter."""
    with torch.autocast(DEVICE.type, torch.bfloat16):
        hidden = zeros(3, 4) @ zeros(4, 4)
        with pytest.raises(ValueError, match="weight_VH must be torch.bfloat16: torch.float32"):
            loss_of(**HEAD | {"hidden_SH": hidden})
