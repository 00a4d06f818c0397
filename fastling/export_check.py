"""Does a finished export say what was trained? Weights, token ids, template text, logits."""

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import tokenizers
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastling.data.conversation import Conversation, Turn
from fastling.data.encoding import Encoder
from fastling.data.tokenizer_export import PROOF_STRINGS, first_difference
from fastling.model.huggingface import load_pretrained

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
LARGEST_FOR_TRANSFORMERS = 3e9
"""Weights; loading a larger model a second time would take longer than a check should."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked: passed, failed, or (None) not checked, with the reason."""

    name: str
    passed: bool | None
    result: str


def check_export(folder: Path, encoder: Encoder) -> list[Check]:
    """Open the folder as its readers will, and compare."""
    checks = [_token_ids(folder, encoder), _template_text(folder, encoder), _prompt_ids(folder, encoder)]
    return [*checks, *_logits(folder, encoder)]


def _token_ids(folder: Path, encoder: Encoder) -> Check:
    built = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    difference = first_difference(encoder.tokenizer, built)
    result = f"equal on {PROOF_STRINGS:,} strings" if difference is None else f"differ on {difference!r}"
    return Check("token ids", difference is None, result)


def render(chat_template: str, conversation: Conversation, *, for_answer: bool) -> str:
    """A chat template's text for a conversation, rendered in Jinja's sandbox as servers do."""
    messages = [{"role": role, "content": content} for role, content in conversation.turns]
    if conversation.system:
        messages.insert(0, {"role": "system", "content": conversation.system})
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(chat_template)
    return template.render(messages=messages, add_generation_prompt=for_answer)


def _template_text(folder: Path, encoder: Encoder) -> Check:
    chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    field = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    for conversation in PROBES:
        for_answer = conversation.turns[-1].role == "user"
        segments = encoder.template.render(conversation, for_answer=for_answer)
        expected = "".join(segment.text for segment in segments)
        for name, each in (("file", chat_template), ("field", field)):
            if render(each, conversation, for_answer=for_answer) != expected:
                return Check("template text", False, f"the {name} renders something else than was trained")
    return Check("template text", True, "file and field render what was trained")


def _prompt_ids(folder: Path, encoder: Encoder) -> Check:
    """What a server feeds the model: the rendered text through tokenizer.json (P1)."""
    built = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for conversation in PROBES:
        for count in range(1, len(conversation.turns) + 1, 2):
            asked = Conversation(conversation.turns[:count], conversation.system)
            text = render(chat_template, asked, for_answer=True)
            if built.encode(text).ids != encoder.prompt_ids(asked):
                return Check("prompt ids", False, f"a server would feed other ids for {text[-40:]!r}")
    return Check("prompt ids", True, "a server feeds the ids that training saw")


@torch.no_grad()
def _logits(folder: Path, encoder: Encoder) -> list[Check]:
    model = load_pretrained(folder, dtype=torch.float32)
    ids = encoder.prompt_ids(PROBES[0])
    ids = ids[: model.config.longest_sequence]
    ours = model.logits(torch.tensor(ids), torch.tensor([0, len(ids)], dtype=torch.int32))
    loaded = Check("weights", bool(ours.isfinite().all()), "reload and give finite logits")
    return [loaded, _transformers_logits(folder, ids, ours)]


def _transformers_logits(folder: Path, ids: list[int], ours: torch.Tensor) -> Check:
    name = "logits in transformers"
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return Check(name, None, "transformers is not installed")
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2
    if weights > LARGEST_FOR_TRANSFORMERS:
        return Check(name, None, f"more than {LARGEST_FOR_TRANSFORMERS:.0e} weights")
    from transformers import AutoModelForCausalLM  # optional

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    difference = float((theirs(torch.tensor([ids])).logits[0] - ours).abs().max())
    return Check(name, difference < 1e-4, f"differ by at most {difference:.1e} (transformers {version}, float32)")
