"""Pieces of a SentencePiece BPE model: more of them, and what a list of words needs to be merged at all.

BPE makes a piece by merging two pieces at a time, of letters first. A word of three old pieces is never
made unless two of them are a piece, too: their joint. A letter that is no piece is made of bytes, which
merge with nothing.
"""

import copy
from collections.abc import Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from fastling.errors import UserError

BPE, NORMAL = 2, 1
"""Kinds of a model and of a piece."""
MOST_ROUNDS = 64
"""Of adding a joint to each piece that lacks one; a piece of as many parts takes as many."""
_SHOWN = 3


def error_of_all(where: str, problems: Sequence[str], fix: str) -> UserError:
    """An error that names the first few of many problems, and how many more there are."""
    shown = [*problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        shown.append(f"... and {len(problems) - _SHOWN:,} more")
    return UserError(where, "\n  ".join(shown), fix)


def parse_model(serialized: bytes) -> sentencepiece_model.ModelProto:
    """A model as a message whose pieces can be read and added to."""
    model = sentencepiece_model.ModelProto()
    model.ParseFromString(serialized)
    return model


def as_inside_a_text(model: sentencepiece_model.ModelProto) -> sentencepiece.SentencePieceProcessor:
    """Encodes a piece as it stands inside a text: without the space before a first word."""
    model = copy.deepcopy(model)
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def with_pieces(
    model: sentencepiece_model.ModelProto, pieces: Sequence[str]
) -> sentencepiece_model.ModelProto:
    """A model with more pieces, of lower score than all it had, so that old merges come first."""
    extended = copy.deepcopy(model)
    lowest = min((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)
    # Scores are float32, and LLaMA's lowest is -1e9, beside which 1 is nothing: equal ones have no order.
    step = max(1.0, abs(lowest) * 2**-22)
    for number, piece in enumerate(pieces, 1):
        extended.pieces.add(piece=piece, score=lowest - number * step, type=NORMAL)
    extended.trainer_spec.vocab_size = len(extended.pieces)
    return extended


def unreached_pieces(model: sentencepiece_model.ModelProto, pieces: Sequence[str]) -> list[str]:
    """The pieces that do not come out of their own text."""
    found = as_inside_a_text(model).encode(list(pieces), out_type=str)
    return [piece for piece, parts in zip(pieces, found, strict=True) if parts != [piece]]


def extended_to_reach(
    model: sentencepiece_model.ModelProto, pieces: Sequence[str]
) -> tuple[sentencepiece_model.ModelProto, list[str]]:
    """A model with more pieces, each of which comes out of its own text; and what that took besides.

    Those are the letters of theirs that the model lacks, and joints of two parts of a piece. Raises
    UserError for pieces whose text the model reads as another.
    """
    held = {piece.piece for piece in model.pieces} | set(pieces)
    letters = dict.fromkeys(letter for piece in pieces for letter in piece if letter not in held)
    helpers = list(letters)
    for _ in range(MOST_ROUNDS):
        extended = with_pieces(model, [*pieces, *helpers])
        unreached = unreached_pieces(extended, [*pieces, *helpers])
        if not unreached:
            return extended, helpers
        found = as_inside_a_text(extended).encode(unreached, out_type=str)
        parts = dict(zip(unreached, found, strict=True))
        if misread := [piece for piece in pieces if piece in parts and "".join(parts[piece]) != piece]:
            break
        helpers += dict.fromkeys("".join(each[:2]) for each in parts.values())
    problems = [f"{piece!r} is read as {' + '.join(parts[piece])}" for piece in misread or unreached]
    raise error_of_all("--tokens", problems, "No vocabulary makes one token of these here: leave them out.")
