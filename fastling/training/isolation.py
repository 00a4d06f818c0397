"""The proof, at start-up, that no document of a pack sees another (P5).

Whole training runs have been lost to attention that silently ignored document borders. So the backend that
this run will use is tested first, on the run's device and in its dtype.
"""

import torch

from fastling import ops
from fastling.errors import RunError, UserError, first_line
from fastling.model.full_memory import said_of_full_memory
from fastling.model.llama_config import LlamaConfig

LENGTHS = [37, 1, 90, 64]
CHOOSE_ANOTHER = "Choose another backend, for example --model.attention sdpa."


def prove_isolation(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Change one document and look at the others; take gradients of one and look at the others.

    Raises RunError if anything crosses a border, and UserError if the backend fails on heads of this shape.
    The state of torch's random generators stays as it was.
    """
    try:
        _look_across_borders(config, device, dtype)
    except (ValueError, RuntimeError) as error:
        if said_of_full_memory(error):
            raise
        heads = f"{config.num_attention_heads} heads of {config.head_dim}"
        what = f"fails on {heads} in {dtype}: {first_line(error)[:200]}"
        raise UserError("model.attention", what, CHOOSE_ANOTHER) from error


def _look_across_borders(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    borders = torch.tensor([0, *LENGTHS]).cumsum(0)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    inputs = [
        torch.randn(sum(LENGTHS), count, config.head_dim, generator=generator).to(device, dtype)
        for count in heads
    ]
    cu_seqlens = borders.to(device, torch.int32)

    def attend(tensors):
        return ops.attention(*tensors, cu_seqlens, max(LENGTHS), lengths=LENGTHS)

    with torch.no_grad():
        before = attend(inputs)
    for changed in range(len(LENGTHS)):
        mine = slice(borders[changed], borders[changed + 1])
        others = torch.ones(sum(LENGTHS), dtype=torch.bool, device=device)
        others[mine] = False
        altered = [tensor.clone() for tensor in inputs]
        for tensor in altered:
            tensor[mine] = -3 * tensor[mine] + 1
            tensor.requires_grad_()
        after = attend(altered)
        if not torch.equal(after[others], before[others]):
            raise _contaminated(changed, "the output of other documents changes")
        gradients = torch.autograd.grad(after[mine].float().square().sum(), altered)
        if any(gradient[others].count_nonzero() for gradient in gradients):
            raise _contaminated(changed, "other documents receive its gradient")


def _contaminated(document: int, what: str) -> RunError:
    return RunError(
        "model.attention",
        f"does not keep packed documents apart: when document {document} changes, {what}",
        f"Training with it would be wrong. {CHOOSE_ANOTHER}",
    )
