"""`fastling prepare`: tokenize, prove and pack the data of a config, and print the ledger.

What it builds is kept: training with the same config starts from it at once.
"""

import errno
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from fastling import files
from fastling.config import Config, Source, build_parser, expand, parse, resolve
from fastling.data.encoding import Encoder
from fastling.data.packing import Plan, make_plan
from fastling.data.part import Part
from fastling.data.store import Recipe, SourceFile, Store, default_store, open_store
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.data.tokenizer_export import check_doubtful_kinds
from fastling.data_checks import (
    check_held_out_names,
    check_model,
    check_parts,
    check_plan_size,
    check_tokenizer,
    check_weights,
    other_form_in_words,
)
from fastling.errors import UserError, run_program
from fastling.json_files import json_line, json_text, read_json_if_there
from fastling.terminal import make_console, make_progress, print_result

MANIFEST = "manifest.json"
"""Name of the file in a run folder that says what the run began with (training/record.py)."""

NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)
"""Errors of a folder in which nothing can be made: no permission, or a file or dangling link in its place."""
FEW_STEPS = 20
"""With fewer steps, a run measured in epochs gets a warning: its data is small for its batch."""


@dataclass(frozen=True)
class Prepared:
    """The data of a config, ready to be trained on."""

    encoder: Encoder
    training: Store
    validation: Store | None
    plan: Plan
    total_steps: int
    """Optimizer steps; the last may have fewer packs than the others."""

    @property
    def stores(self) -> list[Store]:
        """Of training data and, if there is any, of held-out data."""
        return [self.training, *([self.validation] if self.validation else [])]

    @cached_property
    def copies(self) -> dict[str, int]:
        """Source of training data -> how many of its conversations are copies of earlier ones."""
        return self.training.count_copies()

    @cached_property
    def trained_on(self) -> dict[str, int]:
        """Held-out source -> how many of its conversations are also trained on."""
        return self.validation.count_among(self.training, self.plan.documents) if self.validation else {}

    @cached_property
    def never_shown(self) -> list[str]:
        """Sources of training data that contribute no conversation to the run's steps."""
        return [name for name, count in self.training.count(self.plan.documents).items() if not count]

    @property
    def fill(self) -> float:
        """Share of all positions in packs that have real tokens, from 0 to 1."""
        tokens = self.training.document_tokens[self.plan.documents].sum()
        return float(tokens / max(1, len(self.plan) * self.encoder.sequence_length))

    @property
    def padded_fill(self) -> float:
        """What `fill` would be if every conversation were padded to a row of its own."""
        return self.fill * len(self.plan) / max(1, len(self.plan.documents))


def make_encoder(config: Config) -> Encoder:
    """The encoder of a config, checked against its tokenizer."""
    tokenizer = load_tokenizer(config.tokenizer_path)
    return Encoder(load_template(config.data.template), tokenizer, config.data.sequence_length)


def source_files(sources: Sequence[Source]) -> tuple[SourceFile, ...]:
    """The files of sources. Raises UserError for anything else: a pipe could not be read twice."""
    found = []
    for each in sources:
        path = resolve(each.path, f"source {each.name}")
        if not path.is_file():
            raise UserError(f"source {each.name}", f"is not a regular file: {each.path}")
        files.check_no_pointer(path)
        found.append(SourceFile(each.name, path, each.pair))
    return tuple(found)


def prepare_data(config: Config) -> Prepared:
    """Open or build the token stores of a config and plan its packs. Several processes may call this at once.

    Raises UserError for everything in config or data that cannot be trained on.
    """
    data, train = config.data, config.train
    if not data.sources:
        raise UserError("data.sources", "names no data", "Give a list of {name, path}.")
    if train.global_batch_tokens % data.sequence_length:
        raise UserError(
            "train.global_batch_tokens",
            f"is no multiple of data.sequence_length ({data.sequence_length}): {train.global_batch_tokens}",
            f"The nearest multiple is {_nearest(train.global_batch_tokens, data.sequence_length)}.",
        )
    encoder = make_encoder(config)
    # Before hours of work, not after them.
    check_doubtful_kinds(encoder.tokenizer, encoder.template.control_tokens)
    check_tokenizer(config, encoder.tokenizer)
    check_model(config, encoder.tokenizer)
    share = data.held_out_share or 0.0
    training = _open(config, data.sources, "training", Part(share))
    other = Part(share, is_held_out=share > 0)
    validation = _open(config, data.held_out, "held-out", other) if data.held_out else None
    if validation:
        check_held_out_names(validation)
    if share:
        check_parts(data, training, validation)
    epochs = train.epochs or 3
    check_weights(data.sources, training, None if train.steps else epochs)
    check_plan_size(config, training, epochs)
    plan = make_plan(
        training.document_tokens,
        training.sources,
        [source.weight for source in data.sources],
        capacity=data.sequence_length,
        seed=config.seed,
        epochs=None if train.steps else epochs,
        packs=train.steps * config.global_packs if train.steps else None,
    )
    return Prepared(encoder, training, validation, plan, -(-len(plan) // config.global_packs))


def _nearest(value: int, unit: int) -> int:
    return max(unit, round(value / unit) * unit)


def _open(config: Config, sources: Sequence[Source], label: str, part: Part) -> Store:
    recipe = Recipe(
        source_files(sources),
        config.tokenizer_path,
        load_template(config.data.template),
        config.data.sequence_length,
        config.data.max_refused_share,
        part,
    )
    folder = expand(config.data.store, "data.store") if config.data.store else default_store()
    progress = make_progress(make_console(), SpinnerColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    task = progress.add_task(f"tokenizing and proving {label} rows", total=None)

    def advance(rows: int) -> None:  # only the one process that builds the store gets here
        progress.start()
        progress.advance(task, rows)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open_store(recipe, folder, workers=config.data.workers, progress=advance)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        what = f"cannot be written: {folder}: {error.strerror}"
        raise UserError("data.store", what, "Name another folder.") from None
    finally:
        if progress.live.is_started:  # else it would print an empty line
            progress.stop()


def keep_records(prepared: Prepared, run_dir: Path) -> None:
    """Put the ledger and all refused rows into the run folder. Raises UserError if it cannot be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        files.write_text(run_dir / "ledger.json", json_text(summary(prepared)))
        refused = (json_line(each) for store in prepared.stores for each in store.refused())
        files.write_parts(run_dir / "refused.jsonl", refused)
    except OSError as error:
        raise UserError("run_dir", f"cannot be written: {run_dir}: {error.strerror}") from None


def read_manifest(run_dir: Path) -> dict:
    """What the run in this folder recorded when it began; {} if no run has begun there."""
    return read_json_if_there(run_dir / MANIFEST)


def summary(prepared: Prepared) -> dict:
    """What was prepared, as plain values for JSON."""
    return {
        "sources": prepared.training.ledgers,
        "validation": prepared.validation.ledgers if prepared.validation else {},
        "copies": prepared.copies,
        "validation_trained_on": prepared.trained_on,
        "packs": len(prepared.plan),
        "packs_per_epoch": list(prepared.plan.packs_per_epoch),
        "fill": prepared.fill,
        "padded_fill": prepared.padded_fill,
        "steps": prepared.total_steps,
        "sequence_length": prepared.encoder.sequence_length,
        "template": prepared.encoder.template.name,
        "store": str(prepared.training.folder),
    }


def print_ledger(prepared: Prepared, config: Config, console: Console) -> None:
    """Print a table with one line for each source, its rows and where every token went, and a summary."""
    table = Table(title="ledger: tokens = trained + masked + dropped", title_justify="left")
    names = ("source", "rows", "kept", "cut", "refused", "tokens", "trained", "masked", "dropped")
    for name in names:
        table.add_column(name, justify="left" if name == "source" else "right")
    ledgers = [
        (name if store is prepared.training else f"{name} (held out)", ledger)
        for store in prepared.stores
        for name, ledger in store.ledgers.items()
    ]
    for name, ledger in ledgers:
        refused, dropped = (sum(ledger[key].values()) for key in ("refused", "dropped"))
        numbers = [ledger["rows"], ledger["kept"], ledger["cut"], refused, ledger["tokens"]]
        numbers += [ledger["trained"], ledger["masked"], dropped]
        table.add_row(name, *(f"{number:,}" for number in numbers))
    console.print(table)
    for name, ledger in ledgers:
        for line in _reasons(ledger):
            console.print(f"  {name}: {line}")
    for name, count in prepared.copies.items():
        if count:
            console.print(f"  {name}: copies of earlier rows: {count:,}")
    for name in prepared.never_shown:
        console.print(f"  {name}: no step shows any of its rows", style="yellow")
    for name, count in prepared.trained_on.items():
        if count:
            console.print(f"  {name} (held out): rows that are trained on, too: {count:,}", style="yellow")
    console.print(
        f"{len(prepared.plan):,} packs of {prepared.encoder.sequence_length} tokens, "
        f"{100 * prepared.fill:.2f} % full, {prepared.total_steps:,} steps\n"
        f"(one conversation a row, padded: {len(prepared.plan.documents):,} rows, "
        f"{100 * prepared.padded_fill:.2f} % full)\nstore: {prepared.training.folder}",
        soft_wrap=True,
    )
    if said := other_form_in_words(config, prepared.encoder):
        console.print(said, style="yellow", soft_wrap=True)
    if prepared.total_steps < FEW_STEPS and not config.train.steps:
        said = f"{prepared.total_steps} step(s) teach a model little: lower train.global_batch_tokens"
        console.print(said, style="yellow")


def _reasons(ledger: dict) -> Iterator[str]:
    """Yield, for each reason, how many of a source's rows or tokens are not used because of it."""
    for key, what in (("refused", "row"), ("dropped", "token")):
        for reason, count in ledger[key].items():
            if count:
                yield f"{count:,} {what}{'' if count == 1 else 's'} {key}: {reason}"


def main(arguments: Sequence[str]) -> None:
    parser = build_parser("fastling prepare", "Tokenize, prove and pack the data; print the ledger.")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    config, options = parse(parser, arguments)
    prepared = prepare_data(config)
    console = make_console()
    store = prepared.training.folder.name
    if read_manifest(config.run_folder).get("store", store) != store:
        said = f"{config.run_folder} holds a run on other data: its ledger and refused rows stay"
        console.print(said, soft_wrap=True)
    else:
        keep_records(prepared, config.run_folder)
    print_ledger(prepared, config, console)
    if options.json:
        print_result(summary(prepared))


if __name__ == "__main__":
    sys.exit(run_program(main))
