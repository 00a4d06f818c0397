"""Who can compute an op: this project, plain PyTorch, torch.compile, and libraries that are installed.

A provider is given an op's inputs and returns a call without arguments, ready to be timed: whatever a library
needs in another form (gathered tables, chosen labels) is made before. A library is called as its
documentation says, with its defaults. One that is not installed raises ImportError when its call is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from fastling.kernels.adamw import adamw_, adamw_reference_
from fastling.kernels.cases import OPS, Inputs
from fastling.kernels.cross_entropy import IGNORE_INDEX, cross_entropy
from fastling.kernels.linear_cross_entropy import linear_cross_entropy
from fastling.kernels.rotary import rotary_qkv

Call = Callable[[], Tensor | tuple[Tensor, ...]]

OURS, EAGER, COMPILED, LIGER = "fastling", "PyTorch", "torch.compile", "Liger-Kernel"
ALL_ROWS = "fastling, all rows"
PRODUCTS = "cuBLAS products"  # no provider of the op: the three matrix products, its floor


@dataclass(frozen=True)
class Provider:
    """Who computes an op. `overwrites` names the inputs that a call changes, which are restored each time."""

    name: str
    build: Callable[[Inputs], Call]
    overwrites: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


def of(op_name: str, compiler: str = "inductor") -> list[Provider]:
    """All providers of an op, installed or not: ours first, then plain PyTorch, then the others."""
    plain = PLAIN.get(op_name, OPS[op_name].reference)
    in_place = ADAMW_STATES if op_name == "adamw_" else ()
    return [
        *(OURS_BY_OP.get(op_name) or [Provider(OURS, _calls(OPS[op_name].kernel), in_place)]),
        Provider(EAGER, _calls(plain), in_place),
        Provider(COMPILED, lambda inputs: _calls(_compiled(plain, compiler))(inputs), in_place),
        *OTHERS.get(op_name, []),
    ]


def peers() -> list[str]:
    """Names of all providers but ours and plain PyTorch, with which the others are compared."""
    every = (provider for op_name in OPS for provider in of(op_name))
    return list(dict.fromkeys(each.name for each in every if not each.is_ours and each.name != EAGER))


def _calls(function: Callable) -> Callable[[Inputs], Call]:
    return lambda inputs: partial(function, **inputs)


def _compiled(function: Callable, compiler: str) -> Callable:
    """Compile for one shape only: it must not assume that shapes vary, although in training they do."""
    return torch.compile(function, backend=compiler, dynamic=False)


# Norms ----------------------------------------------------------------------------------------------


def _torch_rms_norm(inputs: Inputs) -> Call:
    x, weight, eps = inputs["x"], inputs["weight"], inputs["eps"]
    return lambda: F.rms_norm(x, weight.shape, weight, eps)


def _liger_rms_norm(inputs: Inputs) -> Call:
    from liger_kernel.ops import LigerRMSNormFunction

    return partial(LigerRMSNormFunction.apply, inputs["x"], inputs["weight"], inputs["eps"])


def _liger_add_rms_norm(inputs: Inputs) -> Call:
    from liger_kernel.ops import LigerFusedAddRMSNormFunction

    arguments = (inputs[name] for name in ("x", "residual", "weight", "eps"))
    return partial(LigerFusedAddRMSNormFunction.apply, *arguments)


# Rotary, SwiGLU -------------------------------------------------------------------------------------


def _rotary_qkv_in_place(inputs: Inputs) -> Call:
    """As the model calls it: on the output of a linear layer, which is no leaf."""
    qkv_TMD = inputs["qkv_TMD"]
    others = {name: x for name, x in inputs.items() if name != "qkv_TMD"}
    return lambda: rotary_qkv(qkv_TMD.view_as(qkv_TMD), **others, in_place=True)


def _liger_tables(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(1, T, D) float32: gathered by position, and the same for both halves of a head."""
    tables = (inputs[name][inputs["positions_T"].long()] for name in ("cos", "sin"))
    return tuple(torch.cat((table, table), dim=-1).unsqueeze(0) for table in tables)


def _liger_rotary(inputs: Inputs) -> Call:
    from liger_kernel.ops import LigerRopeFunction

    return partial(_rotate_with, LigerRopeFunction, inputs["q_TND"], inputs["k_TKD"], _liger_tables(inputs))


def _rotate_with(rope: type, q_TND: Tensor, k_TKD: Tensor, tables: tuple) -> tuple[Tensor, Tensor]:
    """Liger's tensors are (1, heads, T, D), as transformers has them: the same memory, seen otherwise."""
    q, k = rope.apply(*(x.unsqueeze(0).transpose(1, 2) for x in (q_TND, k_TKD)), *tables)
    return q.transpose(1, 2).squeeze(0), k.transpose(1, 2).squeeze(0)


def _liger_rotary_qkv(inputs: Inputs) -> Call:
    from liger_kernel.ops import LigerRopeFunction

    tables = _liger_tables(inputs)
    sizes = [inputs["num_heads"], inputs["num_kv_heads"], inputs["num_kv_heads"]]

    def call():
        q_TND, k_TKD, v_TKD = inputs["qkv_TMD"].split(sizes, dim=1)
        return *_rotate_with(LigerRopeFunction, q_TND, k_TKD, tables), v_TKD

    return call


def _liger_swiglu(inputs: Inputs) -> Call:
    from liger_kernel.ops import LigerFusedGateUpSiLUMulFunction

    return partial(LigerFusedGateUpSiLUMulFunction.apply, inputs["gate_up_T2F"])


# Losses ---------------------------------------------------------------------------------------------


def _plain_cross_entropy(logits_SV: Tensor, labels_S: Tensor, weights_S: Tensor) -> Tensor:
    """The mean over supervised rows, which `weights_S` says too."""
    return F.cross_entropy(logits_SV.float(), labels_S, ignore_index=IGNORE_INDEX)


def _plain_linear_cross_entropy(
    hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, weights_S: Tensor
) -> Tensor:
    return _plain_cross_entropy(F.linear(hidden_SH, weight_VH), labels_S, weights_S)


def _cross_entropy(inputs: Inputs) -> Call:
    return lambda: cross_entropy(**inputs).loss


def _liger_cross_entropy(inputs: Inputs) -> Call:
    from liger_kernel.ops import LigerCrossEntropyFunction

    logits_SV, labels_S = inputs["logits_SV"], inputs["labels_S"]
    return lambda: LigerCrossEntropyFunction.apply(logits_SV, labels_S, None)[0]


_head = itemgetter("hidden_SH", "weight_VH", "labels_S", "weights_S")


def _head_of_supervised_rows(inputs: Inputs) -> Call:
    """As the model calls it: the supervised rows are gathered first, within the time that is measured."""
    hidden_SH, weight_VH, labels_S, weights_S = _head(inputs)
    rows = (labels_S != IGNORE_INDEX).nonzero().squeeze(1)
    of_rows = (weight_VH, labels_S[rows], weights_S[rows])
    if len(rows) == len(labels_S):
        return lambda: linear_cross_entropy(hidden_SH, *of_rows)[0]
    return lambda: linear_cross_entropy(hidden_SH.index_select(0, rows), *of_rows)[0]


def _head_of_all_rows(inputs: Inputs) -> Call:
    return lambda: linear_cross_entropy(**inputs)[0]


def _liger_head(inputs: Inputs) -> Call:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    arguments = _head(inputs)[:3]
    return lambda: LigerFusedLinearCrossEntropyFunction.apply(*arguments)[0]


def _cut_cross_entropy(inputs: Inputs) -> Call:
    from cut_cross_entropy import linear_cross_entropy as cut

    return partial(cut, *_head(inputs)[:3])


def _torch_head(inputs: Inputs) -> Call:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise ImportError(f"torch {torch.__version__} has none that works in chunks")
    options = torch.nn.LinearCrossEntropyOptions()
    return partial(F.linear_cross_entropy, *_head(inputs)[:3], options=options)


def products(inputs: Inputs) -> Call:
    """The head's three matrix products on the supervised rows, with nothing between them."""
    hidden_SH, weight_VH, labels_S, _ = _head(inputs)
    hidden_SH = hidden_SH.detach()[labels_S != IGNORE_INDEX]
    weight_VH = weight_VH.detach()
    logits_SV = hidden_SH.new_empty(len(hidden_SH), len(weight_VH))
    outputs = torch.empty_like(hidden_SH), torch.empty_like(weight_VH)

    def call():
        torch.mm(hidden_SH, weight_VH.t(), out=logits_SV)
        torch.mm(logits_SV, weight_VH, out=outputs[0])
        torch.mm(logits_SV.t(), hidden_SH, out=outputs[1])

    return call


# Optimizer ------------------------------------------------------------------------------------------

ADAMW_STATES = ("parameter", "exp_avg", "exp_avg_sq")


def _updating(function: Callable) -> Callable:
    def update(**inputs):
        function(**inputs)
        return tuple(inputs[name] for name in ADAMW_STATES)

    return update


def _torch_adamw(inputs: Inputs, *, scale_in_update: bool) -> Call:
    """The one kernel of torch.optim.AdamW(fused=True); clipping in it, or as a pass before it."""
    lists = [[inputs[name]] for name in ("parameter", "gradient", "exp_avg", "exp_avg_sq")]
    step = torch.tensor(float(inputs["step"]), device=inputs["parameter"].device)
    numbers = {name: inputs[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay")}
    numbers |= {"amsgrad": False, "maximize": False}
    scale = inputs["scale"] if scale_in_update else None

    def call():
        if not scale_in_update:
            inputs["gradient"].div_(inputs["scale"])
        torch._fused_adamw_(*lists, [], [step], **numbers, grad_scale=scale, found_inf=None)
        return tuple(inputs[name] for name in ADAMW_STATES)

    return call


PLAIN = {
    "cross_entropy": _plain_cross_entropy,
    "linear_cross_entropy": _plain_linear_cross_entropy,
    "adamw_": _updating(adamw_reference_),
}
OURS_BY_OP = {
    "rotary_qkv": [
        Provider(OURS, _rotary_qkv_in_place, ("qkv_TMD",)),
        Provider("fastling, out of place", _calls(rotary_qkv)),
    ],
    "cross_entropy": [Provider(OURS, _cross_entropy)],
    "linear_cross_entropy": [Provider(OURS, _head_of_supervised_rows), Provider(ALL_ROWS, _head_of_all_rows)],
    "adamw_": [Provider(OURS, _calls(_updating(adamw_)), ADAMW_STATES)],
}
TORCH_RMS_NORM = Provider("F.rms_norm", _torch_rms_norm)
LIGER_RMS_NORM = Provider(LIGER, _liger_rms_norm)
OTHERS = {
    "rms_norm": [TORCH_RMS_NORM, LIGER_RMS_NORM],
    "rms_norm of heads": [TORCH_RMS_NORM, LIGER_RMS_NORM],
    "add_rms_norm": [Provider(LIGER, _liger_add_rms_norm)],
    "rotary": [Provider(LIGER, _liger_rotary, ("q_TND", "k_TKD"))],
    "rotary_qkv": [Provider(LIGER, _liger_rotary_qkv)],
    "swiglu": [Provider(LIGER, _liger_swiglu)],
    "cross_entropy": [Provider(LIGER, _liger_cross_entropy, ("logits_SV",))],
    "linear_cross_entropy": [
        Provider(LIGER, _liger_head),
        Provider("cut-cross-entropy", _cut_cross_entropy),
        Provider("F.linear_cross_entropy", _torch_head),
    ],
    "adamw_": [
        Provider("torch fused", partial(_torch_adamw, scale_in_update=True), (*ADAMW_STATES, "gradient")),
        Provider(
            "torch fused, clip apart",
            partial(_torch_adamw, scale_in_update=False),
            (*ADAMW_STATES, "gradient"),
        ),
    ],
}
