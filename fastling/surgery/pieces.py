"""Adds pieces to a SentencePiece BPE model, with the further pieces that are needed to merge them.

BPE makes a piece by merging two pieces at a time, starting from letters. A word of three old pieces is only
made if two of them form a piece as well, which is called their joint. A letter that is not a piece is encoded
as bytes, which never merge.
"""

import copy
from collections.abc import Sequence

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from fastling.errors import UserError

NORMAL = ModelProto.SentencePiece.NORMAL
MOST_ROUNDS = 64
"""Most rounds of adding a joint to each piece that needs one; a piece of n parts needs about n rounds."""
_SHOWN = 3


def error_of_all(where: str, problems: Sequence[str], fix: str) -> UserError:
    """An error that names the first few of many problems, and how many more there are."""
    shown = [*problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        shown.append(f"... and {len(problems) - _SHOWN:,} more")
    return UserError(where, "\n  ".join(shown), fix)


def as_inside_a_text(model: ModelProto) -> sentencepiece.SentencePieceProcessor:
    """A processor that encodes text as if it were inside a longer text: it puts no space before it."""
    model = copy.deepcopy(model)
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def with_pieces(model: ModelProto, pieces: Sequence[str]) -> ModelProto:
    """The model with further pieces, of lower scores than all old ones, so that old merges come first."""
    extended = copy.deepcopy(model)
    lowest = min(piece.score for piece in model.pieces)
    # Scores are float32 and must differ. LLaMA's lowest is -1e9, to which a step of 1 makes no difference.
    step = max(1.0, abs(lowest) * 2**-22)
    for number, piece in enumerate(pieces, 1):
        extended.pieces.add(piece=piece, score=lowest - number * step, type=NORMAL)
    extended.trainer_spec.vocab_size = len(extended.pieces)
    return extended


def unreached_pieces(model: ModelProto, pieces: Sequence[str]) -> list[str]:
    """The pieces whose own text is not encoded as the piece."""
    found = as_inside_a_text(model).encode(list(pieces), out_type=str)
    return [piece for piece, parts in zip(pieces, found, strict=True) if parts != [piece]]


def extended_to_reach(model: ModelProto, pieces: Sequence[str]) -> tuple[ModelProto, list[str]]:
    """(the model with further pieces, each of which its own text is encoded as; the helper pieces that this
    took).

    Helpers are letters of the pieces that the model lacks, and joints of two parts of a piece. Raises
    UserError for pieces whose text the model reads as another text.
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
