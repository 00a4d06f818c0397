"""Which conversations are held out, where a config holds out a share of its training data."""

import hashlib
import json
from dataclasses import dataclass

from fastling.data.conversation import Conversation


@dataclass(frozen=True)
class Part:
    """One of the two parts of some conversations: those that are held out, or those that are trained on.

    A conversation's own text decides, so that its copies are all in one part, and so that it stays where it
    is when others are added, in any order.
    """

    held_out_share: float = 0.0
    """Expected share of the conversations that are held out, from 0 to 1."""
    is_held_out: bool = False

    def has(self, conversation: Conversation) -> bool:
        """Whether a conversation belongs to this part."""
        if not self.held_out_share:  # then hashing would take time for nothing
            return not self.is_held_out
        text = json.dumps([conversation.system, conversation.turns])  # all ASCII, a lone surrogate too
        digest = hashlib.blake2b(text.encode("ascii"), digest_size=8).digest()
        return (int.from_bytes(digest, "little") < self.held_out_share * 2**64) == self.is_held_out


WHOLE = Part()
"""All conversations."""
