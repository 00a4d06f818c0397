"""Adds tokens to a folder's tokenizer. Every old id is kept, which is proved before anything is written.

SentencePiece BPE (LLaMA 1 and 2): the tokens become pieces of the model itself, with a lower score than all
old ones, and tokenizer.json is rebuilt and proved equal to it. BPE only merges into pieces that are in the
text, so text without new tokens keeps its ids. Added tokens would not work here, since after each of them
such a tokenizer reads a space that is not there.

Byte-level tokenizer.json (Llama 3, Qwen): the tokens become added tokens, matched as plain content.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from sentencepiece.sentencepiece_model_pb2 import TrainerSpec

from fastling.data.tokenizer import (
    JsonTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    added_beside,
    in_words,
    load_tokenizer,
)
from fastling.data.tokenizer_export import (
    exact_tokenizer_json,
    first_difference,
    model_proto,
    probing_strings,
)
from fastling.errors import UserError
from fastling.json_files import json_text, read_json, read_json_if_there
from fastling.surgery.pieces import (
    NORMAL,
    as_inside_a_text,
    error_of_all,
    extended_to_reach,
    unreached_pieces,
    with_pieces,
)

PROOF_STRINGS = 2000
"""Number of texts on which a tokenizer.json with added tokens is compared with the one without."""


@dataclass(frozen=True)
class NewTokens:
    """Tokens to add to a vocabulary: their texts, the files that have them, and their encoding before."""

    old: Tokenizer
    texts: list[str]
    parts: list[list[int]]
    """For each token the old ids of its text."""
    unreached: list[str]
    """Pieces whose own text is not encoded as that piece; inside other text they may still be used."""
    files: dict[str, str | bytes]
    """Name -> content of the tokenizer files that change."""
    known: list[str] = field(default_factory=list)
    """Tokens that were given, but are in the vocabulary already."""
    helpers: list[str] = field(default_factory=list)
    """The last ones of `texts`, which were not given: pieces from which the given ones are merged."""

    @property
    def first_id(self) -> int:
        """Id of the first new token."""
        return self.old.vocab_size

    def byte_parts(self) -> list[list[int]]:
        """For each token the old ids of its text's UTF-8 bytes. Raises UserError if bytes have no ids."""
        spellings = [f"<0x{byte:02X}>" for byte in range(256)]
        if isinstance(self.old, JsonTokenizer) and _is_byte_level(self.old):
            spellings = _byte_level_letters()
        ids = [self.old.control_id(spelling) for spelling in spellings]
        parts = [[ids[byte] for byte in text.encode("utf-8")] for text in self.texts]
        if any(None in each for each in parts):
            raise UserError(str(self.old.path), "has no tokens for single bytes", "Use another --init.")
        return parts


def _is_byte_level(tokenizer: JsonTokenizer) -> bool:
    return "ByteLevel" in json.dumps(tokenizer.fields.get("decoder"))


@functools.cache
def _byte_level_letters() -> list[str]:
    """The letter that byte-level vocabularies spell each byte with (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def read_token_file(path: Path) -> list[str]:
    """Read one token from each line, including its blanks. Empty lines and repeated tokens are skipped.

    Raises UserError if the file has no token, or one that is only blanks.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError("--tokens", f"cannot be read: {path}: {error}") from None
    tokens = [line.removesuffix("\r") for line in lines if line.removesuffix("\r")]
    if not tokens:
        raise UserError(str(path), "holds no token", "Give one token a line.")
    blank = [
        f"token {number} is nothing but blanks" for number, each in enumerate(tokens, 1) if not each.strip()
    ]
    if blank:
        raise error_of_all(str(path), blank, "Remove such lines.")
    return list(dict.fromkeys(tokens))


def add_tokens(folder: Path, texts: Sequence[str]) -> NewTokens:
    """Add tokens that are given as text; those already in the vocabulary are skipped.

    Raises UserError if it has all of them, or for texts that cannot become tokens.
    """
    model = _sentencepiece_model(folder)
    if model is None:
        return _into_json(folder, texts)
    held = {piece.piece for piece in model.pieces}
    wanted = dict.fromkeys(text.replace(" ", "▁") for text in texts)
    known = [piece for piece in wanted if piece in held]
    pieces = [piece for piece in wanted if piece not in held]
    _refuse_if_none(pieces, known)
    extended, helpers = extended_to_reach(model, pieces)
    added = _into_sentencepiece(folder, model, extended, [], [*pieces, *helpers])
    return dataclasses.replace(added, known=_as_texts(known), helpers=_as_texts(helpers))


def _refuse_if_none(lacking: Sequence[str], known: Sequence[str]) -> None:
    if not lacking:
        what = f"holds no token that the vocabulary lacks: {known[0]!r} and {len(known) - 1} others"
        raise UserError("--tokens", what, "There is nothing to add.")


def _as_texts(pieces: Sequence[str]) -> list[str]:
    return [piece.replace("▁", " ") for piece in pieces]


def add_pieces(folder: Path, pieces_file: Path) -> NewTokens:
    """Add the ordinary pieces of another SentencePiece BPE model that the folder's own lacks, in their order.

    Raises UserError if the tokenizers are not such models, or if there are no such pieces.
    """
    model = _sentencepiece_model(folder)
    if model is None:
        fix = "Such a vocabulary takes --tokens."
        raise UserError("--pieces", f"the tokenizer of {folder} is no SentencePiece model", fix)
    other = model_proto(SentencePieceTokenizer(pieces_file))
    if other.trainer_spec.model_type != TrainerSpec.BPE:
        raise UserError("--pieces", f"is no BPE model: {pieces_file}", "Pieces of other kinds do not merge.")
    held = {piece.piece for piece in model.pieces}
    pieces = [piece.piece for piece in other.pieces if piece.type == NORMAL and piece.piece not in held]
    if not pieces:
        raise UserError("--pieces", f"holds no piece that the vocabulary lacks: {pieces_file}")
    extended = with_pieces(model, pieces)
    return _into_sentencepiece(folder, model, extended, unreached_pieces(extended, pieces), pieces)


def _sentencepiece_model(folder: Path):
    """The protobuf message of a folder's tokenizer.model; None if only its tokenizer.json counts."""
    path = folder / "tokenizer.model"
    if not path.is_file():
        return None
    try:
        tokenizer = SentencePieceTokenizer(path)
    except UserError:
        if (folder / "tokenizer.json").is_file():  # Llama 3's tokenizer.model is a tiktoken file
            return None
        raise
    model = model_proto(tokenizer)
    if model.trainer_spec.model_type != TrainerSpec.BPE:
        raise UserError(str(path), "is no BPE model", "A Unigram vocabulary cannot be extended exactly.")
    known = load_tokenizer(folder).vocab_size
    if known != len(model.pieces):
        what = f"has {len(model.pieces)} pieces, and tokenizer.json beside it knows {known} tokens"
        raise UserError(str(path), what, "Extend the base model, before tokens are added to it.")
    _refuse_added_beside(SentencePieceTokenizer(path))
    return model


def _refuse_added_beside(old: Tokenizer) -> None:
    """Raise UserError if files beside the tokenizer already give its next ids to other tokens."""
    if added := added_beside(old):
        token, number = next(iter(added.items()))
        what = f"lacks {token!r}, which added_tokens.json or tokenizer_config.json adds as token {number}"
        fix = "Extend the base model, before tokens are added; take out there what the model never saw."
        raise UserError(str(old.path), what, fix)


def _into_sentencepiece(folder: Path, model, extended, unreached: list[str], pieces: list[str]) -> NewTokens:
    serialized = extended.SerializeToString()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.model"
        path.write_bytes(serialized)
        changed = _json_files(folder, SentencePieceTokenizer(path), _as_texts(pieces))
    return NewTokens(
        old=load_tokenizer(folder),
        texts=_as_texts(pieces),
        parts=as_inside_a_text(model).encode(pieces),
        unreached=unreached,
        files={"tokenizer.model": serialized, **changed},
    )


def _json_files(folder: Path, extended: SentencePieceTokenizer, texts: list[str]) -> dict[str, str | bytes]:
    """tokenizer.json for an extended model: the folder's own with new pieces and merges, or a new one.

    Raises UserError if it encodes text differently from the model.
    """
    fields = json.loads(exact_tokenizer_json(extended, ()))
    path, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    changed: dict[str, str | bytes] = {}
    if path.is_file():
        fields = read_json(path) | {"model": fields["model"]}
    else:
        config = read_json_if_there(config_file)
        if extended.bos and config.get("add_bos_token", True):
            fields["post_processor"] = _begin_token(extended)
        special = {"bos_token": extended.bos, "eos_token": extended.eos, "unk_token": _unknown(extended)}
        special = {name: token for name, token in special.items() if token}
        # For LlamaTokenizer, transformers 5 builds a tokenizer that reads leading spaces differently.
        as_it_is = {"tokenizer_class": "PreTrainedTokenizerFast"}
        made = {"clean_up_tokenization_spaces": False}
        changed[config_file.name] = json_text(made | special | config | as_it_is)
    text = json_text(fields)
    built = _built(path, text)
    difference = first_difference(extended, built)
    expected, found = extended.encode(texts), built.encode_batch(texts, add_special_tokens=False)
    others = (each for each, mine, theirs in zip(texts, expected, found, strict=True) if mine != theirs.ids)
    difference = next(others, None) if difference is None else difference
    if difference is not None:
        what = f"cannot be made to read text as the extended tokenizer.model does: {difference!r}"
        raise UserError(str(path), what, "A letter of a new token may be missing: add it as a token, too.")
    return {"tokenizer.json": text, **changed}


def _unknown(tokenizer: SentencePieceTokenizer) -> str:
    return tokenizer.piece(tokenizer.processor.unk_id())


def _begin_token(tokenizer: SentencePieceTokenizer) -> dict:
    """A post-processor that adds the begin token, as transformers does for a tokenizer.model."""
    begin = tokenizer.bos
    first, second = (
        [{"SpecialToken": {"id": begin, "type_id": kind}}, {"Sequence": {"id": name, "type_id": kind}}]
        for kind, name in enumerate("AB")
    )
    known = {"id": begin, "ids": [tokenizer.control_id(begin)], "tokens": [begin]}
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {begin: known},
    }


def _into_json(folder: Path, texts: Sequence[str]) -> NewTokens:
    """Add tokens to tokenizer.json, and to those files beside it that list added tokens."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(str(folder), "holds neither tokenizer.json nor tokenizer.model")
    old = JsonTokenizer(path)
    _refuse_added_beside(old)
    parts = dict(zip(texts, old.encode(texts), strict=True))
    known = [text for text in texts if old.control_id(text) is not None or len(parts[text]) == 1]
    texts = [text for text in texts if text not in set(known)]
    _refuse_if_none(texts, known)
    _refuse_hiding(texts, old.special_tokens())
    changed = [(text, read) for text in texts if (read := old.normalize(text)) != text]
    if changed:
        problems = [f"{ascii(text)} is read as {ascii(read)}" for text, read in changed]
        raise error_of_all("--tokens", problems, "Give them as they are read.")
    ids = {text: old.vocab_size + number for number, text in enumerate(texts)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    fields = read_json(path)
    fields["added_tokens"] = (fields.get("added_tokens") or []) + [
        {"id": number, "content": text, **plain} for text, number in ids.items()
    ]
    files: dict[str, str | bytes] = {"tokenizer.json": json_text(fields)}
    with in_words(path, "cannot read a text"):
        _prove_added(old, json_text(fields), ids)
    if "added_tokens_decoder" in (config := read_json_if_there(folder / "tokenizer_config.json")):
        decoder = {str(number): {"content": text, **plain} for text, number in ids.items()}
        config["added_tokens_decoder"] |= decoder
        files["tokenizer_config.json"] = json_text(config)
    if listed := read_json_if_there(folder / "added_tokens.json"):
        files["added_tokens.json"] = json_text(listed | ids)
    return NewTokens(old, texts, [parts[text] for text in texts], unreached=[], files=files, known=known)


def _refuse_hiding(texts: Sequence[str], special: Collection[str]) -> None:
    """Raise UserError for tokens that would be found in a rendered conversation in place of a control token.

    A tokenizer takes the leftmost added token: with "x<|" added, it does not find "<|im_end|>" after an x.
    """
    problems = [
        f"{text!r} would hide {token} behind it"
        for text in texts
        for token in sorted(special)
        if token in text or any(token.startswith(text[start:]) for start in range(1, len(text)))
    ]
    if problems:
        raise error_of_all("--tokens", problems, "Leave them out.")


def _prove_added(old: JsonTokenizer, text_of_json: str, ids: dict[str, int]) -> None:
    """Raise UserError unless each token is everywhere encoded as its one id, and other text as before."""
    before, after = tokenizers.Tokenizer.from_file(str(old.path)), _built(old.path, text_of_json)
    for tokenizer in (before, after):
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
    split = [
        repr(text)
        for text, number in ids.items()
        if after.token_to_id(text) == number and after.encode(text, add_special_tokens=False).ids != [number]
    ]
    if split:
        problems = [f"{text} is not encoded as one token" for text in split]
        raise error_of_all("--tokens", problems, "Leave them out.")
    for text, number in ids.items():
        if after.token_to_id(text) != number:
            what = f"has holes in its ids: {text!r} would be {after.token_to_id(text)}, and not {number}"
            raise UserError(str(old.path), what)
        for around in ("a{}b", "我{}你", "x {} y"):
            expected, found = (_back_and_forth(each, around.format(text)) for each in (before, after))
            if found != expected:
                what = f"gives {expected!r} back as {found!r} once {text!r} is an added token"
                fix = "Put the model's SentencePiece tokenizer.model beside it; that can be extended exactly."
                if _is_byte_level(old):  # GPT-2's table has the letters of Latin-1 for bytes
                    fix = "Its decoder takes such letters for bytes: give the token with a space before it."
                raise UserError(str(old.path), what, fix)
    texts = probing_strings(old, PROOF_STRINGS)
    texts = [text for text in texts if not any(token in text for token in ids)]
    batches = (each.encode_batch_fast(texts, add_special_tokens=False) for each in (before, after))
    for text, mine, theirs in zip(texts, *batches, strict=True):
        if mine.ids != theirs.ids:
            raise UserError(str(old.path), f"would also read other text differently: {text!r}")


def _built(path: Path, text: str) -> tokenizers.Tokenizer:
    with in_words(path, "takes no new tokens"):
        return tokenizers.Tokenizer.from_str(text)


def _back_and_forth(tokenizer: tokenizers.Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer.decode(ids, skip_special_tokens=False)
