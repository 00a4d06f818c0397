"""A model folder to chat with: conversations in, answers out, with the same ids as in training."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from fastling.data.conversation import Conversation
from fastling.data.encoding import Encoder
from fastling.data.template import Template, load_template
from fastling.data.tokenizer import Tokenizer, load_tokenizer
from fastling.errors import UserError, first_line
from fastling.inference.chat_template import find_template
from fastling.inference.streaming import TextStream
from fastling.model.decoding import Completion, Decoding
from fastling.model.full_memory import full_memory_in_words
from fastling.model.generation import stream
from fastling.model.huggingface import load_pretrained, read_config
from fastling.model.llama import Llama


class ChatModel:
    """A model with the tokenizer and the template that it was trained with."""

    def __init__(self, model: Llama, encoder: Encoder, name: str, template_origin: str = ""):
        self.model, self.encoder, self.name = model, encoder, name
        self.template_origin = template_origin
        """In words, what says that the model has this template."""

    @property
    def longest_sequence(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.model.config.longest_sequence

    @property
    def stop_ids(self) -> set[int]:
        """Ids that end an answer."""
        return set(self.encoder.stop_ids)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """The ids that the model gets for its next answer: those that training saw before an answer (P1).

        Earlier answers are encoded from their text, as in training; the ids that were generated may split
        that text differently. Raises UserError for a conversation that does not end with a question, and for
        text that training would have refused: system text if the template has no place for it, and text in
        which this tokenizer always finds a control token (P3).
        """
        if not conversation.turns or conversation.turns[-1].role != "user":
            raise UserError("the conversation", "must end with a message of the user")
        template = self.encoder.template
        if conversation.system and not template.template.system:
            raise UserError(
                "the system text",
                f"cannot be given: the template {template.name} has no place for it",
                "Leave it out, or say it in the first question.",
            )
        ids = self.encoder.prompt_ids(conversation)
        inserted = sum(segment.control for segment in template.render(conversation, for_answer=True))
        if sum(token_id in self.encoder.control_ids for token_id in ids) != inserted:
            raise UserError(
                "the conversation",
                "spells a control token that this tokenizer cannot take for text",
                "Write it in another way, for example with a space in it.",
            )
        return ids

    def text(self, completion: Completion) -> str:
        """The text of a completion, without white space around it."""
        return self.encoder.answer(completion.ids)

    def stream_ids(self, prompt: Sequence[int], decoding: Decoding) -> Iterator[int]:
        """Yield each id as soon as it is known. Closing the iterator ends the generation."""
        return stream(self.model, list(prompt), decoding, stop_ids=self.stop_ids)


class StreamedAnswer:
    """One answer that is being generated: iterate over it for its text, then read `finish_reason`.

    Leaving the loop early ends the generation. `text` is then what was yielded so far, and
    `finish_reason` is None.
    """

    def __init__(
        self,
        chat: ChatModel,
        prompt: Sequence[int],
        decoding: Decoding,
        stop_strings: Sequence[str] = (),
    ):
        self._chat, self._prompt, self._decoding = chat, prompt, decoding
        self._stream = TextStream(chat.encoder, stop_strings)
        self.num_tokens = 0
        """Generated, without the stop token."""
        self.finish_reason: Literal["stop", "length"] | None = None

    @property
    def text(self) -> str:
        """The text that was yielded so far."""
        return self._stream.text

    def __iter__(self) -> Iterator[str]:
        """Yield a piece of text for every token, which is often empty, and then the rest.

        Raises RunError if the answer does not fit into the memory of the device.
        """
        fix = "Ask for a shorter answer, or start a new conversation: a long one takes more memory."
        with (
            full_memory_in_words("the answer", fix, "does not fit into the memory of the device"),
            contextlib.closing(self._chat.stream_ids(self._prompt, self._decoding)) as ids,
        ):
            for token_id in ids:
                self.num_tokens += 1
                yield self._stream.add(token_id)
                if self._stream.stopped:
                    break
        rest = self._stream.end()
        self.finish_reason = "stop" if self._stream.stopped or not self._is_full() else "length"
        yield rest

    def _is_full(self) -> bool:
        """Whether the answer ended at its length limit, and not with a stop token."""
        length = len(self._prompt) + self.num_tokens
        return self.num_tokens >= self._decoding.max_new_tokens or length >= self._chat.longest_sequence


def load_chat_model(
    folder: Path, *, template: str | None = None, dtype: torch.dtype | None = None, device: str | None = None
) -> ChatModel:
    """Load an export of fastling, a run folder with an export inside, or any Hugging Face folder.

    The template is the one that `template` names, else the export's own, else the built-in one that renders
    what the folder's chat template renders. Raises UserError if there is none of these, or if the folder
    holds no model, and RunError if the model does not fit into the memory of the device.
    """
    export = folder / "export" if (folder / "export" / "config.json").is_file() else folder
    read_config(export)  # first, since its error identifies a delta, an adapter or a run
    tokenizer = load_tokenizer(export)
    found, origin = _choose_template(export, template, tokenizer)
    device = _check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    with full_memory_in_words("--model", what=f"does not fit into the memory of {device}: {folder}"):
        model = load_pretrained(export, dtype=dtype, device=device)
    try:
        encoder = Encoder(found, tokenizer, model.config.longest_sequence)
    except UserError as error:
        raise _about_option(error) from None
    return ChatModel(model.eval(), encoder, folder.resolve().name, origin)


def _choose_template(export: Path, named: str | None, tokenizer: Tokenizer) -> tuple[Template, str]:
    own = export / "template.yaml"
    if named is not None:
        try:
            return load_template(named), "by --template"
        except UserError as error:
            raise _about_option(error) from None
    if own.is_file():
        return load_template(str(own)), "by the export's template.yaml"
    found = find_template(export, tokenizer)
    return found.template, f"which renders what {found.file} renders"


def _about_option(error: UserError) -> UserError:
    """An error about `data.template` of a config, as one about the option --template."""
    return UserError(error.where.replace("data.template", "--template"), error.what, error.fix)


def _check_device(device: str) -> str:
    try:
        torch.zeros(1, device=device).item()  # reading fails on the device "meta", which holds no values
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch without CUDA
        raise UserError("--device", f"cannot be used: {device}: {first_line(error)}") from None
    return device
