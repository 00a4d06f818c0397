"""`fastling verify`: checks on this machine that the promises about numbers hold for a config.

    fastling verify --config configs/bayling-7b.yaml     (or under torchrun, to check several processes)

P5: no document of a pack sees another. P7: a step's gradient is that of one conversation at a time, in plain
PyTorch. P8: every operation is about as close to its formula as PyTorch's own. Each is checked on this
machine's device, with the config's dtype, widths, kernels and attention, on at most two layers of the model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastling import ops
from fastling.config import Config, build_parser, parse
from fastling.errors import RunError, leave, run_program
from fastling.kernels import accuracy
from fastling.kernels.cases import OPS, Shape
from fastling.model.llama_config import LlamaConfig
from fastling.prepare import prepare_data
from fastling.terminal import make_console, print_result
from fastling.training.build import model_config
from fastling.training.isolation import prove_isolation
from fastling.training.parallel import World, compute_dtype, open_world
from fastling.training.plain_gradient import Distance, compare_gradients

TOKENS = 256
"""Rows on which each operation is tried."""
TIMES_PLAIN = 2.0  # P8: the error may be this many times PyTorch's own
SMALLEST_ALLOWED = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
"""Errors of a few roundings, which are always allowed: below them, ratios of errors are chance."""


@dataclass(frozen=True)
class Check:
    """The check of one promise on one subject. `error` is ||found - expected|| / ||expected||."""

    promise: str
    subject: str
    error: float
    allowed: float
    detail: str

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed


def check_isolation(shape: LlamaConfig, choice: ops.Choice, world: World, dtype: torch.dtype) -> Check:
    subject = f"attention: {choice.implementation}"
    try:
        prove_isolation(shape, world.device, dtype)
    except RunError as error:
        return Check("P5", subject, math.inf, 0.0, error.what)
    return Check("P5", subject, 0.0, 0.0, "outputs and gradients of other documents do not move at all")


def check_gradient(distances: Sequence[Distance]) -> Iterator[Check]:
    """Yield the check of the loss, and that of the parameter whose gradient has the largest share of the
    error that it is allowed."""
    loss, *parameters = distances
    yield Check("P7", "loss of a step", loss.error, loss.allowed, "against one conversation at a time")
    worst = max(parameters, key=lambda each: each.error / max(each.allowed, 1e-30))
    detail = f"the worst of {len(parameters)} parameters: {worst.name}"
    yield Check("P7", "gradient of a step", worst.error, worst.allowed, detail)


def check_operations(shape: LlamaConfig, world: World, dtype: torch.dtype) -> Iterator[Check]:
    """Yield a check of each operation that the model calls, forward and backward, against float64."""
    rotary = "rotary" if shape.qk_norm else "rotary_qkv"
    doors = {name: getattr(ops, name) for name in ("rms_norm", "add_rms_norm", rotary, "swiglu")}
    doors["linear_cross_entropy"] = lambda **inputs: ops.linear_cross_entropy(**inputs)[0]
    if shape.qk_norm:
        doors["rms_norm of heads"] = ops.rms_norm
    widths = Shape(
        "config",
        TOKENS,
        shape.hidden_size,
        shape.intermediate_size,
        shape.num_attention_heads,
        shape.num_key_value_heads,
        shape.head_dim,
        shape.vocab_size,
    )
    for name, door in doors.items():
        op = replace(OPS[name], kernel=_with_copies(door))
        rows = accuracy.table([op], widths, [dtype], world.device)
        allowed = [max(TIMES_PLAIN * row["plain_error"], SMALLEST_ALLOWED[dtype]) for row in rows]
        worst = max(range(len(rows)), key=lambda i: rows[i]["kernel_error"] / allowed[i])
        row = rows[worst]
        detail = f"the worst of {len(rows)} outputs and gradients: {row['part']}"
        yield Check("P8", name, row["kernel_error"], allowed[worst], detail)


def _with_copies(door: Callable) -> Callable:
    """The operation on copies of its inputs: some overwrite them, which autograd forbids for leaves."""

    def call(**inputs):
        copied = {
            name: x.clone() if isinstance(x, torch.Tensor) and x.requires_grad else x
            for name, x in inputs.items()
        }
        return door(**copied)

    return call


def verify(config: Config, world: World) -> list[Check]:
    """All checks, on rank 0; other ranks take part in them and get an empty list.

    Raises UserError for a config that cannot be trained.
    """
    prepared = prepare_data(config)
    world.from_main(0)  # wait for nodes that still prepare their data, perhaps for hours
    shape, dtype = model_config(config, prepared.encoder), compute_dtype(config)
    choices = ops.configure(config.model.kernels, config.model.attention, device=world.device, dtype=dtype)
    (attention,) = (choice for choice in choices if choice.op == "attention")
    isolation = check_isolation(shape, attention, world, dtype)
    distances = compare_gradients(config, shape, prepared.training, prepared.plan, world)
    if not world.is_main:
        return []
    return [isolation, *check_gradient(distances), *check_operations(shape, world, dtype)]


def print_checks(checks: Sequence[Check], config: Config, world: World, console: Console) -> None:
    table = Table("promise", "of", "error", "allowed", "", "", box=None, pad_edge=False)
    for check in checks:
        result = Text("holds", "green") if check.passed else Text("BROKEN", "bold red")
        numbers = (f"{check.error:.1e}", f"{check.allowed:.1e}")
        table.add_row(check.promise, check.subject, *numbers, result, check.detail)
    console.print(table)
    broken = sum(not check.passed for check in checks)
    verdict = (f"{broken} of {len(checks)} broken", "bold red") if broken else "all hold"
    where = f": {world.size} process(es) on {world.device.type}, {config.train.precision}"
    console.print(Text.assemble(verdict, where))


def main(arguments: Sequence[str]) -> int:
    description = (
        "Check on this machine what a run of this config relies on. No document of a pack sees another (P5); "
        "a step's gradient is that of one conversation at a time (P7); every operation is as exact as "
        "PyTorch's own (P8). Exit status 1 if any check fails. Under torchrun it checks several processes."
    )
    parser = build_parser("fastling verify", description)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    config, options = parse(parser, arguments)
    with open_world(config) as world:
        checks = verify(config, world)
        broken = world.from_main(sum(not check.passed for check in checks))
        if world.is_main:
            print_checks(checks, config, world, make_console())
    if checks and options.json:
        rows = [{**asdict(check), "passed": check.passed} for check in checks]
        for row in rows:
            row["error"] = row["error"] if math.isfinite(row["error"]) else None  # JSON has no infinity
        print_result({"passed": not broken, "checks": rows})
    return 1 if broken else 0


if __name__ == "__main__":
    leave(run_program(main))
