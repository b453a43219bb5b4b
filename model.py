"""T5 by hand: the forward pass, fast batched decoding, and checkpoints in the Hugging Face layout.

Covers T5 v1.0 (ReLU feed-forward, tied output embedding) and T5 v1.1 / FLAN-T5 (gated GELU, separate output matrix).
Raffel et al. 2020 (arXiv 1910.10683) describe the model; module names equal the keys of the public checkpoints, so that
loading one is an assignment and not a translation.

Letters for shapes, in every file: B batch (sources), N samples of one source, S source length, T target length,
D d_model, H heads, K d_kv (width of one head), V vocabulary; in attention, L queries and M keys.
"""

import math
import os
import re
import reprlib
import tempfile
import zipfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from plumbing.errors import UserError
from plumbing.files import read_json, write_json
from plumbing.hub import fetch, is_hub_id

# ------------------------------------------------------------------------------------------------ configuration


@dataclass(frozen=True)
class T5Config:
    """The numbers of config.json that the forward pass needs, under their Hugging Face names."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 8
    num_decoder_layers: int = 8
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"  # "relu" is T5 v1.0, "gated-gelu" is T5 v1.1 and FLAN-T5
    scale_decoder_outputs: bool = False  # v1.0: hidden states times d_model^-1/2 before the output matrix
    tie_word_embeddings: bool = False  # v1.0: the output matrix is the embedding
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    @classmethod
    def from_dict(cls, raw: dict) -> "T5Config":
        """Read a Hugging Face config.json; UserError names a field that is missing, mistyped or unsupported."""
        if raw.get("model_type") != "t5":
            kind = reprlib.repr(raw.get("model_type"))
            raise UserError(f"config.json: model_type is {kind}, and only 't5' is known here")
        known = {f.name: f for f in fields(cls)}
        values = {name: raw[name] for name in known if raw.get(name) is not None}
        values.setdefault("num_decoder_layers", values.get("num_layers"))
        tied = values.setdefault("tie_word_embeddings", True)
        values.setdefault("scale_decoder_outputs", tied)  # the rule that transformers 5 applies
        values.setdefault("feed_forward_proj", "relu")
        for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads"):
            if name not in values:
                raise UserError(f"config.json: field {name!r} is missing")
        for name, value in values.items():
            kind = known[name].type
            low, high = (0, values["vocab_size"]) if name.endswith("_id") else (0, 1) if kind is float else (1, 2**24)
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits or (kind is not bool and kind is not str and not low <= value < high):
                value = reprlib.repr(value)
                raise UserError(f"config.json: field {name!r} is {value}, expected a {kind.__name__} in its range")
            values[name] = kind(value)
        if values["feed_forward_proj"] not in ("relu", "gated-gelu"):
            raise UserError(f"config.json: feed_forward_proj {values['feed_forward_proj']!r} is not relu or gated-gelu")
        config = cls(**values)
        if not 4 <= config.relative_attention_num_buckets < 2 * config.relative_attention_max_distance:
            raise UserError("config.json: relative_attention_max_distance must exceed half the number of buckets")
        return config

    def to_dict(self) -> dict:
        """The content of config.json, as transformers reads it."""
        gated = self.feed_forward_proj == "gated-gelu"
        return {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "is_encoder_decoder": True,
            "is_gated_act": gated,
            "dense_act_fn": "gelu_new" if gated else "relu",
            "initializer_factor": 1.0,
            "use_cache": True,
            **asdict(self),
        }


# ------------------------------------------------------------------------------------------------ forward pass


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, variance in fp32 whatever the model's precision."""

    def __init__(self, c: T5Config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.d_model))
        self.eps = c.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), self.weight.shape, eps=self.eps)
        return self.weight * normed.to(self.weight.dtype)


class Attention(nn.Module):
    """Multi-head attention without biases and, unlike most, without division by the square root of K."""

    def __init__(self, c: T5Config, relative_bias: bool = False):
        super().__init__()
        inner = c.num_heads * c.d_kv  # may differ from d_model
        self.heads, self.dropout = c.num_heads, c.dropout_rate
        self.q = nn.Linear(c.d_model, inner, bias=False)
        self.k = nn.Linear(c.d_model, inner, bias=False)
        self.v = nn.Linear(c.d_model, inner, bias=False)
        self.o = nn.Linear(inner, c.d_model, bias=False)
        if relative_bias:
            self.relative_attention_bias = nn.Embedding(c.relative_attention_num_buckets, c.num_heads)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, L, H·K) → (B, H, L, K)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.k(x)), self.split(self.v(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """x (B·N, L, D) attends to keys and values (B, H, M, K) → (B·N, L, D).

        The N rows of a source become queries of one call, so that its keys are read once. The scores are
        (B, H, N·L, M); bias is broadcast to that shape and added to them.
        """
        q = self.q(x)  # (B·N, L, H·K)
        q = self.split(q.reshape(len(keys), -1, q.shape[-1]))  # (B, H, N·L, K)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, keys, values, bias.to(q.dtype), dropout_p=p, scale=1.0)
        y = y.transpose(1, 2).reshape(*x.shape[:2], -1)  # (B, H, N·L, K) → (B·N, L, H·K)
        return self.o(y)


class DenseReluDense(nn.Module):
    """The feed-forward part, under its historic name: wo(relu(wi x)) or wo(gelu(wi_0 x) · wi_1 x)."""

    def __init__(self, c: T5Config):
        super().__init__()
        self.gated, self.drop = c.feed_forward_proj == "gated-gelu", nn.Dropout(c.dropout_rate)
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            setattr(self, name, nn.Linear(c.d_model, c.d_ff, bias=False))
        self.wo = nn.Linear(c.d_ff, c.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x) if self.gated else F.relu(self.wi(x))
        return self.wo(self.drop(h))


class Sublayer(nn.Module):
    """One residual branch: its norm and the module under the checkpoint's name for it."""

    def __init__(self, c: T5Config, name: str, module: nn.Module):
        super().__init__()
        self.add_module(name, module)
        self.layer_norm = RMSNorm(c)


class Block(nn.Module):
    """Self-attention, cross-attention (decoder only), feed-forward; each x + f(norm(x))."""

    def __init__(self, c: T5Config, decoder: bool, first: bool):
        super().__init__()
        self.drop = nn.Dropout(c.dropout_rate)
        self.layer = nn.ModuleList([Sublayer(c, "SelfAttention", Attention(c, relative_bias=first))])
        if decoder:
            self.layer.append(Sublayer(c, "EncDecAttention", Attention(c)))
        self.layer.append(Sublayer(c, "DenseReluDense", DenseReluDense(c)))

    def forward(self, x: Tensor, bias: Tensor, cross: tuple | None = None, past: Tensor | None = None) -> Tensor:
        """x (B·N, L, D) → the same shape. cross: keys, values (B, H, S, K) and bias of the sources.

        past is for decoding, where L = 1: the keys and values (2, B·N, H, M, K) of all positions up to this one. Those
        of this position are computed here and written into the last place.
        """
        sub = self.layer[0]
        h = sub.layer_norm(x)
        keys, values = sub.SelfAttention.keys_values(h)
        if past is not None:
            past[..., -1:, :] = torch.stack((keys, values))
            keys, values = past
        x = x + self.drop(sub.SelfAttention(h, keys, values, bias))

        if cross is not None:
            sub = self.layer[1]
            x = x + self.drop(sub.EncDecAttention(sub.layer_norm(x), *cross))

        sub = self.layer[-1]
        return x + self.drop(sub.DenseReluDense(sub.layer_norm(x)))


class Stack(nn.Module):
    """Encoder or decoder: blocks, a final norm, and the relative position bias that block 0 owns and all blocks use."""

    def __init__(self, c: T5Config, decoder: bool):
        super().__init__()
        self.c, self.decoder = c, decoder
        layers = c.num_decoder_layers if decoder else c.num_layers
        self.block = nn.ModuleList([Block(c, decoder, first=i == 0) for i in range(layers)])
        self.final_layer_norm = RMSNorm(c)

    def position_bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Bias (1, H, L, M) for query positions (L,) and key positions (M,)."""
        c = self.c
        relative = keys[None, :] - queries[:, None]
        bucket = relative_position_bucket(
            relative, not self.decoder, c.relative_attention_num_buckets, c.relative_attention_max_distance
        )
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        return table(bucket).permute(2, 0, 1)[None].contiguous()  # else every layer's attention makes its own copy


def relative_position_bucket(relative: Tensor, two_sided: bool, buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Bucket of relative = key position − query position: exact when near, logarithmic up to max_distance, then one.

    Two-sided (encoder): half of the buckets for keys after the query. Causal (decoder): keys after it share bucket 0,
    and are masked anyway. Source: Raffel et al. 2020, section 2.1; mesh_tensorflow's transformer_layers.
    """
    offset = torch.zeros_like(relative)
    if two_sided:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(…) bool or 0/1, 1 = visible → 0 where visible, elsewhere the lowest number of bfloat16, which autocast may turn
    it into (−inf would make empty rows NaN)."""
    lowest = torch.finfo(torch.bfloat16).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask == 0, lowest)


@dataclass
class Generated:
    """What `T5.generate` returns: ids, mask, logp, each (B, N, T) with T the longest sample's length.

    mask is True up to and including EOS; beyond it ids are pad and logp is 0. logp is the log-probability of each id at
    temperature 1 under the untruncated softmax without the forbidden ids, whatever ids were sampled with.
    """

    ids: Tensor
    mask: Tensor
    logp: Tensor


class T5(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.drop = nn.Dropout(config.dropout_rate)
        self.encoder = Stack(config, decoder=False)
        self.decoder = Stack(config, decoder=True)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.shared.weight

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> "T5":
        """Random weights with T5's standard deviations (mesh_tensorflow's initialisers); returns self."""
        g = torch.Generator().manual_seed(seed)
        c = self.config
        inner = c.num_heads * c.d_kv
        std = {"q": (c.d_model * c.d_kv) ** -0.5, "o": inner**-0.5, "wo": c.d_ff**-0.5, "shared": 1.0}
        for name, p in self.named_parameters():
            if name.endswith("norm.weight"):
                p.fill_(1.0)
            else:
                p.copy_(torch.randn(p.shape, generator=g) * std.get(name.split(".")[-2], c.d_model**-0.5))
        return self

    @staticmethod
    def from_pretrained(folder_or_hub_id: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> "T5":
        return load_checkpoint(folder_or_hub_id, dtype, device)

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        save_checkpoint(self, folder, tokenizer)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S), (B, S) → (B, S, D). Padding may stand on either side."""
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.drop(self.shared(input_ids))
        bias = self.encoder.position_bias(position, position)
        bias = bias + mask_bias(attention_mask[:, None, None, :], bias.dtype)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.drop(self.encoder.final_layer_norm(x))

    def decode(self, decoder_input_ids: Tensor, encoded: Tensor, attention_mask: Tensor) -> Tensor:
        """(B·N, T), (B, S, D), (B, S) → hidden states (B·N, T, D). Teacher forcing: position t sees inputs 0 … t.

        Where there are several targets of each source (N > 1), they stand in a row and share its keys and values.
        There is no decoder padding mask: the start token has pad's id and must stay visible, and pads after EOS are
        seen by no position that counts.
        """
        position = torch.arange(decoder_input_ids.shape[1], device=encoded.device)
        x = self.drop(self.shared(decoder_input_ids))
        bias = self.decoder.position_bias(position, position)
        bias = bias + mask_bias(position[None, :] <= position[:, None], bias.dtype)
        cross_bias = mask_bias(attention_mask[:, None, None, :], bias.dtype)
        for block in self.decoder.block:
            keys, values = block.layer[1].EncDecAttention.keys_values(encoded)
            x = block(x, bias, (keys, values, cross_bias))
        return self.drop(self.decoder.final_layer_norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…, V)."""
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        return self.lm_head(hidden)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """(B, S), (B, S), (B, T) → logits (B, T, V)."""
        return self.logits(self.decode(decoder_input_ids, self.encode(input_ids, attention_mask), attention_mask))

    def shift_right(self, labels: Tensor) -> Tensor:
        """Labels (B, T), −100 where padded → decoder inputs (B, T): the start token, then the labels but the last."""
        inputs = labels.masked_fill(labels == -100, self.config.pad_token_id).roll(1, dims=1)
        inputs[:, 0] = self.config.decoder_start_token_id
        return inputs

    # -------------------------------------------------------------------------------------------- decoding

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, num_samples: int = 1,
        temperature: float = 0.0, forbid: tuple[int, ...] = (), generator: torch.Generator | None = None,
        encoded: Tensor | None = None,
    ) -> Generated:  # fmt: skip
        """Write N = num_samples continuations of each of B sources, (B, S) → `Generated`.

        Temperature 0 is greedy. The ids in `forbid` are never written. `encoded` is what `encode` gave, if at hand.
        """
        if self.training:
            raise RuntimeError("generate() needs model.eval(): dropout would change what is written")
        assert max_new_tokens > 0 and num_samples > 0 and temperature >= 0
        c, B, N, T = self.config, len(input_ids), num_samples, max_new_tokens

        # Each step computes one token of each sample. b sources are still in the batch, with N samples each:
        #                      queries           keys and values
        #   self-attention     (b·N, H, 1, K)    (b·N, H, t + 1, K)    each sample sees its own past
        #   cross-attention    (b, H, N, K)      (b, H, S, K)          the N samples of a source are queries of one call
        # Every 8 steps, sources whose samples have all ended leave. Samples that ended earlier write pads till then.
        if encoded is None:
            encoded = self.encode(input_ids, attention_mask)
        cross_bias = mask_bias(attention_mask[:, None, None, :], encoded.dtype)  # (b, 1, 1, S)
        cross = [block.layer[1].EncDecAttention.keys_values(encoded) for block in self.decoder.block]
        cache = [encoded.new_empty(2, B * N, c.num_heads, 0, c.d_kv) for _ in cross]  # keys and values of the past
        position = torch.arange(T, device=encoded.device)
        bias = self.decoder.position_bias(position, position)  # (1, H, T, T)

        ids = torch.full((B, N, T), c.pad_token_id, device=input_ids.device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        logp = torch.zeros_like(ids, dtype=torch.float32)
        source = torch.arange(B, device=ids.device)  # (b,)
        ended = torch.zeros_like(ids[:, :, 0], dtype=torch.bool)  # (b, N)
        token = torch.full((B * N, 1), c.decoder_start_token_id, device=ids.device)
        for t in range(T):
            if t % 8 == 0:
                stays = ~ended.all(1)  # (b,)
                if not stays.all():
                    rows = stays.repeat_interleave(N)  # (b·N,)
                    source, ended, token, cross_bias = source[stays], ended[stays], token[rows], cross_bias[stays]
                    cross = [(keys[stays], values[stays]) for keys, values in cross]
                    cache = [past[:, rows] for past in cache]
                cache = [F.pad(past, (0, 0, 0, 8)) for past in cache]  # room for 8 more tokens

            x = self.shared(token)  # (b·N, 1, D)
            row = bias[:, :, t : t + 1, : t + 1]  # (1, H, 1, t + 1)
            for block, (keys, values), past in zip(self.decoder.block, cross, cache, strict=True):
                x = block(x, row, (keys, values, cross_bias), past[..., : t + 1, :])
            hidden = self.decoder.final_layer_norm(x[:, 0])
            step_logp = log_softmax(self.logits(hidden), forbid)  # (b·N, V)
            if step_logp[:, 0].isnan().any():  # one logit that is NaN or infinite makes its whole row NaN
                raise UserError("the model's outputs are not finite numbers: its weights are broken (too high a --lr?)")

            token = pick(step_logp, temperature, generator)  # (b·N, 1)
            choice, choice_logp = token.view(-1, N), step_logp.gather(1, token).view(-1, N)  # (b, N)
            ids[source, :, t] = choice.masked_fill(ended, c.pad_token_id)
            logp[source, :, t] = choice_logp.masked_fill(ended, 0.0)
            mask[source, :, t] = ~ended

            ended = ended | (choice == c.eos_token_id)
            if ended.all():
                break
        return Generated(ids[..., : t + 1], mask[..., : t + 1], logp[..., : t + 1])


def log_softmax(logits: Tensor, forbid: tuple[int, ...] = ()) -> Tensor:
    """(…, V) → log-probabilities in fp32 with the forbidden ids at −inf: one function for sampling and for scoring."""
    logits = logits.float()
    if len(forbid):
        logits = logits.index_fill(-1, torch.as_tensor(forbid, device=logits.device), -torch.inf)
    return logits.log_softmax(-1)


def pick(logp: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Choose one id from each row, (rows, V) → (rows, 1): the most probable at temperature 0, else a random one."""
    if temperature == 0:
        return logp.argmax(1, keepdim=True)
    # The first id at which the cumulated mass reaches u in (0, 1]: one random number for a row, not V of them.
    mass = (logp / temperature).softmax(1).cumsum(1)
    u = 1 - torch.rand(len(logp), 1, device=logp.device, generator=generator)
    return torch.searchsorted(mass, u * mass[:, -1:])


# ------------------------------------------------------------------------------------------------ text ↔ ids


def load_tokenizer(folder_or_hub_id: str | Path) -> Tokenizer:
    """The tokenizer.json of a checkpoint (see `fetch`); `encode` appends EOS itself. UserError if absent or broken.

    The hub's google/t5-v1_1-… have none. All of Google's T5 share one vocabulary, so they get google/flan-t5-small's.
    """
    bare = is_hub_id(folder_or_hub_id) and folder_or_hub_id.startswith("google/t5-v1_1-")
    path = fetch("google/flan-t5-small" if bare else folder_or_hub_id, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode("a \ue000")  # a character that no vocabulary has: some can say so, and some only fail
    except BaseException as e:  # the library raises bare Exception, and its panics are not even that
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise UserError(f"{path}: not a tokenizer ({e})") from None
    return tokenizer


def pad_batch(sequences: list[list[int]], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Lists of ids → ids (B, L) padded with 0 on the right, and mask (B, L) of 0 and 1."""
    length = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (length - len(s)) for s in sequences], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sequences], device=device)
    return ids, mask


def never_written(model: T5, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids to pass as `forbid`: pad (a sequence ends with EOS) and the vocabulary rows that the tokenizer lacks."""
    return (model.config.pad_token_id, *range(tokenizer.get_vocab_size(), model.config.vocab_size))


# ------------------------------------------------------------------------------------------------ checkpoints


SHARD = re.compile(r"\w[\w.-]{0,199}", re.A)  # a file's name, without a way out of the folder
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


ALIASES = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"  # in old checkpoints


def load_checkpoint(place: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> T5:
    """Load a folder or hub repository (see `fetch`) in the Hugging Face layout: config.json and one of WEIGHTS.

    The model is built without memory and takes each tensor as it is read, so the peak is the model and one tensor.
    UserError names a missing, unknown, doubled or wrongly shaped key. float16 is refused. What the configuration
    promises is compared with the files before anything of that size is made.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"T5 runs in float32 or bfloat16, not {dtype}: float16 overflows in its feed-forward part")
    file = fetch(place, "config.json")
    config = T5Config.from_dict(read_json(file))
    if is_hub_id(place):  # the weights come from the same commit, even if the branch moves on meanwhile
        place = f"{place.partition('@')[0]}@{file.parent.name}"
    file = fetch(place, *WEIGHTS)
    files = [file]
    if file.suffix == ".json":
        shards = read_json(file).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) and SHARD.fullmatch(name) for name in names):
            raise UserError(f"{file}: weight_map must map keys to file names in the same folder")
        files = [fetch(place, name) for name in sorted(set(names))]
    parts = [map_tensors(file) for file in files]
    keys = [key for part in parts for key in part]
    if len(set(keys)) < len(keys):
        raise UserError(f"{place}: the key {max(keys, key=keys.count)} is in several of its files")
    tensors = {ALIASES.get(key, key): tensor for part in parts for key, tensor in part.items() if key != UNUSED}
    shared, lm_head = tensors.get("shared.weight"), tensors.get("lm_head.weight")
    if shared is not None and lm_head is not None and shared.data_ptr() == lm_head.data_ptr():
        del tensors["lm_head.weight"]  # one matrix under two names, as old pickles have it
    size, c = sum(file.stat().st_size for file in files), config
    if sum(tensor.nbytes for tensor in tensors.values()) > size:  # a view may repeat one number without end
        raise UserError(f"{place}: its tensors hold more than the files of its weights")
    largest = max(c.vocab_size, c.d_ff, c.num_heads * c.d_kv) * c.d_model
    if c.num_layers + c.num_decoder_layers > len(tensors) or largest > size:
        raise UserError(f"{place}: config.json describes a model that is larger than the files of its weights")
    tied = config.tie_word_embeddings and "lm_head.weight" not in tensors
    with torch.device("meta"):
        model = T5(replace(config, tie_word_embeddings=tied))
    wanted = {name: p.shape for name, p in model.named_parameters()}
    faults = {
        "missing key": sorted(wanted.keys() - tensors.keys()),
        "unknown key": sorted(tensors.keys() - wanted.keys()),
        "wrong shape:": [f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}"
                         for name, shape in wanted.items() if name in tensors and tensors[name].shape != shape],
    }  # fmt: skip
    problems = [f"{what} {', '.join(keys[:5])}{' …' * (len(keys) > 5)}" for what, keys in faults.items() if keys]
    if problems:
        raise UserError(f"{place}: the weights do not fit config.json: {'; '.join(problems)}")
    for name in wanted:
        tensors[name] = tensors[name].to(device, dtype).contiguous()
    model.load_state_dict(tensors, strict=False, assign=True)
    if tied:
        model.lm_head.weight = model.shared.weight
    return model.eval()


def map_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, mapped into memory on the CPU: they cost nothing until they are used.

    A .bin is a pickle; weights_only keeps it from running code. What torch wrote before 1.6 is read at once instead.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as f:
                tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dictionary)
        else:
            if zipped := zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    if any(member.compress_type for member in archive.infolist()):
                        raise TypeError  # torch packs nothing, and a little that is packed could become very much
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
        if not all(key.isprintable() and t.is_floating_point() and t.is_cpu and t.layout == torch.strided
                   and not t.is_nested for key, t in tensors.items()):  # fmt: skip
            raise TypeError
    except Exception as e:  # of many kinds; torch's own texts explain how to run a pickle's code after all
        what = "damaged, or not a file of named floating-point tensors and nothing else"
        raise UserError(f"{file}: {what} ({type(e).__name__})") from None
    return tensors


def save_checkpoint(model: T5, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors, and with `tokenizer` its two files, so that
    transformers' AutoModelForSeq2SeqLM and AutoTokenizer open the folder.

    All are written beside and then moved: until the last moment the folder's old checkpoint stays whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    c = model.config
    special = {"decoder_start_token_id": c.decoder_start_token_id, "eos_token_id": c.eos_token_id,
               "pad_token_id": c.pad_token_id}  # fmt: skip
    dtype = str(model.shared.weight.dtype).removeprefix("torch.")
    weights = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}  # a tied one comes once
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
        beside = Path(beside)
        try:
            save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as e:  # a full disk, for instance
            raise OSError(f"{folder / 'model.safetensors'}: {e}") from None
        write_json(beside / "config.json", {**c.to_dict(), "dtype": dtype})
        write_json(beside / "generation_config.json", special)
        if tokenizer is not None:
            (beside / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
            names = {name: tokenizer.id_to_token(special[f"{name}_id"]) for name in ("eos_token", "pad_token")}
            write_json(beside / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
        for file in (files := list(beside.iterdir())):
            with open(file, "rb+") as f:
                os.fsync(f.fileno())  # on disk before it takes the old one's name
        for file in files:
            file.replace(folder / file.name)
