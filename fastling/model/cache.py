"""Keys and values of the tokens that a model has read, so that each new token costs a forward of one token.

Each sequence has a row of the cache. Rows in use are always the first ones, so that a step attends over a
plain slice of the cache, without a copy.
Shapes: T tokens of a step, R rows that go on, P positions of a row, L positions in use, N heads,
K kv heads, G = N / K, D head dim.
"""

import torch
from torch import Tensor

from fastling import ops
from fastling.model.llama_config import LlamaConfig

CLEANED_AT_ONCE = 64  # positions


def bytes_per_token(config: LlamaConfig, element_size: int) -> int:
    """2 (keys and values) * layers * kv_heads * head_dim * element_size."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * element_size


class KVCache:
    """`rows` sequences of at most `positions` tokens: rows * positions * bytes_per_token bytes.

    It is allocated when the first keys come, in their dtype: under FSDP the weights have another one.
    """

    def __init__(self, config: LlamaConfig, rows: int, positions: int):
        self.num_layers, self.num_kv_heads = config.num_hidden_layers, config.num_key_value_heads
        self.head_dim, self.rows, self.positions = config.head_dim, rows, positions
        self.storage: Tensor | None = None  # (layers, 2, rows, K, P, D)
        self._cleaned = 0

    def reach(self, length: int, like_TKD: Tensor) -> None:
        """Make the first `length` positions ready to be written, by setting new ones to 0.

        Uninitialised memory may hold NaN or infinity, and the positions that a mask hides are still
        multiplied by 0. The cache is allocated at the first call, like `like_TKD`.
        """
        if self.storage is None:
            shape = (self.num_layers, 2, self.rows, self.num_kv_heads, self.positions, self.head_dim)
            self.storage = like_TKD.new_empty(shape)
        if length > self._cleaned:
            upto = min(self.positions, -(-length // CLEANED_AT_ONCE) * CLEANED_AT_ONCE)
            self.storage[..., self._cleaned : upto, :] = 0
            self._cleaned = upto

    def copy_rows(self, sources: list[int], targets: list[int], start: int, stop: int) -> None:
        """Copy rows `sources` into rows `targets`, positions `start` to `stop`."""
        device = self.storage.device
        sources_R, targets_R = (torch.tensor(rows, device=device) for rows in (sources, targets))
        for layer in self.storage:  # one by one: what is copied exists twice meanwhile
            part = layer[..., start:stop, :]
            part[:, targets_R] = part[:, sources_R]

    def move_rows(self, source: int, target: int, count: int, stop: int) -> None:
        """Copy `count` rows from row `source` on to row `target` on, the first `stop` positions of each.

        The two ranges of rows must not overlap.
        """
        moved = self.storage[:, :, source : source + count, :, :stop]
        self.storage[:, :, target : target + count, :, :stop] = moved


class CacheStep:
    """One forward over a cache: a token each for the first rows, which go on, then whole new documents.

    Args: `rows_T` and `positions_T` (T,) say where in the cache each token of the stream belongs;
    `lengths` are those of the rows that go on, this token included; `length` is the longest of all,
    new documents included.
    """

    def __init__(self, cache: KVCache, rows_T: Tensor, positions_T: Tensor, lengths: list[int], length: int):
        self.cache, self.num_rows, self.length = cache, len(lengths), length
        num_kv_heads = cache.num_kv_heads
        heads_K = torch.arange(num_kv_heads, device=rows_T.device)
        places_TK = (rows_T[:, None] * num_kv_heads + heads_K) * cache.positions + positions_T[:, None]
        self.places = places_TK.flatten()
        self.longest = max(lengths, default=0)
        self.beyond_R11L: Tensor | None = None
        if min(lengths, default=0) < self.longest:
            positions_L = torch.arange(self.longest, device=rows_T.device)
            self.beyond_R11L = (positions_L > positions_T[: self.num_rows, None])[:, None, None]
        self._mask_R11L: Tensor | None = None

    def attend(
        self,
        layer: int,
        q_TND: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        lengths: list[int] | None,
    ) -> Tensor:
        """Store the tokens' keys and values in the cache; return the attention of their queries, (T, N, D).

        The last three arguments are of the new documents, as in `ops.attention`.
        """
        self.cache.reach(self.length, k_TKD)
        keys, values = self.cache.storage[layer]
        keys.flatten(0, 2).index_copy_(0, self.places, k_TKD.flatten(0, 1))
        values.flatten(0, 2).index_copy_(0, self.places, v_TKD.flatten(0, 1))
        rows = self.num_rows
        if rows == len(q_TND):
            return self._go_on(q_TND, keys, values)
        begun = (x[rows:] for x in (q_TND, k_TKD, v_TKD))
        begun_TND = ops.attention(*begun, cu_seqlens, max_seqlen, lengths=lengths)
        if not rows:
            return begun_TND
        return torch.cat([self._go_on(q_TND[:rows], keys, values), begun_TND])

    def _go_on(self, q_RND: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention (R, N, D) of rows that are continued. The G query heads of a kv head are passed as G
        queries of one head, so that keys and values are not copied."""
        keys_RKLD, values_RKLD = (x[: self.num_rows, :, : self.longest] for x in (keys, values))
        q_RKGD = q_RND.unflatten(1, (keys_RKLD.shape[1], -1))
        if self.beyond_R11L is not None and self._mask_R11L is None:  # once for all layers
            zeros = torch.zeros(self.beyond_R11L.shape, dtype=q_RND.dtype, device=q_RND.device)
            self._mask_R11L = zeros.masked_fill(self.beyond_R11L, float("-inf"))
        out_RKGD = ops.plain_attention(q_RKGD, keys_RKLD, values_RKLD, attn_mask=self._mask_R11L)
        return out_RKGD.flatten(1, 2)
