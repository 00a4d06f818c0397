"""What a run folder records: its config, where everything came from, and what must not change on resuming."""

import contextlib
import hashlib
import json
import os
import secrets
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

import fastling
from fastling import files
from fastling.config import Config, resolve
from fastling.data.encoding import Encoder
from fastling.errors import UserError
from fastling.json_files import json_text
from fastling.locks import no_link_or_pipe, takes
from fastling.model.digests import mark_of_weights
from fastling.model.llama_config import LlamaConfig
from fastling.ops import Choice
from fastling.prepare import MANIFEST, Prepared, keep_records, read_manifest
from fastling.training.parallel import World

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "flash-attn",
    "xformers",
)

IN_WORDS = {"data": "data (rows, names or pairs of the sources, tokenizer, template or sequence_length)"}
"""Names for the entries of an identity whose values are digests, which mean nothing to a reader."""

SECONDS_UNTIL_SEEN = 30
"""Long enough for a file that one node wrote to become visible to the others on any shared disk."""


def identity(config: Config, prepared: Prepared, shape: LlamaConfig) -> dict:
    """What must stay the same when a run resumes: all that its final weights depend on, except paths."""
    train, pretrained = config.train, config.model.pretrained
    first = mark_of_weights(resolve(pretrained, "model.pretrained")) if pretrained else None
    return {
        "model.pretrained, by its weights": first,
        "data": prepared.training.folder.name,  # before a shape that follows from it
        **{f"model.{name}": value for name, value in vars(shape).items()},
        "data.sources weights": [source.weight for source in config.data.sources],
        "seed": config.seed,
        "train.global_batch_tokens": train.global_batch_tokens,  # before the numbers that follow from it
        "number of steps": prepared.total_steps,
        "number of packs": len(prepared.plan),  # the last step may have fewer than the others
        "train.loss": train.loss,
        "train.precision": train.precision,
        **{f"optimizer.{name}": value for name, value in vars(config.optimizer).items()},
    }


def check_identity(where: Path, recorded: object, now: dict) -> None:
    """Raise UserError naming the first setting that differs from the checkpoint's."""
    recorded = recorded if isinstance(recorded, dict) else {}
    for name, value in now.items():
        if recorded.get(name) != value:
            words = IN_WORDS.get(name, name)
            raise UserError(
                str(where),
                f"was made with another {words}: {recorded.get(name)}; the config now gives {value}",
                "A run keeps what it began with. Choose another run_dir to start a new one;\n"
                "  to start it from this one's weights, set model.pretrained to this one's export.",
            )


def check_agreed(
    config: Config, prepared: Prepared, identity: dict, choices: list[Choice], world: World
) -> None:
    """Raise UserError on all ranks if they differ: each node may have files and packages of its own."""
    sections = ("train", "parallel", "checkpoint", "evaluate")
    settings = {
        f"{section}.{name}": value
        for section in sections
        for name, value in vars(getattr(config, section)).items()
    }
    held_out = prepared.validation.folder.name if prepared.validation else None
    values = identity | settings | {"data.validation": held_out} | _implementations(choices)
    digests = [hashlib.sha256(repr(value).encode()).digest() for value in values.values()]
    marks = torch.tensor([int.from_bytes(digest[:4]) for digest in digests])
    world.from_main(0)  # wait for processes that still prepare their data, perhaps for hours
    sums = world.sum(marks.clone())
    for name, mark, total in zip(values, marks.tolist(), sums.tolist(), strict=True):
        if total != world.size * mark:
            what = "differs between processes"
            fix = "Give every node the same config, files and packages."
            raise UserError(IN_WORDS.get(name, name), what, fix)


class RunLock:
    """A lock that keeps a second run out of a run folder, until this object or the process ends.

    A disk without locks keeps nobody out; the run continues regardless.
    """

    def __init__(self, path: Path):
        self._file = None
        # Unbuffered, so that what a full disk refused is not written again on closing.
        self._file = open(path, "ab", buffering=0, opener=no_link_or_pipe)
        if not takes(self._file.fileno(), path):
            raise BlockingIOError
        self.number = secrets.randbelow(2**62) + 1
        """A random number in the lock file, by which other processes see that the file is this one."""
        self._file.truncate(0)
        self._file.write(str(self.number).encode())
        os.fsync(self._file.fileno())

    def __del__(self):
        if self._file:
            self._file.close()


def lock_run_dir(run_dir: Path) -> RunLock:
    """Make the run folder and lock it. Raises UserError if another run holds it, or it cannot be written."""
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        return RunLock(run_dir / "lock")
    except BlockingIOError:
        what = f"another run is using it: {run_dir}"
        raise UserError("run_dir", what, "Wait for it, stop it, or name another folder.") from None
    except OSError as error:
        what = f"cannot be written: {error.filename or run_dir}: {error.strerror or error}"
        raise UserError("run_dir", what, "Name a folder on a disk that you may write to.") from None


def check_shared(run_dir: Path, number: int) -> None:
    """Raise UserError unless this process sees rank 0's lock file: all processes write to run_dir."""
    path, found = run_dir / "lock", ""
    for _ in range(SECONDS_UNTIL_SEEN):
        with contextlib.suppress(OSError):
            found = path.read_text(errors="replace")
        if found == str(number):
            return
        time.sleep(1)
    raise UserError(
        "run_dir",
        "is not on a disk that all processes share: "
        f"{os.uname().nodename} does not see rank 0's {path.absolute()}",
        "Name a folder on a shared disk.",
    )


def evaluated_on_other(run_dir: Path, prepared: Prepared) -> bool:
    """Whether a resumed run had other held-out data before. Call this before `write_records`."""
    before, validation = read_manifest(run_dir).get("validation_store"), prepared.validation
    return before is not None and validation is not None and before != validation.folder.name


def changed_since(run_dir: Path, choices: list[Choice], world: World) -> str:
    """What has changed since the run's last start and affects the last bits of a step; "" if nothing.

    A resumed run has the same data in the same order regardless (P10). Call this before `write_records`.
    """
    manifest = read_manifest(run_dir)
    found = [manifest.get(name) for name in ("implementations", "packages")]
    implementations, packages = (each if isinstance(each, dict) else {} for each in found)
    before = manifest | implementations | {"torch": packages.get("torch")}
    now = _conditions(world) | _implementations(choices) | {"torch": _version("torch")}
    pairs = [(name, before.get(name), value) for name, value in now.items()]
    # None where it does not matter, as for threads on a GPU, or was not recorded.
    return ", ".join(
        f"{name} {old} -> {new}" for name, old, new in pairs if None not in (old, new) and old != new
    )


def check_as_trained(run_dir: Path, encoder: Encoder, shape: LlamaConfig) -> None:
    """Raise UserError if the files that a run's config names are no longer those it was trained with."""
    recorded = read_manifest(run_dir)
    for name, value in _made_with(encoder, shape).items():
        if name in recorded and recorded[name] != json.loads(json.dumps(value)):
            raise UserError(
                str(run_dir),
                f"was trained with another {name}: {recorded[name]}; what its config.yaml names has {value}",
                "Restore the files, and run this in the folder where training was started.",
            )


def _made_with(encoder: Encoder, shape: LlamaConfig) -> dict:
    """All that an export depends on besides the weights."""
    template = encoder.template.jinja()
    return {
        "template": encoder.template.name,
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "tokenizer_sha256": files.sha256(encoder.tokenizer.path),
        "stop_ids": encoder.stop_ids,
        **{f"model.{name}": value for name, value in vars(shape).items()},
    }


def write_records(
    config: Config, prepared: Prepared, shape: LlamaConfig, choices: list[Choice], world: World
) -> None:
    """config.yaml (resolved), manifest.json, ledger.json and refused.jsonl of a run."""
    run_dir = config.run_folder
    keep_records(prepared, run_dir)
    manifest = {
        "fastling": fastling.__version__,
        "store": prepared.training.folder.name,
        "validation_store": prepared.validation.folder.name if prepared.validation else None,
        **_made_with(prepared.encoder, shape),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": sys.version.split()[0],
        **_conditions(world),
        "implementations": _implementations(choices),
    }
    files.write_text(run_dir / "config.yaml", config.as_yaml())
    files.write_text(run_dir / MANIFEST, json_text(manifest))


def _conditions(world: World) -> dict:
    threads = torch.get_num_threads() if world.device.type == "cpu" else None
    return {"processes": world.size, "device": world.device.type, "threads": threads}


def _implementations(choices: list[Choice]) -> dict[str, str]:
    """The implementation of each op: `auto` takes what a machine has."""
    return {choice.op: choice.implementation for choice in choices}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
