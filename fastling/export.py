"""`fastling export`: writes a trained run as a Hugging Face folder that other software opens as it is.

transformers 4 and 5, vLLM, SGLang and llama.cpp's converter read different spellings of the same settings, so
every JSON file is written here with all of them. The folder is then checked: its weights, its token ids, its
template and, if transformers is installed, its logits.
"""

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastling import files
from fastling.command_line import Parser
from fastling.config import Config, build_parser, parse
from fastling.data.encoding import Encoder
from fastling.data.tokenizer import Tokenizer
from fastling.data.tokenizer_export import exact_tokenizer_json, sentencepiece_file
from fastling.errors import RunError, UserError, run_program
from fastling.export_check import Check, check_export, check_small_files, first_failed
from fastling.json_files import json_text
from fastling.locks import Hold
from fastling.model.digests import digested
from fastling.model.huggingface import DTYPES, config_json, hf_tensors
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.model.safetensors_folder import save_weights
from fastling.model_card import model_card
from fastling.prepare import make_encoder
from fastling.terminal import make_console, print_result
from fastling.training import checkpoint, record
from fastling.training.build import model_config
from fastling.training.parallel import compute_dtype

CARD = "README.md"
_WRITTEN = re.compile(
    r"README\.md|config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|"
    r"special_tokens_map\.json|chat_template\.jinja|template\.yaml|tokenizer\.model|"
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json(\.\d+\.tmp)?|\.shard-\d+\.part|"
    r"\.tmp\w{6}"
)
"""Names of all files that an export writes, including temporary ones (the last is safetensors' own)."""


@dataclass
class Export:
    """An export. `rehearse`, before training, writes and checks everything but the weights, so that `write`,
    after training, does not fail for a reason that could have been known before."""

    folder: Path
    shape: LlamaConfig
    encoder: Encoder
    config: Config
    dtype: torch.dtype
    _hold: Hold | None = field(default=None, init=False)

    @property
    def aside(self) -> Path:
        """The folder in which the export is written before it gets its name."""
        return self.folder.with_name(self.folder.name + ".tmp")

    @functools.cached_property
    def tokenizer_json(self) -> str:
        """Text of the exact tokenizer.json; cached, since its proof takes seconds."""
        return exact_tokenizer_json(self.encoder.tokenizer, self.encoder.template.control_tokens)

    def rehearse(self) -> None:
        """Write everything but the weights into `aside`, and check it.

        Raises UserError if the tokenizer or the shape cannot be exported, if a server would build other
        prompts than training, if the folder holds something else or is being written by another process, or
        if the disk has no room for the weights.
        """
        _check_replaceable(self.folder)
        try:
            self._take_aside()
            self._empty_aside()
            with files.gone_after_error(self.aside):
                files.check_disk(self.folder.parent, self.num_bytes, str(self.folder), "the export needs")
                self._write_small_files()
                self._check_small_files()
        except OSError as error:
            raise UserError(str(self.folder), f"cannot be written: {error}") from None

    def _take_aside(self) -> None:
        """Make `aside` and lock it. Raises UserError if another process holds it."""
        if self._hold and self._hold.is_of(self.aside):
            return
        try:
            self._hold = Hold(self.aside)
        except BlockingIOError:
            fix = "Wait for it, stop it, or name another folder."
            raise UserError(str(self.folder), "is being written by another process", fix) from None

    def _empty_aside(self) -> None:
        """Remove what a killed export has left; last the model card, which shows that the folder is ours."""
        _check_replaceable(self.aside)
        for path in sorted(self.aside.iterdir(), key=lambda path: path.name == CARD):
            path.unlink()

    @functools.cached_property
    def model_file(self) -> Path | None:
        """The SentencePiece model to copy as tokenizer.model, beside tokenizer.json; None without one."""
        return sentencepiece_file(self.encoder.tokenizer)

    @functools.cached_property
    def num_weights(self) -> int:
        """Number of weights of the model."""
        return sum(parameter.numel() for parameter in Llama.on_meta(self.shape).parameters())

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights as they will be written."""
        return self.num_weights * self.dtype.itemsize

    def _check_small_files(self) -> None:
        if failed := first_failed(check_small_files(self.aside, self.encoder, self.shape)):
            where, what = f"export of {self.encoder.tokenizer.path}", f"{failed.name}: {failed.result}"
            if failed.name == "shape":  # a bug of ours, which no other choice of the user would mend
                raise UserError(where, f"would fail its check: {what}")
            raise UserError(
                where,
                f"with the template {self.encoder.template.name} would fail its check: {what}",
                "Choose a template, or a model_type, that was made for this tokenizer.",
            )

    def _write_small_files(self) -> None:
        for name, content in self.small_files().items():
            (self.aside / name).write_text(content, encoding="utf-8")
        if self.model_file:
            shutil.copyfile(self.model_file, self.aside / "tokenizer.model")

    def write(
        self, model: Llama, *, is_main: bool = True, wait: Callable[[], object] | None = None
    ) -> list[Check]:
        """Add the weights, check the folder, and give it its name. All ranks must call this together.

        They call `wait` before each weight, so that the rank that writes may be slow.

        Returns the checks, on the main rank. Raises RunError if one fails, and UserError if the folder of
        that name is something else by now, which is left as it is.
        """
        tensors = hf_tensors(model, wanted=is_main, wait=wait)
        if not is_main:
            for _ in tensors:  # gathering takes every rank
                pass
            return []
        self._take_aside()
        self._write_small_files()  # again, since those of the rehearsal may be days old
        digests: dict[str, str] = {}
        tensors = self._finite(digested(tensors, self.dtype, digests))
        save_weights(tensors, self.aside, dtype=self.dtype)
        checks = check_export(self.aside, self.encoder, self.shape, digests)
        if failed := first_failed(checks):
            raise RunError(
                str(self.aside),
                f"failed its check: {failed.name}: {failed.result}",
                f"It was therefore not published as {self.folder}.",
            )
        _check_replaceable(self.folder)  # days may have passed since the rehearsal
        files.publish(self.aside, self.folder)
        self._hold = None
        return checks

    def _finite(self, named_tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights. Raises RunError for values that are not finite, or too large for the dtype."""
        for name, tensor in named_tensors:
            if not tensor.isfinite().all():
                what = f"{name} has weights that are not finite as {str(self.dtype).removeprefix('torch.')}"
                raise RunError(str(self.aside), what, f"It was therefore not published as {self.folder}.")
            yield name, tensor

    def small_files(self) -> dict[str, str]:
        """Name -> text of every file but the weights."""
        tokenizer, template = self.encoder.tokenizer, self.encoder.template
        fields = json.loads(self.tokenizer_json)
        unknown = _unknown_token(fields)
        bos, eos = (_known(tokenizer, token) for token in (tokenizer.bos, tokenizer.eos))
        special = {
            "bos_token": bos,
            "eos_token": template.end_token,
            "unk_token": unknown,
            "pad_token": unknown or eos or template.end_token,
        }
        special = {name: token for name, token in special.items() if token}
        ids = {name: tokenizer.control_id(token) for name, token in special.items()}
        chat_template = template.jinja()
        config = config_json(
            self.shape,
            bos_token_id=ids.get("bos_token"),
            eos_token_id=self.encoder.stop_ids,
            pad_token_id=ids.get("pad_token"),
            dtype=self.dtype,
        )
        generation = {
            "bos_token_id": ids.get("bos_token"),
            "eos_token_id": self.encoder.stop_ids,
            "pad_token_id": ids.get("pad_token"),
            "do_sample": False,
            "transformers_version": "4.40.0",
        }
        added = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in fields["added_tokens"]
        }
        tokenizer_config = {
            # The one class that both transformers 4 and 5 take to mean "read tokenizer.json as it is".
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            # Without this, transformers 4 also returns token_type_ids, which LLaMA does not take.
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": self.shape.max_position_embeddings,
            "padding_side": "left",
            "added_tokens_decoder": added,
            "chat_template": chat_template,
        }
        return {
            CARD: model_card(self.config, self.encoder.template.name),
            "config.json": json_text(config),
            "generation_config.json": json_text(generation),
            "tokenizer.json": self.tokenizer_json,
            "tokenizer_config.json": json_text(tokenizer_config),
            "special_tokens_map.json": json_text(special),
            "chat_template.jinja": chat_template,
            "template.yaml": template.template.as_yaml(),
        }


def make_export(
    folder: Path, shape: LlamaConfig, encoder: Encoder, config: Config, dtype: torch.dtype | None = None
) -> Export:
    """The export of a run. Without `dtype`, its weights have the dtype that training computes in."""
    return Export(folder, shape, encoder, config, dtype or compute_dtype(config))


def _known(tokenizer: Tokenizer, token: str | None) -> str | None:
    """The token if the tokenizer has it, else None: other software would add a token that is not there."""
    return token if token and tokenizer.control_id(token) is not None else None


def _unknown_token(fields: dict) -> str | None:
    return fields["model"].get("unk_token") or next(
        (token["content"] for token in fields["added_tokens"] if token["content"] == "<unk>"), None
    )


def _check_replaceable(folder: Path) -> None:
    """Raise UserError unless the folder is an export of ours: nothing else may be deleted."""
    if not os.path.lexists(folder):
        return
    what, fix = "exists and is not an export", "Name another folder, or delete it."
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(str(folder), what, fix)
    entries = sorted(folder.iterdir())
    others = [each.name for each in entries if not (each.is_file() and _WRITTEN.fullmatch(each.name))]
    if others:
        raise UserError(str(folder), f"{what}: it holds {others[0]}", fix)
    # Other models have files of the same names, but not what our model card says. The card is written first.
    card = folder / CARD
    is_ours = card.is_file() and "with fastling" in card.read_text(encoding="utf-8", errors="replace")
    if not is_ours and any(each.stat().st_size for each in entries):
        raise UserError(str(folder), what, fix)


def print_checks(checks: list[Check], console: Console) -> None:
    """Print the results of an export's checks as a table."""
    table = Table(title="export, checked", title_justify="left")
    for column in ("what", "result"):
        table.add_column(column)
    marks = {True: "passed", False: "FAILED", None: "not checked"}
    for check in checks:
        table.add_row(check.name, f"{marks[check.passed]}: {check.result}")
    console.print(table)


def export_run(run_dir: Path, out: Path, dtype: torch.dtype | None) -> list[Check]:
    """Export the newest undamaged checkpoint of a run, in one process; return the checks.

    Raises UserError if there is no run or no checkpoint, or if it cannot be exported.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        raise UserError(
            "--run", f"holds no run: {run_dir}", "A run folder has a config.yaml and checkpoints/."
        )
    config, _ = parse(build_parser("fastling export", ""), [f"--config={path}"])
    encoder = make_encoder(config)
    shape = model_config(config, encoder)
    record.check_as_trained(run_dir, encoder, shape)
    export = make_export(out.resolve(), shape, encoder, config, dtype)
    export.rehearse()  # before gigabytes are read
    model = Llama.on_meta(shape).to_empty(device="cpu")
    with files.gone_after_error(export.aside):
        _load_newest(run_dir, model)
    return export.write(model)


def _load_newest(run_dir: Path, model: Llama) -> None:
    """Fill the model from the newest good checkpoint. Raises UserError where there is none yet."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    say = functools.partial(make_console().print, soft_wrap=True)
    if not checkpoint.load_newest(run_dir / "checkpoints", tensors, say):
        raise UserError(
            str(run_dir), "has no checkpoint yet", "Training writes one every checkpoint.every_steps."
        )


def main(arguments: Sequence[str]) -> None:
    description = "Write a trained run as a folder that transformers, vLLM and others open; then check it."
    parser = Parser("fastling export", description)
    parser.add_argument("--run", type=Path, required=True, help="run folder, with its checkpoints")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; an earlier export is replaced"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="type of the weights (default: the one that training computed in)"
    )
    parser.add_argument("--json", action="store_true", help="print the checks as one JSON object on stdout")
    options = parser.parse_args(arguments)
    checks = export_run(options.run, options.out, DTYPES.get(options.dtype))
    print_checks(checks, make_console())
    if options.json:
        print_result({"out": str(options.out), "checks": [vars(check) for check in checks]})


if __name__ == "__main__":
    sys.exit(run_program(main))
