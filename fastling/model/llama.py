"""The LLaMA family (LLaMA, Mistral, Qwen2, Qwen3) on one flat stream of packed documents.

In: tokens (T,) and where each document begins. Out: logits, or the loss of the supervised rows.
There is no batch dimension and no padding mask. Modules are named as in Hugging Face, except for
the two fused projections `qkv_proj` (rows: q, k, v) and `gate_up_proj` (rows: gate, up).
Shapes: T packed tokens, H hidden, N heads, K kv heads, M = N + 2K, D head dim, F ffn, V vocab,
S supervised rows, P positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastling import ops
from fastling.model.cache import CacheStep
from fastling.model.llama_config import LlamaConfig
from fastling.model.rotary import rotary_tables


# Not frozen: of a frozen one that goes into a recomputed layer torch.compile (2.11) looks at every field, and
# would make a new graph for each number of lengths.
@dataclass
class Documents:
    """The borders of the documents in the stream, and the rotary tables, which stay float32."""

    positions_T: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    lengths: list[int] | None
    cos: Tensor
    sin: Tensor
    cache: CacheStep | None = None
    """In generation: keys and values of earlier tokens. The borders above are then only of new documents."""


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight.to(x.dtype), self.eps)

    def after_add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return (norm of x + residual, x + residual)."""
        return ops.add_rms_norm(x, residual, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer_number: int):
        super().__init__()
        self.layer_number = layer_number
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, q_size + 2 * kv_size, bias=config.qkv_bias)
        self.o_proj = Linear(q_size, config.hidden_size, bias=config.attention_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, hidden_TH: Tensor, documents: Documents, rows_S: Tensor | None = None) -> Tensor:
        """Return (S, H) for the rows wanted, or (T, H) for all; attention sees all rows in either case."""
        qkv_TMD = self.qkv_proj(hidden_TH).unflatten(-1, (-1, self.head_dim))
        tables = (documents.cos, documents.sin, documents.positions_T)
        if self.qk_norm:
            heads = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
            q_TND, k_TKD, v_TKD = qkv_TMD.split(heads, dim=1)
            q_TND, k_TKD = ops.rotary(self.q_norm(q_TND), self.k_norm(k_TKD), *tables)
        else:
            q_TND, k_TKD, v_TKD = ops.rotary_qkv(qkv_TMD, self.num_heads, self.num_kv_heads, *tables)
        bounds = (documents.cu_seqlens, documents.max_seqlen)
        if documents.cache is None:
            out_TND = ops.attention(q_TND, k_TKD, v_TKD, *bounds, lengths=documents.lengths)
        else:
            qkv = (q_TND, k_TKD, v_TKD)
            out_TND = documents.cache.attend(self.layer_number, *qkv, *bounds, documents.lengths)
        return self.o_proj(take_rows(out_TND.flatten(1), rows_S))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        hidden, ffn, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = Linear(hidden, 2 * ffn, bias=bias)
        self.down_proj = Linear(ffn, hidden, bias=bias)

    def forward(self, hidden_TH: Tensor) -> Tensor:
        return self.down_proj(ops.swiglu(self.gate_up_proj(hidden_TH)))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, layer_number: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_number)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden_TH: Tensor, documents: Documents, rows_S: Tensor | None = None) -> Tensor:
        """Return (T, H), or (S, H) if only the rows `rows_S` are wanted."""
        attended_SH = self.self_attn(self.input_layernorm(hidden_TH), documents, rows_S)
        residual_SH = take_rows(hidden_TH, rows_S)
        normed_SH, residual_SH = self.post_attention_layernorm.after_add(attended_SH, residual_SH)
        return residual_SH + self.mlp(normed_SH)


def take_rows(x_TH: Tensor, rows_S: Tensor | None) -> Tensor:
    return x_TH if rows_S is None else x_TH.index_select(0, rows_S)


class Llama(nn.Module):
    """The whole model. Everything runs inside `forward`, where FSDP has gathered the weights.

    A model built by `on_meta` needs `to_empty` and then weights or `reset_parameters`; one built on a real
    device is initialised at once.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        """Dtype of activations and products; None for that of the weights."""
        device = torch.get_default_device()
        with torch.device("meta"):  # nn.Linear would draw random numbers that nobody wants
            embeddings = torch.empty(config.vocab_size, config.hidden_size)
            self.model = nn.ModuleDict(
                {
                    # nn.Embedding(...) would draw even on meta, and import PyTorch's compiler for that.
                    "embed_tokens": nn.Embedding.from_pretrained(embeddings, freeze=False),
                    "layers": nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers)),
                    "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
                }
            )
            if not config.tie_word_embeddings:
                self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            for name in ("rotary_cos", "rotary_sin"):
                table = torch.empty(config.max_position_embeddings, config.head_dim // 2)
                self.register_buffer(name, table, persistent=False)
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters()

    @classmethod
    def on_meta(cls, config: LlamaConfig) -> "Llama":
        """Return the model on the meta device: names and shapes without memory."""
        with torch.device("meta"):
            return cls(config)

    @property
    def head_weight(self) -> Tensor:
        """The head's weight (V, H); it is the embedding's where the two are tied."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return head.weight

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        *,
        positions: Tensor | None = None,
        max_seqlen: int | None = None,
        lengths: list[int] | None = None,
        labels: Tensor | None = None,
        loss_index: Tensor | None = None,
        weights: Tensor | None = None,
        logit_index: Tensor | None = None,
        cache: CacheStep | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return (loss, nll) given labels, else logits.

        Args:
            tokens: (T,) int64; cu_seqlens: (documents + 1,) int32, from 0 to T.
            positions: (T,) int32, restarting at each document; max_seqlen: the longest document;
                lengths: of all documents. What is left out is derived, and costs a device sync.
            labels, weights: (S,) int64 and float32 of the rows loss_index (S,) int64: the loss is
                the float32 sum of weights * nll, beside nll (S,) float32 detached.
            logit_index: rows whose logits are wanted; None for all, (T, V).
            cache: keys and values of earlier tokens. The stream then begins with one token for each
                document that goes on; cu_seqlens, max_seqlen and lengths are of those after it, which
                begin; positions are of all.

        Raises UserError if a document is longer than the model can take.
        """
        documents = self._documents(tokens, cu_seqlens, positions, max_seqlen, lengths, cache)
        *layers, last_layer = self.model.layers
        hidden_TH = self.model.embed_tokens(tokens)
        hidden_TH = hidden_TH.to(self.compute_dtype or hidden_TH.dtype)
        for layer in layers:
            hidden_TH = layer(hidden_TH, documents)
        # What comes after the last attention, the head included, runs on the wanted rows only.
        wanted = logit_index if labels is None else loss_index
        hidden_SH = self.model.norm(last_layer(hidden_TH, documents, wanted))
        if labels is None:
            return ops.linear(hidden_SH, self.head_weight.to(hidden_SH.dtype), None)
        return ops.linear_cross_entropy(hidden_SH, self.head_weight.to(hidden_SH.dtype), labels, weights)

    def logits(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return the logits (T, V) of every token. Both may be of int64 or int32.

        Raises ValueError for tokens that are not the vocabulary's, and borders that are not the tokens'.
        """
        _check_stream(tokens, cu_seqlens, self.config.vocab_size)
        return self(tokens, cu_seqlens.int())

    def loss(self, batch) -> Tensor:
        """Return the float32 loss () of a batch, such as data/batches.py makes.

        Its fields are the arguments of `forward`, except that `labels` (T,) are of all tokens and that
        `lengths` may be missing.
        """
        return self.loss_and_nll(batch)[0]

    def loss_and_nll(self, batch) -> tuple[Tensor, Tensor]:
        """Return the float32 loss () and, detached, the negative log-likelihood (S,) of each row."""
        if batch.labels.shape != batch.tokens.shape:
            shapes = f"{tuple(batch.tokens.shape)}: {tuple(batch.labels.shape)}"
            raise ValueError(f"loss: labels must be of all tokens, {shapes}")
        return self(
            batch.tokens,
            batch.cu_seqlens,
            positions=batch.positions,
            max_seqlen=batch.max_seqlen,
            lengths=getattr(batch, "lengths", None),
            labels=batch.labels[batch.loss_index],
            loss_index=batch.loss_index,
            weights=batch.weights,
        )

    def _documents(self, tokens, cu_seqlens, positions, max_seqlen, lengths, cache) -> Documents:
        if lengths is None and max_seqlen is None:
            lengths = cu_seqlens.diff().tolist()
        if max_seqlen is None:
            max_seqlen = max(lengths, default=0)
        self.config.check_sequence_length(max_seqlen)
        if positions is None:
            num_tokens = len(tokens)
            starts = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff(), output_size=num_tokens)
            positions = torch.arange(num_tokens, dtype=torch.int32, device=tokens.device) - starts
        tables = (self.rotary_cos, self.rotary_sin)
        return Documents(positions, cu_seqlens, max_seqlen, lengths, *tables, cache)

    def reset_rotary(self) -> None:
        """Compute the rotary tables (P, D/2), in float32 on the model's device."""
        device = self.rotary_cos.device
        self.rotary_cos, self.rotary_sin = (table.to(device) for table in rotary_tables(self.config))

    def _apply(self, fn, recurse=True):
        """PyTorch calls this for every move or cast of a module. The tables are recomputed, since they
        must survive `to_empty` and stay float32 under `.to(torch.bfloat16)`."""
        super()._apply(fn, recurse)
        self.reset_rotary()
        return self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise from scratch: normal(0, initializer_range), norms 1, biases 0.

        Drawn on the CPU from torch's default generator, each tensor whole: one seed gives the same
        model on any device and any number of ranks.
        """
        reshard(self)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                values = torch.full(parameter.shape, float(name.endswith("weight")), device="cpu")
            else:
                values = torch.empty(parameter.shape, device="cpu")
                values.normal_(std=self.config.initializer_range)
            local, start, stop = local_rows(parameter)
            local.copy_(values[start:stop])


def _check_stream(tokens: Tensor, cu_seqlens: Tensor, vocab_size: int) -> None:
    """Raise ValueError for tokens or borders that are wrong.

    This waits for the device, so `forward` does not do it: training makes tokens and borders together.
    """
    if tokens.dim() != 1:
        shape = tuple(tokens.shape)
        raise ValueError(f"logits: tokens must be one stream (T,), with no batch dimension: {shape}")
    for name, given in {"tokens": tokens, "cu_seqlens": cu_seqlens}.items():
        if given.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"logits: {name} must be torch.int64 or torch.int32: {given.dtype}")
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(outside):  # on a GPU the embedding would end the process's use of it
        raise ValueError(f"logits: tokens must be ids from 0 to {vocab_size - 1}: {int(outside[0])}")
    borders = cu_seqlens.tolist() if cu_seqlens.dim() == 1 else []
    if [*borders[:1], *borders[-1:]] != [0, len(tokens)] or borders != sorted(borders):
        words = f"must ascend from 0 to the {len(tokens)} tokens, (D + 1,) for D documents"
        shown = str(borders)[:80] if borders else f"shape {tuple(cu_seqlens.shape)}"
        raise ValueError(f"logits: cu_seqlens {words}: {shown}")


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of an FSDP model, so that its parameters are the shards again.

    After a forward without backward FSDP leaves the root's weights gathered. Until they are resharded,
    `parameters()` shows copies rounded to the compute dtype, and what is written to them is lost. Other
    models are left alone.
    """
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP has wrapped a module; told without its class, which would import all of FSDP."""
    return hasattr(module, "reshard")


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor. A sharded one is gathered, so all ranks must call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_rows(parameter: Tensor) -> tuple[Tensor, int, int]:
    """Return (this rank's tensor, its first row, the row after its last) of any parameter.

    FSDP shards rows as torch.chunk does, and ranks past the end hold none. Call under no_grad.
    """
    if not hasattr(parameter, "placements"):  # only a sharded tensor has them
        return parameter, 0, parameter.shape[0]
    start, stop = 0, parameter.shape[0]
    mesh = parameter.device_mesh
    for mesh_dim, placement in enumerate(parameter.placements):
        if placement.is_shard(0):
            chunk = -(-parameter.shape[0] // mesh.size(mesh_dim))
            start = min(mesh.get_local_rank(mesh_dim) * chunk, parameter.shape[0])
            stop = min(start + chunk, parameter.shape[0])
        elif not placement.is_replicate():
            raise ValueError(f"local_rows: only rows may be sharded: {placement}")
    return parameter.to_local(), start, stop
