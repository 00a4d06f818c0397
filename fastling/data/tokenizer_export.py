"""An exact tokenizer.json for the tokenizer a model was trained with, proved string by string.

transformers 5 rebuilds a SentencePiece `.model` on its own and reads many texts differently (leading
spaces, Unigram models, no begin token), without a word. So the file is built here, from the model's
own pieces and rules, and compared with SentencePiece on ten thousand strings, or not written at all.

The chat template writes the begin token, so a file built here adds none of its own: text that was rendered
has one, however it is tokenized. A tokenizer.json that came with the model goes on adding it to bare texts:
llama.cpp's converter knows a tokenizer by the ids of one text, the begin token among them, and would take
Llama 3's without it for another, which reads hundreds of words differently. Servers add none to a chat.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from fastling.data.normalization import steps_of
from fastling.data.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer
from fastling.errors import UserError

PROOF_STRINGS = 10_000
_Piece = ModelProto.SentencePiece


def exact_tokenizer_json(tokenizer: Tokenizer, control_tokens: Sequence[str]) -> str:
    """Text of a tokenizer.json that encodes exactly as `tokenizer` does.

    Raises UserError, with the first string that differs, where there is none.
    """
    if isinstance(tokenizer, JsonTokenizer):
        built = _from_json(tokenizer, [*control_tokens, *tokenizer.reserved])
    else:
        built = _from_sentencepiece(tokenizer, control_tokens)
    text = built.to_str(pretty=True)
    difference = first_difference(tokenizer, tokenizers.Tokenizer.from_str(text), control_tokens)
    if difference is not None:
        raise UserError(
            f"export of {tokenizer.path}",
            f"no exact tokenizer.json can be built; it differs on {difference!r}",
            "A model exported with it would read text differently from how it was trained.",
        )
    return text


def check_doubtful_kinds(tokenizer: Tokenizer, control_tokens: Sequence[str]) -> None:
    """Raise UserError if a SentencePiece model of a doubtful kind has no exact tokenizer.json.

    Only kinds that may have none are tried here. The proof takes seconds, which models of the usual kinds do
    not need before they are exported.
    """
    if isinstance(tokenizer, JsonTokenizer):
        return
    proto = model_proto(tokenizer)
    if (
        proto.trainer_spec.model_type not in (TrainerSpec.BPE, TrainerSpec.UNIGRAM)
        or proto.trainer_spec.treat_whitespace_as_suffix
        or proto.normalizer_spec.precompiled_charsmap  # NFKC and its kin
        or any(piece.type == _Piece.USER_DEFINED for piece in proto.pieces)
    ):
        exact_tokenizer_json(tokenizer, control_tokens)


def model_proto(tokenizer: SentencePieceTokenizer) -> ModelProto:
    """The model as a protobuf message: its pieces with their kinds and scores, and its rules."""
    return ModelProto.FromString(tokenizer.processor.serialized_model_proto())


def _from_json(tokenizer: JsonTokenizer, control_tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """The same tokenizer.json, with control tokens marked special, adding at most the begin token."""
    built = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.fields))
    built.no_padding()
    built.no_truncation()
    if not adds_what_it_may(tokenizer, built):
        built = tokenizers.Tokenizer.from_str(
            json.dumps(json.loads(built.to_str()) | {"post_processor": None})
        )
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control_tokens])
    return built


def adds_what_it_may(tokenizer: Tokenizer, built: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer.json for export adds nothing to a bare text, or only the begin token before it."""
    plain, found = (built.encode("a", add_special_tokens=added).ids for added in (False, True))
    may_begin = isinstance(tokenizer, JsonTokenizer) and tokenizer.bos is not None
    return found == plain or (may_begin and found == [tokenizer.control_id(tokenizer.bos), *plain])


def _from_sentencepiece(
    tokenizer: SentencePieceTokenizer, control_tokens: Sequence[str]
) -> tokenizers.Tokenizer:
    proto = model_proto(tokenizer)
    kind = proto.trainer_spec.model_type
    if kind not in (TrainerSpec.BPE, TrainerSpec.UNIGRAM):
        raise UserError(str(tokenizer.path), "is neither a BPE nor a Unigram model: it cannot be exported")
    built = tokenizers.Tokenizer(_bpe(proto) if kind == TrainerSpec.BPE else _unigram(proto))
    built.normalizer = _normalizer(proto.normalizer_spec)
    if kind == TrainerSpec.UNIGRAM and proto.trainer_spec.byte_fallback:
        # "<0x4F>" in a text is six characters, not a byte: it is cut at "<" so that no such piece is found.
        built.pre_tokenizer = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    built.decoder = decoders.Sequence(steps)
    for piece in proto.pieces:
        if piece.type in (_Piece.CONTROL, _Piece.UNKNOWN) or piece.piece in control_tokens:
            built.add_special_tokens([AddedToken(piece.piece, special=True, normalized=False)])
        elif piece.type == _Piece.USER_DEFINED:
            built.add_tokens([AddedToken(piece.piece, special=False, normalized=False)])
    return built


def _bpe(proto) -> models.BPE:
    """SentencePiece merges the pair whose joint piece scores highest, so merges are listed by that score."""
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    mergeable = {
        piece.piece
        for piece in proto.pieces
        if piece.type in (_Piece.NORMAL, _Piece.USER_DEFINED, _Piece.UNUSED)
    }
    merges = []
    for piece in proto.pieces:
        if piece.type != _Piece.NORMAL:
            continue
        text = piece.piece
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        found = [pair for pair in splits if pair[0] in mergeable and pair[1] in mergeable]
        found.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(piece.score, pair) for pair in found]
    merges.sort(key=lambda scored: -scored[0])
    return models.BPE(
        vocab=ids,
        merges=[pair for _, pair in merges],
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _unigram(proto) -> models.Unigram:
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(
        pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback
    )


def _normalizer(spec) -> normalizers.Normalizer:
    first_space = [normalizers.Prepend("▁")] if spec.add_dummy_prefix else []
    steps = [*steps_of(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        # At the end SentencePiece looks for spaces after it has replaced them.
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A +|[ ▁]+\z"), "")]
        steps += first_space
    else:  # a text of which the table leaves nothing still has its first space
        steps = first_space + steps
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    return normalizers.Sequence(steps)


def sentencepiece_file(tokenizer: Tokenizer) -> Path | None:
    """The SentencePiece model of a tokenizer: its own file, or the one beside its tokenizer.json.

    None if there is none, or if the one beside has other pieces or reads text differently, as it does once
    tokens were added to the tokenizer.json alone.
    """
    if not isinstance(tokenizer, JsonTokenizer):
        return tokenizer.path
    path = tokenizer.path.with_name("tokenizer.model")
    try:
        beside = SentencePieceTokenizer(path)
    except UserError:  # not there; or Llama 3's, which is no such file
        return None
    if beside.vocab_size != tokenizer.vocab_size or any(
        beside.piece(number) != tokenizer.piece(number) for number in range(beside.vocab_size)
    ):
        return None
    texts = probing_strings(beside)
    return path if beside.encode(texts) == tokenizer.encode(texts) else None


def first_difference(
    reference: Tokenizer, built: tokenizers.Tokenizer, control_tokens: Sequence[str] = ()
) -> str | None:
    """The first of many probing strings that the two encode differently; None if there is none.

    Texts between two control tokens are compared as well: there, too, each must be encoded by itself.
    """
    special = {token.content for token in built.get_added_tokens_decoder().values() if token.special}
    texts = [text for text in probing_strings(reference) if not any(token in text for token in special)]
    expected = reference.encode(texts)
    found = built.encode_batch_fast(texts, add_special_tokens=False)
    for text, mine, theirs in zip(texts, expected, found, strict=True):
        if mine != theirs.ids:
            return text
    for token in control_tokens:
        token_id = reference.control_id(token)
        between = [f"{token}{text}{token}" for text in texts[:500]]
        found = built.encode_batch_fast(between, add_special_tokens=False)
        for text, mine, theirs in zip(between, expected, found, strict=False):
            if [token_id, *mine, token_id] != theirs.ids:
                return text
    return None


_FRAGMENTS = [
    " ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", "\u3000", "\u00a0", "\u200b", "▁", "\x00", "\x7f",
    "Hello", "world", "the", "ing", "2026", "3.14", "1,000", "e", "É", "ß", "ü", "ﬁ", "Å", "İ", "don't", "'s",
    "http://x.org/?a=b", "def f(x):", "### Instruction:", "```", "...", "…", "—", "“", "”", "?!", "，", "。",
    "；", "你好", "翻译", "中国", "龘", "𠮷", "日本語", "カタカナ", "한국어", "Привет", "مرحبا", "नमस्ते",
    "ไทย", "עברית", "😀", "👩‍👩‍👧", "🇩🇪", "🏳️‍🌈", "e\u0301", "\u0301", "½", "①", "ａ", "％", "<", ">", "|",
    "[INST]", "<<SYS>>", "</",
]  # fmt: skip


def probing_strings(tokenizer: Tokenizer, count: int = PROOF_STRINGS) -> list[str]:
    """Strings that tokenizers are known to disagree on, the same ones every time."""
    draw = random.Random(0)
    pieces = [tokenizer.piece(number).replace("▁", " ") for number in range(tokenizer.vocab_size)]
    texts = list(_FRAGMENTS)
    while len(texts) < count:
        source = draw.choice((_FRAGMENTS, pieces, None))
        if source is None:
            low, high = draw.choice(
                ((32, 127), (0x4E00, 0x9FFF), (0xA0, 0x24F), (0x1F300, 0x1F6FF), (1, 0x3000))
            )
            parts = [chr(draw.randint(low, high)) for _ in range(draw.randint(1, 12))]
        else:
            parts = [draw.choice(source) for _ in range(draw.randint(1, 10))]
        texts.append(draw.choice(("", " ")).join(parts))
    return texts
