"""What is measured, the most telling first: an op at the widths of a model, with so many tokens.

Inputs are those of the tests (kernels/cases.py), except that losses are means over the supervised rows,
which every library can compute: all rows, or for the head a share of them, since a conversation is trained
on in its answers only. "Trained-like" logits have most labels far ahead, as a trained model's have.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastling.kernels.cases import MODELS, OPS, Inputs, Op, Shape, trained_like_logits
from fastling.kernels.cross_entropy import IGNORE_INDEX

LOSSES = ("cross_entropy", "linear_cross_entropy")
PASSES = ("forward", "backward", "forward+backward")
SHARES = (100, 45, 30, 60)  # percent of rows that are supervised


@dataclass(frozen=True)
class Workload:
    """One case of one op. `supervised` is a percentage of rows."""

    op_name: str
    shape: Shape
    supervised: int = 100
    trained: bool = False

    @property
    def op(self) -> Op:
        return OPS[self.op_name]

    @property
    def case(self) -> str:
        words = [f"{self.shape.name} {self.shape.tokens} tokens"]
        if self.op_name == "linear_cross_entropy":
            words.append(f"{self.supervised} % supervised")
        return ", ".join([*words, "trained-like"] if self.trained else words)

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes that are timed. Losses compute gradients in the forward if they can, so that the time of
        their backward alone means nothing."""
        if self.op_name in LOSSES:
            return ("forward+backward",)
        return PASSES if self.op.backward_bytes(self.shape, 2) else ("update",)

    @property
    def num_rows(self) -> int:
        return max(1, self.shape.tokens * self.supervised // 100)

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of this op's inputs: float32 for the optimizer, else the one given."""
        return torch.float32 if self.op_name == "adamw_" else dtype

    def bytes(self, passed: str, dtype: torch.dtype) -> int:
        """The fewest bytes that the pass has to move."""
        shape, value_bytes = self._supervised_shape(), self.dtype(dtype).itemsize
        forward, backward = (f(shape, value_bytes) for f in (self.op.forward_bytes, self.op.backward_bytes))
        return {"backward": backward, "forward+backward": forward + backward}.get(passed, forward)

    def flops(self) -> int:
        """FLOP of the op's matrix products; 0 if it has none."""
        return self.op.flops(self._supervised_shape())

    def _supervised_shape(self) -> Shape:
        return replace(self.shape, tokens=self.num_rows)

    def inputs(self, dtype: torch.dtype, device: torch.device) -> Inputs:
        """The op's arguments by name; the same random values every time."""
        torch.manual_seed(0)
        if self.op_name == "cross_entropy" and self.trained:
            inputs = trained_like_logits(self.shape, dtype, device)
        else:
            inputs = self.op.inputs(self.shape, self.dtype(dtype), device)
        if self.op_name not in LOSSES:
            return inputs
        labels_S = torch.randint(self.shape.vocab, (self.shape.tokens,), device=device)
        if self.trained and self.op_name == "cross_entropy":
            labels_S = _certain_labels(inputs)
        elif self.trained:
            inputs["hidden_SH"] = _certain_hidden(inputs, labels_S)
        unsupervised = torch.randperm(self.shape.tokens, device=device)[self.num_rows :]
        labels_S[unsupervised] = IGNORE_INDEX
        weights_S = torch.full((self.shape.tokens,), 1 / self.num_rows, device=device)
        return inputs | {"labels_S": labels_S, "weights_S": weights_S}


def _certain_labels(inputs: Inputs) -> Tensor:
    """The labels that the peaks of the logits were made for, also in the rows that cases.py leaves out."""
    return inputs["labels_S"].where(inputs["labels_S"] != IGNORE_INDEX, 0).clone()


def _certain_hidden(inputs: Inputs, labels_S: Tensor) -> Tensor:
    """Hidden states that point, some more and some less, the way of their label's row of the head."""
    hidden_SH, weight_VH = inputs["hidden_SH"].detach(), inputs["weight_VH"].detach()
    peaks_S1 = torch.rand(len(labels_S), 1, device=labels_S.device) * 25 + 3
    return (hidden_SH + peaks_S1 * weight_VH[labels_S]).to(hidden_SH.dtype).requires_grad_()


# Lists ----------------------------------------------------------------------------------------------

SHAPES = [
    replace(MODELS[name], tokens=tokens)
    for name, tokens in (
        ("llama3-8b", 8192),
        ("llama3-8b", 16384),
        ("llama3.2-1b", 8192),
        ("llama-7b", 8192),
        ("llama3.2-1b", 16384),
        ("llama-7b", 16384),
    )
]
POINTWISE = ("rms_norm", "add_rms_norm", "swiglu", "rotary_qkv", "rotary", "rms_norm of heads", "adamw_")


def plan(shapes: list[Shape]) -> list[Workload]:
    """Every op at every shape; further shares of supervised rows for the head at the first shape only."""
    workloads = []
    for shape in shapes:
        workloads += [Workload("linear_cross_entropy", shape, supervised) for supervised in SHARES[:2]]
        workloads += [Workload("cross_entropy", shape, trained=trained) for trained in (False, True)]
        workloads += [Workload(name, shape) for name in POINTWISE]
        if shape == shapes[0]:
            workloads.append(Workload("linear_cross_entropy", shape, trained=True))
            workloads += [Workload("linear_cross_entropy", shape, supervised) for supervised in SHARES[2:]]
    return workloads


def beyond(limit: int, shape: Shape) -> list[Workload]:
    """Cases whose last rows begin more than `limit` values after the first: beyond 2^31, 32 bits overflow."""
    projected = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    row_lengths = {
        "swiglu": 2 * shape.ffn,
        "cross_entropy": shape.vocab,
        "rms_norm": shape.hidden,
        "rms_norm of heads": projected,
        "rotary": shape.heads * shape.head_dim,
        "rotary_qkv": projected,
    }
    return [
        Workload(name, replace(shape, tokens=limit // row_length + 64))
        for name, row_length in row_lengths.items()
    ]
