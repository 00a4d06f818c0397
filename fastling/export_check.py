"""Checks that an export is what was trained: its weights, token ids, template text and logits."""

import importlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import tokenizers
import torch

from fastling.data.conversation import Conversation, Turn
from fastling.data.encoding import Encoder
from fastling.data.tokenizer_export import PROOF_STRINGS, adds_what_it_may, first_difference
from fastling.errors import kind_and_line
from fastling.inference.chat_template import render_conversation
from fastling.model.digests import misread
from fastling.model.huggingface import load_pretrained, read_config
from fastling.model.llama_config import LlamaConfig
from fastling.model.safetensors_folder import SafetensorsFolder

PROBES = (
    Conversation((Turn("user", "Translate to Chinese: Good morning!"), Turn("assistant", "早上好！"))),
    Conversation(
        (
            Turn("user", " 请把这句话译成德语：我们明天去。 "),
            Turn("assistant", "Wir gehen morgen.\n"),
            Turn("user", "Shorter, with an emoji 😀"),
            Turn("assistant", "  Morgen! 😀"),
            Turn("user", "Danke\n\n"),
        ),
        system="Antworte kurz.",
    ),
)
QWEN2 = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {
                    "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                },
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    },
}
"""Parts of a tokenizer.json that transformers 5 uses for a model of type qwen2, whatever the file says."""
LARGEST_FOR_LOGITS = 3e9
"""Most weights for which logits are computed: in float32, beside a training, a larger model might not fit
into memory, and the export would be lost."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked: passed, failed, or (None) not checked, with the reason."""

    name: str
    passed: bool | None
    result: str


def first_failed(checks: Sequence[Check]) -> Check | None:
    """The first check that failed, if one did; checks that were not made have not."""
    return next((check for check in checks if check.passed is False), None)


def check_export(
    folder: Path, encoder: Encoder, shape: LlamaConfig, digests: Mapping[str, str]
) -> list[Check]:
    """Open the folder as other software does, and compare. `digests` are the weights', by `digested`."""
    checks = [
        *check_small_files(folder, encoder, shape),
        _attempt("weights", lambda: _weights(folder, digests)),
        _attempt("token ids", lambda: _token_ids(folder, encoder)),
    ]
    if first_failed(checks):
        return checks
    return [*checks, _attempt("logits", lambda: _logits(folder, encoder))]


def check_small_files(folder: Path, encoder: Encoder, shape: LlamaConfig) -> list[Check]:
    """The checks that need no weights: is the shape read back, and does a server build training's prompts?"""
    return [
        _attempt("shape", lambda: _shape(folder, shape)),
        _attempt("template text", lambda: _template_text(folder, encoder)),
        _attempt("prompt ids", lambda: _prompt_ids(folder, encoder)),
        *([_attempt("Qwen2", lambda: _qwen2(folder, encoder))] if shape.model_type == "qwen2" else []),
    ]


def _probes(encoder: Encoder) -> list[Conversation]:
    """Conversations to try a template on, with system text only if it has a place for that."""
    has_place = bool(encoder.template.template.system)
    return [probe if has_place else replace(probe, system="") for probe in PROBES]


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    """The result of a check, which has failed if it raises anything."""
    try:
        return check()
    except Exception as error:
        return Check(name, False, kind_and_line(error))


def _shape(folder: Path, shape: LlamaConfig) -> Check:
    found, expected = vars(read_config(folder)), vars(shape)
    different = [name for name in expected if found[name] != expected[name]]
    result = f"another {different[0]} is in config.json" if different else "config.json is read back the same"
    return Check("shape", not different, result)


def _weights(folder: Path, digests: Mapping[str, str]) -> Check:
    different = misread(folder, digests)
    return Check("weights", different is None, different or "are bit for bit what was trained")


def _token_ids(folder: Path, encoder: Encoder) -> Check:
    built = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    difference = first_difference(encoder.tokenizer, built)
    result = f"equal on {PROOF_STRINGS:,} strings" if difference is None else f"differ on {difference!r}"
    return Check("token ids", difference is None, result)


def _template_text(folder: Path, encoder: Encoder) -> Check:
    chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    field = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    for conversation in _probes(encoder):
        for_answer = conversation.turns[-1].role == "user"
        segments = encoder.template.render(conversation, for_answer=for_answer)
        expected = "".join(segment.text for segment in segments)
        for name, each in (("file", chat_template), ("field", field)):
            if render_conversation(each, conversation, for_answer=for_answer) != expected:
                return Check("template text", False, f"the {name} renders something else than was trained")
    return Check("template text", True, "file and field render what was trained")


def _prompt_ids(folder: Path, encoder: Encoder) -> Check:
    """Whether the rendered text through tokenizer.json, as in a server, gives the ids of training (P1)."""
    built = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    if not adds_what_it_may(encoder.tokenizer, built):
        return Check("prompt ids", False, "tokenizer.json adds more to a text than a begin token")
    chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for conversation in _probes(encoder):
        for count in range(1, len(conversation.turns) + 1, 2):
            asked = Conversation(conversation.turns[:count], conversation.system)
            text = render_conversation(chat_template, asked, for_answer=True)
            if built.encode(text, add_special_tokens=False).ids != encoder.prompt_ids(asked):
                return Check("prompt ids", False, f"a server would feed other ids for {text[-40:]!r}")
    return Check("prompt ids", True, "a server feeds the ids that training saw")


def _qwen2(folder: Path, encoder: Encoder) -> Check:
    """Whether text has the same tokens by Qwen2's own rules, which transformers 5 uses, not the file's."""
    fields = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = fields["model"] | {"byte_fallback": False, "fuse_unk": False, "ignore_merges": False}
    if fields["model"]["type"] != "BPE":
        return Check("Qwen2", False, f"transformers 5 reads no {fields['model']['type']} for a Qwen2 model")
    read = fields | QWEN2 | {"model": model}
    same = read == fields
    built = tokenizers.Tokenizer.from_str(json.dumps(read))
    difference = None if same else first_difference(encoder.tokenizer, built)
    if difference is None:
        return Check("Qwen2", True, "transformers 5 reads text by Qwen2's own rules: the same tokens")
    return Check(
        "Qwen2",
        False,
        f"transformers 5 reads text for a qwen2 by Qwen2's own rules, other tokens for {difference!r:.40}",
    )


def _num_weights(folder: Path) -> int:
    with closing(SafetensorsFolder(folder)) as source:
        return sum(math.prod(shape) for shape in source.shapes.values())


@torch.no_grad()
def _logits(folder: Path, encoder: Encoder) -> Check:
    if _num_weights(folder) > LARGEST_FOR_LOGITS:
        return Check("logits", None, f"not computed for more than {LARGEST_FOR_LOGITS:.0e} weights")
    shape = read_config(folder)
    ids = torch.tensor(encoder.prompt_ids(PROBES[0])[: shape.longest_sequence])
    ours = _our_logits(folder, ids)
    if not ours.isfinite().all():
        return Check("logits", False, "are not finite")
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return Check("logits", None, "are finite; transformers is not installed to compare with")
    if problem := _why_not_imported(shape.model_type):
        return Check(
            "logits", None, f"are finite; transformers {version} cannot load such a model here: {problem}"
        )
    difference = float((_transformers_logits(folder, ids) - ours).abs().max())
    return Check(
        "logits",
        difference < 1e-4,
        f"differ by at most {difference:.1e} from transformers {version} in float32",
    )


def _our_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits (T, V) of token ids (T,), in float32. The model is freed before the other one is loaded."""
    model = load_pretrained(folder, dtype=torch.float32)
    return model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32))


def _why_not_imported(model_type: str) -> str | None:
    """Why transformers cannot load this kind of model at all (too old, or broken here); None if it can."""
    before = logging.root.manager.disable
    logging.disable(
        logging.WARNING
    )  # warnings of packages that it imports, such as torchao, are not of the export
    try:
        importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    except Exception as error:  # such as of a package that it needs in another version
        return kind_and_line(error)[:120]
    finally:
        logging.disable(before)
    return None


def _transformers_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits (T, V) of token ids (T,) by transformers, in float32."""
    from transformers import AutoModelForCausalLM  # optional
    from transformers.utils import logging

    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    return model(ids[None]).logits[0]
