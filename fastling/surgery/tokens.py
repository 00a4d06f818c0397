"""New tokens in a folder's tokenizer, with every old id kept, proved before anything is written.

SentencePiece BPE (LLaMA 1 and 2): the tokens become pieces of the model itself, of lower score than all
old ones, and tokenizer.json is built anew and proved equal to it. Merges only make pieces that occur in
the text, so text that contains no new token keeps its ids. Added tokens would not do here: after each of
them such a tokenizer reads a space that is not there.

Byte-level tokenizer.json (Llama 3, Qwen): the tokens become added tokens, matched as plain content.
"""

import copy
import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from fastling.data.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from fastling.data.tokenizer_export import exact_tokenizer_json, first_difference, probing_strings
from fastling.errors import UserError
from fastling.files import read_json

_BPE, _NORMAL = 2, 1
PROOF_STRINGS = 2000
"""On which a tokenizer.json with added tokens is compared with itself before."""


@dataclass(frozen=True)
class NewTokens:
    """Tokens for a vocabulary: their text, the files that know them, and what they were made of before."""

    old: Tokenizer
    texts: list[str]
    parts: list[list[int]]
    """Old ids of the pieces that each token's text was until now."""
    unreached: list[str]
    """Pieces that their own text does not come out as; other text still may."""
    files: dict[str, str | bytes]
    """Name -> content of the tokenizer files that change."""

    @property
    def first_id(self) -> int:
        return self.old.vocab_size

    def byte_parts(self) -> list[list[int]]:
        """Old ids of the single UTF-8 bytes of each token's text. Raises UserError where there are none."""
        spellings = [f"<0x{byte:02X}>" for byte in range(256)]
        if isinstance(self.old, JsonTokenizer) and "ByteLevel" in json.dumps(self.old.fields.get("decoder")):
            spellings = _byte_level_letters()
        ids = [self.old.control_id(spelling) for spelling in spellings]
        parts = [[ids[byte] for byte in text.encode("utf-8")] for text in self.texts]
        if any(None in each for each in parts):
            raise UserError(str(self.old.path), "has no tokens for single bytes", "Use another --init.")
        return parts


@functools.cache
def _byte_level_letters() -> list[str]:
    """The letter that byte-level vocabularies spell each byte with (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def read_token_file(path: Path) -> list[str]:
    """One token a line, blanks included; empty lines are skipped. Raises UserError for what is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError("--tokens", f"cannot be read: {path}: {error}") from None
    tokens = [line.removesuffix("\r") for line in lines if line.removesuffix("\r")]
    if not tokens:
        raise UserError(str(path), "holds no token", "Give one token a line.")
    seen: set[str] = set()
    for number, token in enumerate(tokens, 1):
        if token in seen or not token.strip():
            what = f"is given twice: {token!r}" if token in seen else f"is nothing but blanks: {token!r}"
            raise UserError(str(path), f"token {number} {what}", "Remove it.")
        seen.add(token)
    return tokens


def add_tokens(folder: Path, texts: Sequence[str]) -> NewTokens:
    """Tokens given as text. Raises UserError for one that the vocabulary has, or cannot reach."""
    model = _sentencepiece_model(folder)
    if model is None:
        return _into_json(folder, texts)
    pieces = [text.replace(" ", "▁") for text in texts]
    extended, unreached = _extended(model, pieces)
    letters = {piece.piece for piece in extended.pieces}
    for text, piece in zip(texts, pieces, strict=True):
        # SentencePiece merges letters that it has no piece for; a tokenizer.json makes bytes of them first.
        if lacking := [letter for letter in piece if letter not in letters]:
            what = f"{text!r} has a letter that is no token itself: {lacking[0]}"
            raise UserError("--tokens", what, "Add the letter as a token, too, or leave it out.")
    if unreached:
        found = " + ".join(_alone(extended).encode(unreached[0], out_type=str))
        what = f"{unreached[0]!r} cannot be reached by merging two pieces at a time; it comes out as {found}"
        raise UserError("--tokens", what, "Add the joint of two of these as a token, too, or leave it out.")
    return _into_sentencepiece(folder, model, extended, unreached, pieces)


def add_pieces(folder: Path, pieces_file: Path) -> NewTokens:
    """The ordinary pieces of another SentencePiece BPE model that a folder's own lacks, in its order."""
    model = _sentencepiece_model(folder)
    if model is None:
        fix = "Such a vocabulary takes --tokens."
        raise UserError("--pieces", f"the tokenizer of {folder} is no SentencePiece model", fix)
    other = _parse(SentencePieceTokenizer(pieces_file).processor.serialized_model_proto())
    if other.trainer_spec.model_type != _BPE:
        raise UserError("--pieces", f"is no BPE model: {pieces_file}", "Pieces of other kinds do not merge.")
    held = {piece.piece for piece in model.pieces}
    pieces = [piece.piece for piece in other.pieces if piece.type == _NORMAL and piece.piece not in held]
    if not pieces:
        raise UserError("--pieces", f"holds no piece that the vocabulary lacks: {pieces_file}")
    return _into_sentencepiece(folder, model, *_extended(model, pieces), pieces=pieces)


def _sentencepiece_model(folder: Path):
    """A folder's tokenizer.model as a message; None where its tokenizer.json is all that counts."""
    path = folder / "tokenizer.model"
    if not path.is_file():
        return None
    try:
        tokenizer = SentencePieceTokenizer(path)
    except UserError:
        if (folder / "tokenizer.json").is_file():  # Llama 3's tokenizer.model is a tiktoken file
            return None
        raise
    model = _parse(tokenizer.processor.serialized_model_proto())
    if model.trainer_spec.model_type != _BPE:
        raise UserError(str(path), "is no BPE model", "A Unigram vocabulary cannot be extended exactly.")
    known = load_tokenizer(folder).vocab_size
    if known != len(model.pieces):
        what = f"has {len(model.pieces)} pieces, and tokenizer.json beside it knows {known} tokens"
        raise UserError(str(path), what, "Extend the base model, before tokens are added to it.")
    return model


def _parse(serialized: bytes):
    model = sentencepiece_model.ModelProto()
    model.ParseFromString(serialized)
    return model


def _alone(model) -> sentencepiece.SentencePieceProcessor:
    """Encodes a piece as it stands inside a text: without the space before a first word."""
    model = copy.deepcopy(model)
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def _extended(model, pieces: list[str]) -> tuple:
    """A model with more pieces, of lower score than all it had; and those that do not come out alone."""
    ids = {piece.piece: number for number, piece in enumerate(model.pieces)}
    extended = copy.deepcopy(model)
    lowest = min((piece.score for piece in model.pieces if piece.type == _NORMAL), default=0.0)
    for number, piece in enumerate(pieces, 1):
        if piece in ids:
            raise UserError(
                "--tokens", f"{piece!r} is in the vocabulary already, as {ids[piece]}", "Remove it."
            )
        extended.pieces.add(piece=piece, score=lowest - number, type=_NORMAL)
    extended.trainer_spec.vocab_size = len(extended.pieces)
    found = _alone(extended).encode(pieces)
    first = len(model.pieces)
    return extended, [piece for number, piece in enumerate(pieces) if found[number] != [first + number]]


def _into_sentencepiece(folder: Path, model, extended, unreached: list[str], pieces: list[str]) -> NewTokens:
    serialized = extended.SerializeToString()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.model"
        path.write_bytes(serialized)
        changed = _json_files(
            folder, SentencePieceTokenizer(path), [piece.replace("▁", " ") for piece in pieces]
        )
    return NewTokens(
        old=load_tokenizer(folder),
        texts=[piece.replace("▁", " ") for piece in pieces],
        parts=_alone(model).encode(pieces),
        unreached=unreached,
        files={"tokenizer.model": serialized, **changed},
    )


def _json_files(folder: Path, extended: SentencePieceTokenizer, texts: list[str]) -> dict[str, str | bytes]:
    """tokenizer.json for an extended model: the folder's own with new pieces and merges, or a new one.

    Raises UserError where it does not read text as the model does.
    """
    fields = json.loads(exact_tokenizer_json(extended, ()))
    path, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    changed: dict[str, str | bytes] = {}
    if path.is_file():
        fields = read_json(path) | {"model": fields["model"]}
    else:
        config = _fields_of(config_file)
        if extended.bos and config.get("add_bos_token", True):
            fields["post_processor"] = _begin_token(extended)
        special = {"bos_token": extended.bos, "eos_token": extended.eos, "unk_token": _unknown(extended)}
        special = {name: token for name, token in special.items() if token}
        made = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        changed[config_file.name] = _json(made | special | config)
    text = _json(fields)
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
    """What puts the begin token before a text, as transformers does for a tokenizer.model by itself."""
    begin, one, two = (
        tokenizer.bos,
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    first, second = ({"SpecialToken": {"id": begin, "type_id": kind}} for kind in (0, 1))
    ids = [tokenizer.control_id(begin)]
    return {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, second, two],
        "special_tokens": {begin: {"id": begin, "ids": ids, "tokens": [begin]}},
    }


def _into_json(folder: Path, texts: Sequence[str]) -> NewTokens:
    """Added tokens in tokenizer.json and in the files beside it that list such."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(str(folder), "holds neither tokenizer.json nor tokenizer.model")
    old = JsonTokenizer(path)
    parts = old.encode(texts)
    for text, ids in zip(texts, parts, strict=True):
        known = old.control_id(text)
        if known is not None or len(ids) == 1:
            number = ids[0] if known is None else known
            raise UserError("--tokens", f"{text!r} is in the vocabulary already, as {number}", "Remove it.")
    ids = {text: old.vocab_size + number for number, text in enumerate(texts)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    fields = read_json(path)
    fields["added_tokens"] = (fields.get("added_tokens") or []) + [
        {"id": number, "content": text, **plain} for text, number in ids.items()
    ]
    files: dict[str, str | bytes] = {"tokenizer.json": _json(fields)}
    _prove_added(old, _json(fields), ids)
    for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("added_tokens.json", None)):
        listed = _fields_of(folder / name)
        if key in listed:
            listed[key] |= {str(number): {"content": text, **plain} for text, number in ids.items()}
            files[name] = _json(listed)
        elif key is None and listed:
            files[name] = _json(listed | ids)
    return NewTokens(old=old, texts=list(texts), parts=parts, unreached=[], files=files)


def _prove_added(old: JsonTokenizer, text_of_json: str, ids: dict[str, int]) -> None:
    """Raise UserError unless each token is one id, wherever it stands, and all other text is unharmed."""
    before, after = tokenizers.Tokenizer.from_file(str(old.path)), _built(old.path, text_of_json)
    for tokenizer in (before, after):
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
    for text, number in ids.items():
        if after.token_to_id(text) != number:
            what = f"has holes in its ids: {text!r} would be {after.token_to_id(text)}, and not {number}"
            raise UserError(str(old.path), what)
        if after.encode(text, add_special_tokens=False).ids != [number]:
            raise UserError("--tokens", f"{text!r} does not come out as one token", "Leave it out.")
        for around in ("a{}b", "我{}你", "x {} y"):
            expected, found = (_back_and_forth(each, around.format(text)) for each in (before, after))
            if found != expected:
                what = f"gives {expected!r} back as {found!r} once {text!r} is an added token"
                fix = "Put the model's SentencePiece tokenizer.model beside it; that can be extended exactly."
                raise UserError(str(old.path), what, fix)
    texts = probing_strings(old, PROOF_STRINGS)
    texts = [text for text in texts if not any(token in text for token in ids)]
    batches = (each.encode_batch_fast(texts, add_special_tokens=False) for each in (before, after))
    for text, mine, theirs in zip(texts, *batches, strict=True):
        if mine.ids != theirs.ids:
            raise UserError(str(old.path), f"would read other text differently, too: {text!r}")


def _built(path: Path, text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise UserError(str(path), f"takes no new tokens: {str(error)[:200]}") from None


def _fields_of(path: Path) -> dict:
    """What a JSON file beside a tokenizer says; nothing where there is none."""
    return read_json(path) if path.is_file() else {}


def _back_and_forth(tokenizer: tokenizers.Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer.decode(ids, skip_special_tokens=False)


def _json(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
