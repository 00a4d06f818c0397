"""A trained folder as something to talk to: conversations in, answers out, by the ids that training saw."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fastling.data.conversation import Conversation
from fastling.data.encoding import Encoder
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import UserError
from fastling.model.generation import Completion, Decoding, generate, stream
from fastling.model.huggingface import load_pretrained
from fastling.model.llama import Llama


class ChatModel:
    """A model with the tokenizer and the template that it was trained with."""

    def __init__(self, model: Llama, encoder: Encoder, name: str):
        self.model, self.encoder, self.name = model, encoder, name

    @property
    def longest_sequence(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.model.config.longest_sequence

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """What the model is fed for the next answer: the ids that training saw before it (P1)."""
        return self.encoder.prompt_ids(conversation)

    def answer(self, conversations: Sequence[Conversation], decoding: Decoding) -> list[str]:
        """The next answer of each. Raises UserError for a conversation longer than the model takes."""
        prompts = [self.prompt_ids(conversation) for conversation in conversations]
        completions = generate(self.model, prompts, decoding, stop_ids=self.stop_ids)
        return [self.text(completion) for completion in completions]

    def text(self, completion: Completion) -> str:
        return self.encoder.answer(completion.ids)

    def stream_ids(self, prompt: Sequence[int], decoding: Decoding) -> Iterator[int]:
        return stream(self.model, list(prompt), decoding, stop_ids=self.stop_ids)

    @property
    def stop_ids(self) -> set[int]:
        return set(self.encoder.stop_ids)


def load_chat_model(
    folder: Path, *, template: str | None = None, dtype: torch.dtype | None = None, device: str | None = None
) -> ChatModel:
    """A folder that fastling exported, a run folder that holds one, or any Hugging Face folder.

    The template is the one the export names, unless `template` names another. Raises UserError where
    the folder is none of these, or names no template.
    """
    export = folder / "export" if (folder / "export" / "config.json").is_file() else folder
    if not (export / "config.json").is_file():
        raise UserError("--model", f"holds no model: {folder}", "Name an export, or a run that has one.")
    own = export / "template.yaml"
    if template is None and not own.is_file():
        raise UserError("--template", f"is needed: {folder} does not say how it was trained")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    model = load_pretrained(export, dtype=dtype, device=device)
    encoder = Encoder(
        load_template(template or str(own)), load_tokenizer(export), model.config.longest_sequence
    )
    return ChatModel(model.eval(), encoder, folder.resolve().name)
