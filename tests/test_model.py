"""Proofs for model.py: transformers' T5, brute force and statistics are the judges, never model.py's own output."""

import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import harness
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import lmcot
import model as M
import plumbing.hub
from model import T5, T5Config
from plumbing.errors import UserError

ROOT = Path(__file__).parents[1]
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

DATA = harness.SAMPLES
FLAN = DATA / "flan-t5"
needs_flan = pytest.mark.skipif(not (FLAN / "tokenizer.json").is_file(), reason="the real tokenizer is not here")
VERSIONS = ("v1.0", "v1.1")
SIDES = ("right", "left")
LENGTHS = (40, 3, 17, 1, 26, 9)  # of the sources: the longest reaches the logarithmic buckets
FORBID = (0, 91, 92, 93, 94, 95)  # pad and some ids that "the tokenizer lacks"
EOS = 1
SEED_AND_EOS = {"v1.0": (7, 1.5), "v1.1": (14, 2.2)}  # with these, greedy decoding ends some rows early, others not
TINY_TOKENIZER = ROOT / "tiny" / "small"  # byte-level, and appends </s>


# ------------------------------------------------------------------------------------------------ builders


def make(version: str, seed: int = 0, eos: float = 1.0, **changes) -> T5:
    """A small random T5 in which nothing is neutral: norms are not 1, the heads' width is not d_model, layers differ
    in number, and position counts. `eos` stretches the output row of EOS, so that some sequences end early."""
    v10 = version == "v1.0"
    sizes = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 3, "num_layers": 3}
    sizes |= {"num_decoder_layers": 2, "feed_forward_proj": "relu" if v10 else "gated-gelu"}
    sizes |= {"scale_decoder_outputs": v10, "tie_word_embeddings": v10}
    model = T5(T5Config(**{**sizes, **changes})).init_weights(seed).eval()
    g = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        if v10:  # a tied model copies its input for ever unless the layers outweigh the embedding
            for block in model.decoder.block:
                block.layer[2].DenseReluDense.wo.weight.mul_(12.0)
        for name, p in model.named_parameters():
            if "layer_norm" in name:
                p.mul_(1 + 0.2 * torch.randn(p.shape, generator=g))
            elif "relative_attention_bias" in name:
                p.copy_(torch.randn(p.shape, generator=g))
        model.lm_head.weight[EOS] *= eos
    return model


def sources(side: str = "right", lengths=LENGTHS, vocab: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(7)
    rows = [torch.randint(2, vocab, (n,), generator=g) for n in lengths]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side)
    return ids, mask


def shifted(ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], dim=1)


def forbidden_log_softmax(logits: torch.Tensor, forbid=FORBID) -> torch.Tensor:
    logits = logits.detach().clone()
    logits[..., list(forbid)] = -math.inf
    return torch.log_softmax(logits, -1)


def hf_logits(hf, ids, mask, decoder_ids) -> torch.Tensor:
    with torch.no_grad():
        return hf(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits


def assert_same_logits(model: T5, hf) -> None:
    ids, mask = sources()
    with torch.no_grad():
        ours = model(ids, mask, shifted(ids))
    torch.testing.assert_close(ours, hf_logits(hf, ids, mask, shifted(ids)), atol=1e-4, rtol=1e-5)


def assert_same_parameters(found: T5, expected: T5) -> None:
    found, expected = dict(found.named_parameters()), dict(expected.named_parameters())
    assert found.keys() == expected.keys()
    for name, p in expected.items():
        assert torch.equal(found[name], p) and found[name].dtype == p.dtype and found[name].requires_grad, name


def refusal(load, *arguments, **options) -> str:
    """The one sentence with which this is refused."""
    with pytest.raises(UserError) as error:
        load(*arguments, **options)
    text = str(error.value)
    assert text.strip() == text and "\n" not in text and 10 < len(text) < 1000, text
    return text


@pytest.fixture(scope="module", params=VERSIONS)
def pair(request, tmp_path_factory):
    """A model of ours, and the same weights in transformers."""
    model, folder = make(request.param, *SEED_AND_EOS[request.param]), tmp_path_factory.mktemp("pair")
    model.save_pretrained(folder)
    return model, transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


# ------------------------------------------------------------------------------------------------ forward, gradients

REL = [-200, -128, -127, -64, -17, -16, -15, -9, -8, -7, -1, 0, 1, 7, 8, 9, 15, 16, 17, 64, 127, 128, 200]
TWO_SIDED = [15, 15, 15, 14, 10, 10, 9, 8, 8, 7, 1, 0, 17, 23, 24, 24, 25, 26, 26, 30, 31, 31, 31]
CAUSAL = [31, 31, 31, 26, 16, 16, 15, 9, 8, 7, 1, 0] + [0] * 11


def test_relative_position_bucket_has_the_golden_values():
    assert M.relative_position_bucket(torch.tensor(REL), True).tolist() == TWO_SIDED
    assert M.relative_position_bucket(torch.tensor(REL), False).tolist() == CAUSAL


@pytest.mark.parametrize("side", SIDES)
def test_logits_and_every_gradient_equal_transformers(pair, side):
    model, hf = pair
    ids, mask = sources(side)
    labels = torch.randint(1, 96, (len(ids), 30), generator=torch.Generator().manual_seed(3))
    for row, length in enumerate((30, 5, 22, 1, 13, 29)):
        labels[row, length - 1], labels[row, length:] = EOS, -100

    inputs = model.shift_right(labels)
    assert torch.equal(inputs, hf._shift_right(labels))
    ours, theirs = model(ids, mask, inputs), hf_logits(hf, ids, mask, inputs)
    assert theirs.std() > 0.2
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    model.zero_grad()
    hf.zero_grad()
    F.cross_entropy(ours.flatten(0, 1), labels.flatten()).backward()
    hf(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    expected = {name: p.grad for name, p in hf.named_parameters()}
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().max() > 3e-4, f"{name}: the gradient is too small to prove anything"
        torch.testing.assert_close(found[name], grad, atol=3e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_dropout_stands_in_the_same_places_as_in_transformers_and_generate_refuses_it(pair, monkeypatch):
    """With a dropout that multiplies by 1 + rate instead of drawing, both models can be compared in train mode."""

    def visible_dropout(x, p=0.5, training=True, inplace=False):
        return x * (1 + p) if training else x

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        assert not is_causal
        return visible_dropout((q @ k.mT * scale + attn_mask).softmax(-1), dropout_p) @ v

    monkeypatch.setattr(F, "dropout", visible_dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    model, hf = pair
    ids, mask = sources()
    with torch.no_grad():
        still = model(ids, mask, shifted(ids))
        model.train()
        hf.train()
        try:
            assert (model(ids, mask, shifted(ids)) - still).abs().max() > 0.1
            assert_same_logits(model, hf)
            with pytest.raises(RuntimeError, match="eval"):
                model.generate(ids, mask, 2)
        finally:
            model.eval()
            hf.eval()


# ------------------------------------------------------------------------------------------------ greedy decoding


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("forbid", [FORBID, (*FORBID, EOS)], ids=["some end early", "none ends"])
def test_greedy_ids_equal_transformers_also_while_ended_rows_leave_the_batch(pair, forbid, side):
    model, hf = pair
    ids, mask = sources(side)
    theirs = hf.generate(input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False, num_beams=1,
                         suppress_tokens=list(forbid))[:, 1:]  # fmt: skip
    ends = theirs == EOS
    seen = ends.cumsum(1) - ends.long() == 0  # up to and including EOS
    best = forbidden_log_softmax(hf_logits(hf, ids, mask, shifted(theirs)), forbid).topk(2).values
    margin = (best[..., 0] - best[..., 1])[seen].min()
    assert margin > 1e-4, "a fixture with ties would compare rounding errors"
    ours = model.generate(ids, mask, 64, num_samples=2, forbid=forbid)
    for n in range(2):
        assert torch.equal(ours.mask[:, n], seen)
        assert torch.equal(ours.ids[:, n], theirs.masked_fill(~seen, 0))
    lengths = seen.sum(1)
    assert lengths.max() == 64 and len(theirs[seen].unique()) >= 5, "this fixture tests nothing"
    if EOS in forbid:
        assert lengths.min() == 64
    else:
        assert lengths.min() <= 10 and len(lengths.unique()) >= 4


# ------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_end_with_eos_and_logp_equals_a_teacher_forced_pass_of_transformers(pair, side, temperature):
    model, hf = pair
    ids, mask = sources(side)
    out = model.generate(ids, mask, 48, num_samples=5, temperature=temperature, forbid=FORBID,
                         generator=torch.Generator().manual_seed(0))  # fmt: skip
    lengths = out.mask.sum(-1)
    B, N, T = out.ids.shape
    assert lengths.min() <= 8 and T == lengths.max() >= 30, "no longer than the longest sample"
    ends = out.ids == EOS
    assert torch.equal(out.mask, ends.cumsum(-1) - ends.long() == 0)
    assert (out.ids[~out.mask] == 0).all() and (out.logp[~out.mask] == 0).all()
    written = out.ids.view(B * N, T)
    logits = hf_logits(hf, ids.repeat_interleave(N, 0), mask.repeat_interleave(N, 0), shifted(written))
    expected = forbidden_log_softmax(logits).gather(2, written[..., None]).view(B, N, T)
    torch.testing.assert_close(out.logp[out.mask], expected[out.mask], atol=1e-4, rtol=0)


def test_a_step_makes_one_new_key_and_a_source_leaves_soon_after_its_last_sample_has_ended(pair):
    model, _ = pair
    ids, mask = sources()
    N, calls = 3, []
    handle = model.decoder.block[0].layer[0].SelfAttention.k.register_forward_pre_hook(
        lambda _, args: calls.append(args[0].shape[:2])
    )
    out = model.generate(ids, mask, 48, num_samples=N, forbid=FORBID, temperature=1.0,
                         generator=torch.Generator().manual_seed(0))  # fmt: skip
    handle.remove()
    longest = out.mask.sum(2).amax(1)
    assert longest.min() < 40 and longest.max() > 40, "the fixture tests nothing"
    assert len(calls) == out.ids.shape[2]
    for t, (rows, length) in enumerate(calls):
        assert length == 1 and N * (longest > t).sum() <= rows <= N * (longest > t - 8).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_frequencies_of_sampled_sequences_equal_the_product_of_softmaxes(temperature):
    """20,000 samples of up to two tokens for each of two sources, P(first) · P(second | first), each share within five
    standard deviations. A temperature that is off by 15 %, the cache of another sample, a forbidden id and a sample
    that continues after EOS would be seen."""
    model, forbid, N = make("v1.1", vocab_size=12, eos=2.0), (0, 7), 20_000
    ids, mask = sources(lengths=(5, 2), vocab=12)
    before = torch.get_rng_state()
    out = model.generate(ids, mask, 2, N, temperature, forbid, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before), "it draws from the generator that it was given"
    firsts = torch.tensor([[0, v] for v in range(12)])  # the start token, and each first token
    for b in range(2):
        with torch.no_grad():
            logits = model(ids[b].expand(12, -1), mask[b].expand(12, -1), firsts).double()
        p = forbidden_log_softmax(logits / temperature, forbid).exp()
        joint = p[0, 0, :, None] * p[:, 1]
        joint[EOS] = 0
        joint[EOS, 0] = p[0, 0, EOS]  # after EOS comes pad, and nothing else
        shares = (out.ids[b, :, 0] * 12 + out.ids[b, :, 1]).bincount(minlength=144).view(12, 12) / N
        assert ((shares - joint).abs() <= 5 * (joint * (1 - joint) / N).sqrt()).all()


def test_weights_that_are_no_numbers_are_named():
    model = make("v1.1")
    model.lm_head.weight.data[7, 3] = math.nan
    assert "the model's outputs are not finite numbers" in refusal(model.generate, *sources(), 2)


# ------------------------------------------------------------------------------------------------ precision


def test_bf16_stays_as_close_to_fp32_as_transformers_bf16_does(pair, tmp_path):
    """Tolerance: a twentieth of the logits' standard deviation on average (measured: about .01)."""
    model, _ = pair
    model.save_pretrained(tmp_path)
    half = T5.from_pretrained(tmp_path, dtype=torch.bfloat16)
    hf_half = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids, mask = sources()
    dec = shifted(ids[:, :12])
    with torch.no_grad():
        exact = model(ids, mask, dec)
        ours = (half(ids, mask, dec).float() - exact).abs()
    theirs = (hf_logits(hf_half, ids, mask, dec).float() - exact).abs()
    assert 0 < ours.mean() < 0.05 * exact.std()
    assert ours.mean() < 1.25 * theirs.mean()
    out = half.generate(ids, mask, 16, forbid=FORBID)
    assert out.logp.dtype == torch.float32 and torch.isfinite(out.logp).all()


def test_fp16_is_refused():
    text = refusal(T5.from_pretrained, ROOT / "tiny" / "small", dtype=torch.float16)
    assert "float16" in text and "bfloat16" in text


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def complaints(caplog):
    """Everything that transformers logs at WARNING and above."""
    transformers.utils.logging.set_verbosity_warning()
    yield caplog
    transformers.utils.logging.set_verbosity_error()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_transformers_opens_what_we_save_without_complaint(version, dtype, tmp_path, complaints):
    """One exception: transformers 5 says of every untied T5, its own files included, that they are not tied."""
    model = make(version).to(dtype)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(hf) is transformers.T5ForConditionalGeneration
    assert not any(info.values()), info
    assert len(complaints.messages) == (version == "v1.1") and all("will NOT tie" in x for x in complaints.messages)
    assert_same_parameters(model, hf)
    assert (hf.lm_head.weight is hf.shared.weight) == (version == "v1.0")
    for name, value in asdict(model.config).items():
        assert getattr(hf.config, name) == value or name == "tie_word_embeddings"  # theirs is always true
    special = hf.generation_config
    assert (special.eos_token_id, special.pad_token_id, special.decoder_start_token_id) == (1, 0, 0)


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "float32"), ("float16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("form", ["one file", "shards", "pickle", "pickle from before torch 1.6"])
@pytest.mark.parametrize("version", VERSIONS)
def test_we_open_what_transformers_saves_training_leaves_the_files_alone_and_saving_over_them_is_safe(
    version, form, stored, dtype, tmp_path
):
    make(version).save_pretrained(tmp_path / "ours")
    hf = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval().to(getattr(torch, stored))
    hf.save_pretrained(tmp_path, max_shard_size="40KB" if form == "shards" else "10GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (form == "shards")
    if "pickle" in form:  # it names the one matrix of a tied model four times, and need not be contiguous
        (tmp_path / "model.safetensors").unlink()
        state = hf.state_dict() | {name: p.T.contiguous().T for name, p in hf.named_parameters() if "wo" in name}
        assert {p.is_contiguous() for p in state.values()} == {True, False}
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=form == "pickle")
    before, dtype = harness.files_of(tmp_path), getattr(torch, dtype)
    model = T5.from_pretrained(tmp_path, dtype=dtype)
    assert not model.training and all(p.is_leaf and p.is_contiguous() for p in model.parameters())
    assert (model.lm_head.weight is model.shared.weight) == (version == "v1.0") == model.config.tie_word_embeddings
    assert_same_logits(T5.from_pretrained(tmp_path), hf.float())
    assert_same_parameters(model, hf.to(dtype))
    model.shared.weight.data.add_(1)
    assert harness.files_of(tmp_path) == before
    model.save_pretrained(tmp_path)  # what was read may still be mapped from the file that is now written
    assert_same_parameters(T5.from_pretrained(tmp_path, dtype=dtype), model)


class Ends(BaseException):
    """As Ctrl-C does, an end that no `except Exception` stops."""


@pytest.mark.parametrize(
    ("place", "name"),
    [(plumbing.hub, "save_file"), (M, "write_json"), (os, "fsync"), (Path, "replace")],
    ids=["in the weights", "in the configuration", "on the way to the disk", "at the end"],
)
def test_a_save_that_ends_early_leaves_the_old_checkpoint_whole_and_nothing_else(place, name, tmp_path, monkeypatch):
    old, new, tokenizer = make("v1.0", 1), make("v1.1", 2), M.load_tokenizer(TINY_TOKENIZER)
    old.save_pretrained(tmp_path, tokenizer)
    before = harness.files_of(tmp_path)
    assert len(before) == 5

    def end(*args, **kwargs):
        if name == "save_file":  # after half of them
            Path(args[1]).write_bytes(b"half")
        raise Ends

    monkeypatch.setattr(place, name, end)
    with pytest.raises(Ends):
        new.save_pretrained(tmp_path, tokenizer)
    monkeypatch.undo()
    assert harness.files_of(tmp_path) == before
    new.save_pretrained(tmp_path, tokenizer)
    assert T5.from_pretrained(tmp_path).config == new.config and harness.files_of(tmp_path).keys() == before.keys()


PEAK = """
import os, sys
import torch
from model import T5

page, statm = os.sysconf("SC_PAGESIZE"), os.open("/proc/self/statm", os.O_RDONLY)
peak = 0

def look(*_):  # at memory that is not a page of some file: what loading costs and cannot be taken back
    global peak
    _, resident, of_files, *_ = os.pread(statm, 200, 0).split()
    peak = max(peak, page * (int(resident) - int(of_files)))

torch.set_num_threads(1)
small, folder = sys.argv[1:]
T5.from_pretrained(small, dtype=torch.bfloat16)  # whatever the first use of the libraries costs
look()
start = peak
sys.setprofile(look)  # at every call and return, in Python and in C: nothing large lives between two looks
T5.from_pretrained(folder, dtype=torch.bfloat16)
print(peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory in Linux's /proc")
@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_loading_needs_no_more_memory_than_the_model(form, tmp_path):
    """Peak of the process's own memory while a float32 file is read as bfloat16; 1.1 times the weights at most."""
    big = T5(T5Config(8000, 384, 64, 1536, 3, 2, 4))
    folders = tmp_path / "small", tmp_path / "big"
    for folder, model in zip(folders, (make("v1.1"), big), strict=True):
        model.save_pretrained(folder)
        if form == "pickle":
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
    command = [sys.executable, "-c", PEAK, *map(str, folders)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    weights = 2 * sum(p.numel() for p in big.parameters())
    assert 0.9 * weights < int(run.stdout) < 1.1 * weights


# ------------------------------------------------------------------------------------------------ old and broken files


def edit_config(folder: Path, drop: tuple[str, ...] = (), **changes) -> None:
    raw = json.loads((folder / "config.json").read_text()) | changes
    for name in drop:
        del raw[name]
    (folder / "config.json").write_text(json.dumps(raw))


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file({k: v.clone() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


TIED = "tie_word_embeddings"
SCALED = "scale_decoder_outputs"
RULES = {
    "v1.0, tied and scaled": ("v1.0", {}, (), True, True),
    "old v1.0 config, which says nothing": ("v1.0", {}, (TIED, SCALED), True, True),
    "old v1.1 config, tie false only": ("v1.1", {TIED: False}, (SCALED,), False, False),
    "v1.1 as transformers 5 writes it": ("v1.1", {TIED: True, SCALED: False}, (), False, False),
    "v1.0 with a copy of the embedding as lm_head": ("v1.0 + lm_head", {}, (TIED, SCALED), False, True),
}


@pytest.mark.parametrize("rule", RULES)
def test_tied_iff_the_file_has_no_lm_head_and_scaled_as_transformers_does(rule, tmp_path):
    version, changes, drop, tied, scaled = RULES[rule]
    make(version[:4]).save_pretrained(tmp_path)
    edit_config(tmp_path, drop, **changes)
    if "lm_head" in version:
        edit_weights(tmp_path, lambda w: w.update({"lm_head.weight": w["shared.weight"]}))
    model = T5.from_pretrained(tmp_path)
    assert (model.lm_head.weight is model.shared.weight) is tied
    assert (model.config.tie_word_embeddings, model.config.scale_decoder_outputs) == (tied, scaled)
    assert_same_logits(model, transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval())


def test_a_scaled_matrix_of_its_own_is_saved_as_every_version_of_transformers_reads_it(tmp_path):
    """transformers 4 scales only where the matrix is tied; both read a scale of 1 and an untied matrix alike."""
    model = make("v1.0", scale_decoder_outputs=True, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["tie_word_embeddings"], saved["scale_decoder_outputs"]) == (False, False)
    assert_same_logits(model, transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval())
    assert_same_logits(T5.from_pretrained(tmp_path), transformers.T5ForConditionalGeneration.from_pretrained(tmp_path))


@pytest.mark.parametrize("names", [("encoder",), ("decoder",), ("encoder", "decoder", "shared")], ids=str)
def test_embed_tokens_is_an_alias_of_shared_and_the_old_cross_attention_bias_is_ignored(names, tmp_path):
    model = make("v1.1")
    model.save_pretrained(tmp_path)

    def rename(weights):
        table = weights.pop("shared.weight")
        for name in names:
            weights["shared.weight" if name == "shared" else f"{name}.embed_tokens.weight"] = table
        weights["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(32, 3)

    edit_weights(tmp_path, rename)
    assert_same_parameters(T5.from_pretrained(tmp_path), model)


NORM = "decoder.final_layer_norm.weight"


def three_faults(weights: dict) -> None:
    weights["bogus_key"] = weights.pop(NORM)
    weights["lm_head.weight"] = torch.ones(96, 5)


BROKEN = {
    "keys missing, unknown and misshapen": (
        lambda d: edit_weights(d, three_faults),
        ["Missing", NORM, "Unexpected", "bogus_key", "size mismatch", "lm_head.weight", "[96, 5]", "[96, 32]"],
    ),
    "weights cut off": (lambda d: os.truncate(d / "model.safetensors", 20_000), ["damaged"]),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["model.safetensors", "pytorch_model.bin"]),
    "integers": (lambda d: edit_weights(d, lambda w: w.update({NORM: w[NORM].long()})), ["floating-point"]),
    "config not JSON": (lambda d: (d / "config.json").write_text("{'d_model': 3"), ["config.json", "JSON"]),
    "unknown layer": (lambda d: edit_config(d, num_layers=2), ["Unexpected", "encoder.block.2."]),
    "a billion layers": (lambda d: edit_config(d, num_layers=10**9), ["more layers than the weights"]),
    "another model": (lambda d: edit_config(d, model_type="bart"), ["model_type", "bart", "t5"]),
    "field missing": (lambda d: edit_config(d, ("num_heads",)), ["num_heads", "missing"]),
    "text for a number": (lambda d: edit_config(d, d_model="32"), ["d_model", '"32"']),
    "negative size": (lambda d: edit_config(d, vocab_size=-1), ["vocab_size", "-1"]),
    "unknown feed-forward": (lambda d: edit_config(d, feed_forward_proj="gated-silu"), ["gated-silu"]),
    "EOS outside the vocabulary": (lambda d: edit_config(d, eos_token_id=2**20), ["EOS", "vocabulary"]),
    "a distance that the exact buckets cover": (
        lambda d: edit_config(d, relative_attention_max_distance=8),
        ["relative_attention_max_distance"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_sentence_that_names_the_fault(case, tmp_path):
    make("v1.1").save_pretrained(tmp_path)
    damage, words = BROKEN[case]
    damage(tmp_path)
    text = refusal(T5.from_pretrained, tmp_path)
    assert all(word in text for word in words), text


class RunsCode:
    """What unpickles into a call of a function: here one that leaves a file behind."""

    def __reduce__(self):
        return Path.touch, (Path("mark"),)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("v1.1").save_pretrained(tmp_path)
    Path("model.safetensors").unlink()
    torch.save({"shared.weight": RunsCode()}, "pytorch_model.bin", _use_new_zipfile_serialization=new)
    torch.load("pytorch_model.bin", weights_only=False)
    Path("mark").unlink()  # so it would run
    text = refusal(T5.from_pretrained, tmp_path)
    assert "pytorch_model.bin" in text and "weights_only" not in text and not Path("mark").exists()


@needs_flan
@pytest.mark.parametrize("file,size", [("config.json", 76_961_152), ("config-base.json", 247_577_856),
                                       ("config-large.json", 783_150_080)])  # fmt: skip
def test_real_flan_t5_configurations_give_the_published_numbers_of_parameters(file, size):
    config = T5Config.from_dict(json.loads((FLAN / file).read_text()))
    assert not config.scale_decoder_outputs and not config.tie_word_embeddings
    with torch.device("meta"):
        model = T5(config)
    assert sum(p.numel() for p in model.parameters()) == size


# ------------------------------------------------------------------------------------------------ tokenizers


@needs_flan
def test_the_real_flan_t5_tokenizer_gives_the_ids_in_its_readme():
    tokenizer = M.load_tokenizer(FLAN)
    assert tokenizer.encode("Hello world, this is T5!").ids == [8774, 296, 6, 48, 19, 332, 755, 55, 1]
    assert tokenizer.get_vocab_size() == 32100
    assert [tokenizer.id_to_token(i) for i in (0, 1, 2)] == ["<pad>", "</s>", "<unk>"]
    assert tokenizer.decode([8774, 296, 6, 48, 19, 332, 755, 55, 1]) == "Hello world, this is T5!"


@pytest.mark.parametrize("place", [TINY_TOKENIZER, pytest.param(FLAN, marks=needs_flan)], ids=["tiny", "flan"])
def test_autotokenizer_opens_the_saved_folder_and_gives_the_same_ids(place, tmp_path, complaints):
    make("v1.1").save_pretrained(tmp_path, M.load_tokenizer(place))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), M.load_tokenizer(tmp_path)
    texts = ["The answer is 42.", "", "  two  spaces ", "the rationale</s>", "naïve – 東京", "a <extra_id_0> b"]
    if place == FLAN:
        texts += [record["question"] for record in json.loads((DATA / "hotpotqa_dev_sample.json").read_text())]
    assert [e.ids for e in ours.encode_batch(texts)] == theirs(texts).input_ids
    assert all(e.ids[-1] == EOS for e in ours.encode_batch(texts))
    assert (theirs.pad_token_id, theirs.eos_token_id, len(theirs)) == (0, 1, ours.get_vocab_size())
    ids = ours.encode(texts[0]).ids
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) == texts[0]
    assert complaints.messages == []


def test_loading_a_tokenizer_switches_off_its_saved_padding_and_truncation(tmp_path):
    tokenizer = M.load_tokenizer(TINY_TOKENIZER)
    long = tokenizer.encode("the answer follows " * 20).ids
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = M.load_tokenizer(tmp_path)
    assert loaded.encode("the answer follows " * 20).ids == long and len(loaded.encode("a").ids) == 2


def test_a_file_that_is_no_tokenizer_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')
    assert "not a tokenizer" in refusal(M.load_tokenizer, tmp_path)


def test_never_written_is_pad_and_the_rows_that_the_tokenizer_lacks():
    tokenizer = M.load_tokenizer(TINY_TOKENIZER)
    n = tokenizer.get_vocab_size()
    forbid = lmcot.LocalLM(make("v1.1", vocab_size=n + 3), tokenizer).forbid
    assert sorted(forbid) == [0, n, n + 1, n + 2]
