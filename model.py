"""T5 by hand: the forward pass, batched decoding with a cache, and checkpoints in the Hugging Face layout.

It covers T5 v1.0 (Raffel et al. 2020, arXiv 1910.10683) and T5 v1.1 with FLAN-T5. The modules have the names of the
public checkpoints' keys, so no table of names is needed to load one.

Letters for shapes: B sources, N samples of each, BN rows (row b·N + n), S source length, T target length,
D d_model, H heads, K d_kv (width of one head), V vocabulary; in attention, L queries and M keys.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from plumbing.errors import UserError, shown
from plumbing.files import read_json, write_json
from plumbing.hub import fetch, fetch_all, from_json, read_tensors, read_tokenizer, replacing, write_tensors

# ------------------------------------------------------------------------------------------------ configuration


@dataclass(frozen=True)
class T5Config:
    """The fields of config.json that the forward pass needs, under their Hugging Face names."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
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
        """Read the content of a config.json. UserError names a field that is missing, mistyped or not supported."""
        if raw.get("model_type") != "t5":
            raise UserError(f"config.json: model_type is {shown(raw.get('model_type'))}, and only 't5' is known here")
        # What an old file leaves out has the values of T5 v1.0, as in transformers.
        old = {"num_decoder_layers": raw.get("num_layers"), "feed_forward_proj": "relu", "tie_word_embeddings": True}
        old["scale_decoder_outputs"] = raw.get("tie_word_embeddings", True)
        config = from_json(cls, old | raw, "config.json")
        if config.feed_forward_proj not in ("relu", "gated-gelu"):
            raise UserError(f"config.json: feed_forward_proj {config.feed_forward_proj!r} is not relu or gated-gelu")
        special = (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id)
        if max(special) >= config.vocab_size:
            raise UserError("config.json: the id of pad, of EOS or of the decoder's start is not in the vocabulary")
        if not 4 <= config.relative_attention_num_buckets < 2 * config.relative_attention_max_distance:
            raise UserError("config.json: relative_attention_max_distance must exceed half the number of buckets")
        return config

    def to_dict(self) -> dict:
        """The content of config.json, as transformers reads it."""
        kind = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True}
        return kind | asdict(self)


# ------------------------------------------------------------------------------------------------ forward pass


class Attention(nn.Module):
    """Multi-head attention without biases. Unlike most, T5 does not divide the scores by the square root of K."""

    def __init__(self, c, relative_bias=False):
        super().__init__()
        inner = c.num_heads * c.d_kv  # may differ from d_model
        self.heads, self.dropout = c.num_heads, c.dropout_rate
        self.q = nn.Linear(c.d_model, inner, bias=False)
        self.k = nn.Linear(c.d_model, inner, bias=False)
        self.v = nn.Linear(c.d_model, inner, bias=False)
        self.o = nn.Linear(inner, c.d_model, bias=False)
        if relative_bias:
            self.relative_attention_bias = nn.Embedding(c.relative_attention_num_buckets, c.num_heads)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, L, H·K) → (B, H, L, K)

    def keys_values(self, x):
        keys = self.split(self.k(x))  # (B, M, D) → (B, H, M, K)
        values = self.split(self.v(x))
        return keys, values

    def forward(self, x, keys, values, bias):
        """x (B·N, L, D) attends to keys and values (B, H, M, K) → (B·N, L, D). The N rows of a source become queries of
        one call, so that its keys are read once. bias is broadcast to the scores (B, H, N·L, M) and added to them.
        In self-attention each row has its own keys: there B stands for all rows, and N is 1."""
        q = self.q(x)  # (B·N, L, H·K)
        q = self.split(q.reshape(len(keys), -1, q.shape[-1]))  # (B, H, N·L, K)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, keys, values, bias.to(q.dtype), dropout_p=p, scale=1.0)
        y = y.transpose(1, 2).reshape(*x.shape[:2], -1)  # (B, H, N·L, K) → (B·N, L, H·K)
        return self.o(y)


class DenseReluDense(nn.Module):
    """The feed-forward part: wo(relu(wi x)) or wo(gelu(wi_0 x) · wi_1 x)."""

    def __init__(self, c):
        super().__init__()
        self.drop = nn.Dropout(c.dropout_rate)
        self.gated = c.feed_forward_proj == "gated-gelu"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            setattr(self, name, nn.Linear(c.d_model, c.d_ff, bias=False))
        self.wo = nn.Linear(c.d_ff, c.d_model, bias=False)

    def forward(self, x):
        if not self.gated:
            return self.wo(self.drop(F.relu(self.wi(x))))
        gate = F.gelu(self.wi_0(x), approximate="tanh")
        return self.wo(self.drop(gate * self.wi_1(x)))


class Block(nn.Module):
    """Self-attention, cross-attention (decoder only), feed-forward; each is x + f(norm(x))."""

    def __init__(self, c, decoder, first):
        super().__init__()
        self.drop = nn.Dropout(c.dropout_rate)
        parts = {"SelfAttention": Attention(c, relative_bias=first)}
        if decoder:
            parts["EncDecAttention"] = Attention(c)
        parts["DenseReluDense"] = DenseReluDense(c)
        self.layer = nn.ModuleList()
        for name, part in parts.items():
            norm = nn.RMSNorm(c.d_model, c.layer_norm_epsilon)  # no mean, no bias
            self.layer.append(nn.ModuleDict({name: part, "layer_norm": norm}))

    def forward(self, x, bias, cross=None, past=None):
        """x (B·N, L, D) → the same shape. cross: keys, values (B, H, S, K) and bias of the sources. past is the cache
        of decoding, where L = 1: keys and values (2, B·N, H, M, K) of all positions up to this one. Its last position
        is still empty: here it gets this token's key and value."""
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

    def __init__(self, c, decoder):
        super().__init__()
        self.c, self.decoder = c, decoder
        layers = c.num_decoder_layers if decoder else c.num_layers
        blocks = [Block(c, decoder, first=i == 0) for i in range(layers)]
        self.block = nn.ModuleList(blocks)
        self.final_layer_norm = nn.RMSNorm(c.d_model, c.layer_norm_epsilon)

    def position_bias(self, length):
        """Bias (1, H, L, L) for `length` queries and as many keys."""
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        position = torch.arange(length, device=table.weight.device)
        relative = position[None, :] - position[:, None]
        buckets, max_distance = self.c.relative_attention_num_buckets, self.c.relative_attention_max_distance
        bucket = relative_position_bucket(relative, not self.decoder, buckets, max_distance)
        return table(bucket).permute(2, 0, 1)[None].contiguous()  # a strided bias would be copied in every layer


def relative_position_bucket(relative, two_sided, buckets=32, max_distance=128):
    """The bucket of relative = key position − query position, any shape → the same shape (Raffel et al. 2020, 2.1).

    Near positions have a bucket each; far ones share buckets that grow with the logarithm, up to max_distance.
    Two-sided (encoder): half of the buckets are for keys after the query. Else (decoder): these have bucket 0, and are
    masked anyway.
    """
    offset = torch.zeros_like(relative)
    if two_sided:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    times_exact = distance.clamp(min=1).float() / exact
    ratio = torch.log(times_exact) / math.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact)).long()
    far = far.clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def mask_bias(mask, dtype):
    """Mask, 1 = visible → 0 where visible, elsewhere a very low number: the lowest of bfloat16, which autocast may turn
    the bias into. −inf would make rows that see nothing NaN."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(mask == 0, torch.finfo(torch.bfloat16).min)


class Generated(NamedTuple):
    """What `T5.generate` returns, each (B, N, T) with T the length of the longest sample."""

    ids: Tensor  # pad after EOS
    mask: Tensor  # True up to and including EOS
    logp: Tensor  # of each id at temperature 1 without the forbidden ids, whatever it was sampled at; 0 after EOS


def log_softmax(logits, forbid=()):
    """(…, V) → log-probabilities in fp32, −inf for the forbidden ids. Sampling and scoring both use this function."""
    logits = logits.float()
    if len(forbid):
        forbid = torch.as_tensor(forbid, device=logits.device)
        logits = logits.index_fill(-1, forbid, -torch.inf)
    return logits.log_softmax(-1)


def pick(logp, temperature, generator):
    """Choose one id from each row, (rows, V) → (rows, 1): the most probable at temperature 0, else a random one."""
    if temperature == 0:
        return logp.argmax(1, keepdim=True)
    # The first id at which the cumulated mass reaches u in (0, 1]: one random number for a row, not V of them.
    mass = (logp / temperature).softmax(1).cumsum(1)
    u = 1 - torch.rand(len(logp), 1, device=logp.device, generator=generator)
    return torch.searchsorted(mass, u * mass[:, -1:])


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
    def init_weights(self, seed=0):
        """Random weights with T5's standard deviations (mesh_tensorflow's initialisers); returns self."""
        g = torch.Generator().manual_seed(seed)
        c = self.config
        inner = c.num_heads * c.d_kv
        stds = {"q": (c.d_model * c.d_kv) ** -0.5, "o": inner**-0.5, "wo": c.d_ff**-0.5, "shared": 1.0}
        for name, p in self.named_parameters():
            if name.endswith("norm.weight"):
                p.fill_(1.0)
                continue
            std = stds.get(name.split(".")[-2], c.d_model**-0.5)
            p.copy_(torch.randn(p.shape, generator=g) * std)
        return self

    def encode(self, input_ids, attention_mask):
        """(B, S), (B, S) → (B, S, D). Padding may stand on either side."""
        x = self.drop(self.shared(input_ids))
        bias = self.encoder.position_bias(input_ids.shape[1])  # (1, H, S, S)
        bias = bias + mask_bias(attention_mask[:, None, None, :], bias.dtype)  # (B, H, S, S)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.drop(self.encoder.final_layer_norm(x))

    def decode(self, decoder_input_ids, encoded, attention_mask):
        """(B·N, T), (B, S, D), (B, S) → hidden states (B·N, T, D). Teacher forcing: position t sees inputs 0 … t.

        The N targets of a source stand in a row and share its keys and values. There is no mask for padding: the start
        token has pad's id and must stay visible, and no position that counts sees the pads after EOS."""
        T = decoder_input_ids.shape[1]
        x = self.drop(self.shared(decoder_input_ids))
        bias = self.decoder.position_bias(T)  # (1, H, T, T)
        causal = torch.ones(T, T, device=x.device).tril()
        bias = bias + mask_bias(causal, bias.dtype)
        cross_bias = mask_bias(attention_mask[:, None, None, :], bias.dtype)  # (B, 1, 1, S)
        for block in self.decoder.block:
            keys, values = block.layer[1].EncDecAttention.keys_values(encoded)  # (B, H, S, K)
            x = block(x, bias, (keys, values, cross_bias))
        return self.drop(self.decoder.final_layer_norm(x))

    def logits(self, hidden):
        """(…, D) → (…, V)."""
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        return self.lm_head(hidden)

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        """(B, S), (B, S), (B, T) → logits (B, T, V)."""
        encoded = self.encode(input_ids, attention_mask)
        return self.logits(self.decode(decoder_input_ids, encoded, attention_mask))

    def shift_right(self, labels):
        """Labels (B, T), −100 where padded → decoder inputs (B, T): the start token, then the labels but the last."""
        inputs = labels.masked_fill(labels == -100, self.config.pad_token_id).roll(1, dims=1)
        inputs[:, 0] = self.config.decoder_start_token_id
        return inputs

    @torch.no_grad()
    def generate(
        self, input_ids, attention_mask, max_new_tokens, num_samples=1, temperature=0.0, forbid=(), generator=None,
        encoded=None,
    ) -> Generated:  # fmt: skip
        """Write N = num_samples continuations of each of B sources, (B, S) → `Generated`.

        Temperature 0 is greedy; else the torch.Generator `generator` decides. The ids in `forbid` are never written.
        `encoded` is what `encode` gave, if at hand."""
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
        bias = self.decoder.position_bias(T)  # (1, H, T, T)

        ids = torch.full((B, N, T), c.pad_token_id, device=input_ids.device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        logp = torch.zeros_like(ids, dtype=torch.float32)
        source = torch.arange(B, device=ids.device)  # (b,)
        ended = torch.zeros_like(ids[:, :, 0], dtype=torch.bool)  # (b, N)
        token = torch.full((B * N, 1), c.decoder_start_token_id, device=ids.device)
        for t in range(T):
            if t % 8 == 0:  # sources that have ended leave, and the cache gets room for 8 more tokens
                stays = ~ended.all(1)  # (b,)
                if not stays.all():
                    rows = stays.repeat_interleave(N)  # (b·N,)
                    source, ended, cross_bias = source[stays], ended[stays], cross_bias[stays]
                    token = token[rows]
                    cross = [(keys[stays], values[stays]) for keys, values in cross]
                    cache = [past[:, rows] for past in cache]
                for layer, past in enumerate(cache):  # one by one: two copies of all would be the peak of memory
                    cache[layer] = F.pad(past, (0, 0, 0, 8))

            x = self.shared(token)  # (b·N, 1, D)
            row = bias[:, :, t : t + 1, : t + 1]  # (1, H, 1, t + 1)
            for block, (keys, values), past in zip(self.decoder.block, cross, cache, strict=True):
                x = block(x, row, (keys, values, cross_bias), past[..., : t + 1, :])
            hidden = self.decoder.final_layer_norm(x[:, 0])
            step_logp = log_softmax(self.logits(hidden), forbid)  # (b·N, V)
            if step_logp[:, 0].isnan().any():  # one logit that is NaN or +∞ makes its whole row NaN
                raise UserError("the model's outputs are not finite numbers: its weights are broken (too high a --lr?)")

            token = pick(step_logp, temperature, generator)  # (b·N, 1)
            choice = token.view(-1, N)  # (b, N)
            choice_logp = step_logp.gather(1, token).view(-1, N)
            ids[source, :, t] = choice.masked_fill(ended, c.pad_token_id)
            logp[source, :, t] = choice_logp.masked_fill(ended, 0.0)
            mask[source, :, t] = ~ended

            ended = ended | (choice == c.eos_token_id)
            if ended.all():
                break
        return Generated(ids[..., : t + 1], mask[..., : t + 1], logp[..., : t + 1])

    @staticmethod
    def from_pretrained(folder_or_hub_id: str | Path, dtype=torch.float32, device="cpu") -> "T5":
        """Load config.json and the weights from a folder or hub repository (see `fetch`); .bin where nothing else is.

        The model is built without memory (device "meta") and takes the tensors of the files as its own. UserError names
        missing, unknown and misshapen keys."""
        if dtype not in (torch.float32, torch.bfloat16):
            raise UserError(f"T5 runs in float32 or bfloat16, not {dtype}: float16 overflows in its feed-forward part")
        config_file = fetch(folder_or_hub_id, "config.json")
        config = T5Config.from_dict(read_json(config_file))
        weights = {}
        for file in fetch_all(folder_or_hub_id, "model.safetensors", "pytorch_model.bin", beside=config_file):
            weights |= read_tensors(file)
        # Old checkpoints have other names for the embedding, and a bias that nothing uses.
        for alias in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            if alias in weights:
                weights["shared.weight"] = weights.pop(alias)
        weights.pop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", None)
        # The output matrix is tied if the file has none, or if (in .bin files) it is stored as the embedding's memory.
        tied = False
        if config.tie_word_embeddings and "shared.weight" in weights:
            shared = weights["shared.weight"]
            weights.setdefault("lm_head.weight", shared)
            tied = weights["lm_head.weight"].data_ptr() == shared.data_ptr()

        if config.num_layers + config.num_decoder_layers > len(weights):  # a wrong number could build millions
            raise UserError(f"{folder_or_hub_id}: config.json has more layers than the weights")
        with torch.device("meta"):
            model = T5(replace(config, tie_word_embeddings=tied))
        try:
            model.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as e:  # it lists the keys that are missing, unknown or of another shape
            faults = " ".join(str(e).split())
            raise UserError(f"{folder_or_hub_id}: the weights do not fit config.json: {faults}") from None
        if tied:
            model.lm_head.weight = model.shared.weight
        for p in model.parameters():
            p.data = p.data.to(device, dtype).contiguous()
        return model.eval()

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write a folder that transformers' AutoModelForSeq2SeqLM opens; with `tokenizer`, its AutoTokenizer, too."""
        c = self.config
        weights = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}  # a tied one comes once
        if c.scale_decoder_outputs and not c.tie_word_embeddings:
            # transformers 4 scales only where the matrix is tied: here the scale goes into the matrix.
            c = replace(c, scale_decoder_outputs=False)
            weights["lm_head.weight"] = weights["lm_head.weight"] * c.d_model**-0.5
        with replacing(Path(folder)) as new:  # the new files take the place of the old ones together, at the end
            write_tensors(new / "model.safetensors", weights)
            dtype = str(self.shared.weight.dtype).removeprefix("torch.")
            write_json(new / "config.json", c.to_dict() | {"dtype": dtype})
            special = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
            write_json(new / "generation_config.json", {name: getattr(c, name) for name in special})
            if tokenizer is not None:
                (new / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
                eos, pad = tokenizer.id_to_token(c.eos_token_id), tokenizer.id_to_token(c.pad_token_id)
                about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": pad}
                write_json(new / "tokenizer_config.json", about)


# ------------------------------------------------------------------------------------------------ text ↔ ids


def load_tokenizer(folder_or_hub_id: str | Path) -> Tokenizer:
    """The tokenizer.json of a folder or hub repository (see `fetch`); its `encode` appends EOS. UserError if broken."""
    return read_tokenizer(fetch(folder_or_hub_id, "tokenizer.json"))


def pad_batch(sequences: list[list[int]], device="cpu") -> tuple[Tensor, Tensor]:
    """Lists of ids → ids (B, L) padded with 0 on the right, and mask (B, L) of 0 and 1."""
    pad = nn.utils.rnn.pad_sequence
    rows = [torch.tensor(ids, dtype=torch.long, device=device) for ids in sequences]
    masks = [torch.ones_like(row) for row in rows]
    return pad(rows, batch_first=True), pad(masks, batch_first=True)
