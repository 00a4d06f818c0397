"""Text <-> token ids, for SentencePiece `.model` files and `tokenizer.json` files alike.

`encode` never yields a control token whatever the text says (P3): those are inserted by id.
"""

import copy
import json
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from fastling.errors import UserError, first_line
from fastling.files import check_no_pointer
from fastling.json_files import read_json_if_there


class Tokenizer(Protocol):
    """What the rest of fastling knows of a tokenizer."""

    path: Path
    vocab_size: int
    """Ids are below this number; a model's embedding needs at least as many rows."""
    bos: str | None
    eos: str | None

    def control_id(self, token: str) -> int | None:
        """Id of a control token; None if the vocabulary lacks it."""

    def reserve(self, tokens: Sequence[str]) -> None:
        """Make these tokens control tokens: `encode` then reads text that spells them as plain text."""

    def special_tokens(self) -> set[str]:
        """Tokens that an exported tokenizer.json marks special, so that servers find them in a text."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Plain texts -> their ids, without begin or end token. Raises UserError for what it cannot read."""

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Ids -> texts, for the ids of whole texts."""

    def normalize(self, text: str) -> str:
        """The text after the tokenizer's own normalisation; most tokenizers change nothing."""

    def piece(self, token_id: int) -> str:
        """The token as the vocabulary spells it; a single byte is spelled like <0xE4>."""


class SentencePieceTokenizer:
    """A SentencePiece `.model`: LLaMA 1 and 2, Mistral 7B, and other BPE or Unigram models."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise UserError(
                str(path),
                "is not a SentencePiece model",
                "Llama-3's own tokenizer.model is a tiktoken file: use the tokenizer.json beside it.",
            ) from None
        self.vocab_size = self.processor.vocab_size()
        self.bos = self._name(self.processor.bos_id())
        self.eos = self._name(self.processor.eos_id())
        # Most models do not normalise, and are then not called once for each text to find that out.
        self._changes_text = self.processor.normalize("Ａ　　b ") != "▁Ａ　　b▁"

    def _name(self, token_id: int) -> str | None:
        return self.processor.id_to_piece(token_id) if token_id >= 0 else None

    def control_id(self, token: str) -> int | None:
        if not _is_unicode(token):
            return None
        token_id = self.processor.piece_to_id(token)  # the unknown token's for what is not there
        return token_id if self.processor.id_to_piece(token_id) == token else None

    def reserve(self, tokens: Sequence[str]) -> None:
        pass  # CONTROL pieces never match text; rows where USER_DEFINED ones do are refused

    def special_tokens(self) -> set[str]:
        held = self.processor
        return {
            held.id_to_piece(each)
            for each in range(self.vocab_size)
            if held.is_control(each) or held.is_unknown(each)
        }

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.processor.encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [self.processor.decode(list(run)) if len(run) else "" for run in ids]

    def normalize(self, text: str) -> str:
        if not self._changes_text or "▁" in text:  # which stands for a space in pieces: it comes back as one
            return text
        return self.processor.normalize(text).replace("▁", " ").removeprefix(" ")

    def piece(self, token_id: int) -> str:
        return self.processor.id_to_piece(int(token_id))


class JsonTokenizer:
    """A Hugging Face `tokenizer.json`: Llama 3, Qwen, and everything fastling exports."""

    def __init__(self, path: Path):
        self.path = path
        with in_words(path, "is not a tokenizer.json"):
            self.fields = json.loads(path.read_text(encoding="utf-8"))
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_without_first_space(self.fields)))
        self.reserved: list[str] = []
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Text that spells a special token is text.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if self.fields["model"].get("dropout"):  # left there by its training
            what, fix = "reads each text otherwise each time (model.dropout)", "Set it to null there."
            raise UserError(str(path), what, fix)
        named = _special_tokens(path.parent)
        self.bos = self._existing(named.get("bos_token"), ("<s>", "<|begin_of_text|>"))
        self.eos = self._existing(named.get("eos_token"), ("</s>", "<|end_of_text|>", "<|endoftext|>"))
        kinds = {part.get("type") for part in _flatten(self.fields.get("normalizer"))}
        self._forms = [form for form in ("NFC", "NFD", "NFKC", "NFKD") if form in kinds]

    def _existing(self, named: str | None, usual: Sequence[str]) -> str | None:
        if named is not None:
            return named or None
        return next((token for token in usual if self.control_id(token) is not None), None)

    def control_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token) if _is_unicode(token) else None

    def reserve(self, tokens: Sequence[str]) -> None:
        # Only tokens marked special can be kept from matching text.
        self.reserved += tokens
        added = [tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens]
        self._tokenizer.add_special_tokens(added)

    def special_tokens(self) -> set[str]:
        added = self._tokenizer.get_added_tokens_decoder().values()
        return {token.content for token in added if token.special}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        with in_words(self.path, "cannot read a text"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        with in_words(self.path, "cannot write a text"):
            return self._tokenizer.decode_batch([list(run) for run in ids], skip_special_tokens=False)

    def normalize(self, text: str) -> str:
        for form in self._forms:
            text = unicodedata.normalize(form, text)
        return text

    def piece(self, token_id: int) -> str:
        return self._tokenizer.id_to_token(int(token_id)) or f"<{token_id}>"


@contextmanager
def in_words(path: Path, what: str) -> Iterator[None]:
    """Turn an error of the tokenizers library into a UserError about its file.

    The library raises plain Exception, and its panics, as of a regular expression, are not even that.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError | UserError):
            raise
        raise UserError(str(path), f"{what}: {first_line(error)[:200]}") from None


def _is_unicode(token: str) -> bool:
    """Whether a token has no half of a surrogate pair, as the JSON beside a tokenizer may say it has."""
    return not any("\ud800" <= letter <= "\udfff" for letter in token)


def _without_first_space(fields: dict) -> dict:
    """Change a tokenizer.json to put no space before a text, and return a copy that removes none either.

    Metaspace's scheme "first" puts a space before a text unless a control token stands before it. In a
    conversation one does, so no text gets that space: `fields` is changed in place, so that an export has no
    such space either. The copy's decoder does not take a first space away, which then is the text's own.
    """
    first = [part for part in _flatten(fields.get("pre_tokenizer")) if part.get("prepend_scheme") == "first"]
    for part in first:
        part["prepend_scheme"] = "never"
    copied = copy.deepcopy(fields)
    for part in _flatten(copied.get("decoder")) if first else []:
        part.update({"Metaspace": {"prepend_scheme": "never"}, "Strip": {"start": 0}}.get(part["type"], {}))
    return copied


def _flatten(part: dict | None) -> list[dict]:
    """A component of a tokenizer.json -> itself and all components inside it."""
    if not part:
        return []
    inner = [
        each for value in part.values() if isinstance(value, list) for each in value if isinstance(each, dict)
    ]
    return [part, *(found for each in inner for found in _flatten(each))]


def _special_tokens(folder: Path) -> dict[str, str]:
    """bos_token and eos_token as the files beside a tokenizer.json name them; "" where they say null."""
    named: dict[str, str] = {}
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        fields = read_json_if_there(path)
        for key in {"bos_token", "eos_token"} & fields.keys():
            value = fields[key].get("content") if isinstance(fields[key], dict) else fields[key]
            if not isinstance(value, str | None):
                raise UserError(str(path), f"{key} must be text: {value!r:.60}")
            named[key] = value or ""
    return named


def added_beside(tokenizer: Tokenizer) -> dict[str, int]:
    """Token -> id, of tokens that files beside a tokenizer add to it for other software, but not for us."""
    listed = _fields_beside(tokenizer, "added_tokens.json")
    decoder = _fields_beside(tokenizer, "tokenizer_config.json").get("added_tokens_decoder")
    for number, fields in (decoder if isinstance(decoder, dict) else {}).items():
        is_id = number.isdecimal() and len(number) < 20  # Python reads no number of thousands of digits
        if is_id and isinstance(fields, dict) and isinstance(fields.get("content"), str):
            listed[fields["content"]] = int(number)
    lacking = {token: number for token, number in listed.items() if tokenizer.control_id(token) is None}
    return {token: number for token, number in lacking.items() if isinstance(number, int)}


def words_beside(tokenizer: Tokenizer) -> list[str]:
    """Those of `added_beside` that are not special. Other software reads each as one token inside a text."""
    special = set()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        fields = _fields_beside(tokenizer, name)
        decoder = fields.get("added_tokens_decoder")
        listed = decoder.values() if isinstance(decoder, dict) else ()
        given = [each for each in listed if isinstance(each, dict) and each.get("special") is True]
        for key, value in fields.items():
            if key.endswith(("_token", "_tokens")):  # pad_token, additional_special_tokens
                given += value if isinstance(value, list) else [value]
        names = [each.get("content") if isinstance(each, dict) else each for each in given]
        special.update(each for each in names if isinstance(each, str))
    return [token for token in added_beside(tokenizer) if token and token not in special]


def _fields_beside(tokenizer: Tokenizer, name: str) -> dict:
    return read_json_if_there(tokenizer.path.with_name(name))


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from its file, or from a folder: tokenizer.json first, as servers do."""
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).exists():
                return load_tokenizer(path / name)
        fix = "Put the model's tokenizer there; training also takes it as data.tokenizer."
        if (path / "export").is_dir():
            fix = f"This is the folder of a run; its model is {path / 'export'}."
        raise UserError(str(path), "holds neither tokenizer.json nor tokenizer.model", fix)
    if path.is_file():
        check_no_pointer(path)
        try:
            path.open("rb").close()
        except OSError as error:  # which the libraries would call another format
            raise UserError(str(path), f"cannot be read: {error.strerror}") from None
    if path.suffix == ".json":
        return JsonTokenizer(path)
    return SentencePieceTokenizer(path)
