"""Proximal policy optimisation (Schulman et al. 2017) for an encoder-decoder, by hand; `train_rl.py` is the loop.

An episode is one rationale: each token is an action, EOS included. The policy is M_S; the reference, which a KL penalty
keeps it close to, is M_S as distillation left it. Nearly everything here is a pure function of tensors.

Shapes: B prompts, N samples of each, BN rationales (row b·N + n), S source tokens, T target tokens, V vocabulary.
All per-token tensors are (BN, T), and mask is True up to and including EOS, or up to the length limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import T5, log_softmax

# ------------------------------------------------------------------------------------------------ rollout


class ValueHead(nn.Linear):
    """The critic: (…, D) hidden states of the decoder → (…) expected return. Zero at first, and always in fp32.

    It reads the policy's hidden states and does not change them (they are detached): no coefficient has to weigh its
    loss against the policy's.
    """

    def __init__(self, d_model):
        super().__init__(d_model, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden):
        hidden = hidden.detach().float()
        with torch.autocast(hidden.device.type, enabled=False):  # it would compute this in bfloat16, too
            return super().forward(hidden)[..., 0]


@dataclass
class Rollout:
    """What was sampled, and what policy, reference and critic thought of it at that time; all without gradient.

    Sampled ids are kept as they are: text that is decoded and encoded again may have other tokens.
    """

    source: Tensor  # (B, S) ids
    source_mask: Tensor  # (B, S)
    ids: Tensor  # (BN, T)
    mask: Tensor  # (BN, T)
    logp_old: Tensor  # (BN, T) of the policy that sampled, at temperature 1
    logp_ref: Tensor  # (BN, T) of the reference
    values: Tensor  # (BN, T) of the critic; value t is that of the state before token t
    ended: Tensor  # (BN,) whether the rationale ends in EOS; the others were cut

    def to(self, device) -> "Rollout":
        return Rollout(*[x.to(device) for x in vars(self).values()])


def teacher_forced(model, head, encoded, source_mask, ids, mask, forbid):
    """Log-probability of each given token, entropy of the softmax it was drawn from, and value (0 without a head), each
    (BN, T), in nats; 0 beyond the mask.

    encoded is (B, S, D): N rows of ids share one source, and its keys and values. The old and new log-probabilities of
    a ratio must both come from here: the cached decoder that samples rounds differently.
    """
    hidden = model.decode(model.shift_right(ids), encoded, source_mask)
    hidden = hidden[mask]  # (tokens, D): only real tokens are scored
    every = log_softmax(model.logits(hidden), forbid)  # (tokens, V)
    chosen = ids[mask][:, None]  # (tokens, 1)
    logp = every.gather(1, chosen)[:, 0]
    entropy = torch.special.entr(every.detach().exp()).sum(1)  # Σ −p log p, 0 for the forbidden ids
    values = head(hidden) if head else torch.zeros_like(logp)
    return in_rows(logp, mask), in_rows(entropy, mask), in_rows(values, mask)


def in_rows(x, mask):
    """Values of the real tokens (tokens,) → (BN, T), 0 beyond the mask."""
    return x.new_zeros(mask.shape).masked_scatter(mask, x)


@torch.no_grad()
def rollout(
    policy: T5, reference: T5, head: ValueHead, source, source_mask, samples, max_new_tokens, forbid, generator
) -> Rollout:
    """Sample N rationales for each prompt (B, S), at temperature 1 and from all tokens but the forbidden, and score
    them by policy, reference and critic. Each model's encoder runs once per prompt."""
    encoded = policy.encode(source, source_mask)
    out = policy.generate(source, source_mask, max_new_tokens, num_samples=samples, temperature=1.0, forbid=forbid,
                          generator=generator, encoded=encoded)  # fmt: skip
    ids = out.ids.flatten(0, 1)  # (BN, T)
    mask = out.mask.flatten(0, 1)
    logp_old, _, values = teacher_forced(policy, head, encoded, source_mask, ids, mask, forbid)
    encoded = reference.encode(source, source_mask)
    logp_ref, _, _ = teacher_forced(reference, None, encoded, source_mask, ids, mask, forbid)
    ended = ((ids == policy.config.eos_token_id) & mask).any(1)
    return Rollout(source, source_mask, ids, mask, logp_old, logp_ref, values, ended)


def rows_of(prompts, samples):
    """Indices of prompts (B,) → those of their rationales (B·N,), N = samples in a row for each."""
    return (prompts[:, None] * samples + torch.arange(samples)).flatten()


def join(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of parts of a batch, or of several processes → one, with all rows as long as the longest."""
    joined = []
    for tensors in zip(*[vars(part).values() for part in parts], strict=True):
        if tensors[0].ndim > 1:
            width = max(x.shape[1] for x in tensors)
            tensors = [F.pad(x, (0, width - x.shape[1])) for x in tensors]
        joined.append(torch.cat(tensors))
    return Rollout(*joined)


# ------------------------------------------------------------------------------------------------ rewards to advantages


def masked_mean(x, mask):
    """Mean over all real tokens of a batch: long rationales weigh more than short ones, token for token."""
    return (x * mask).sum() / mask.sum()


def last_token(mask):
    """(BN, T) → (BN, T), True at each row's last real token: EOS, or where the length limit cut."""
    return mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))


def leave_one_out_baseline(scores, samples):
    """Scores (BN,) → (BN,): the mean score of the same prompt's other N − 1 rationales (N = 1: of the batch's others).

    As a baseline it says how hard the question is, and no token of the rationale can change it: subtracting it leaves
    the policy gradient's expectation as it is and lowers its variance (Kool et al. 2019; Ahmadian et al. 2024).
    """
    size = samples if samples > 1 else len(scores)
    groups = scores.view(-1, size)
    others = groups.sum(1, keepdim=True) - groups
    return others.flatten() / max(1, size - 1)


def token_rewards(logp, logp_ref, scores, mask, beta):
    """r_t = −β (log π(z_t) − log π_ref(z_t)), and the rationale's score (BN,) on top at its last token → (BN, T)."""
    penalty = beta * (logp - logp_ref) * mask
    return scores[:, None] * last_token(mask) - penalty


def gae(token_rewards, values, mask, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) → advantages, returns, each (BN, T).

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}; beyond the last token value and advantage are 0, whether the
    rationale ended there or was cut. Returns are A + V, the critic's targets.
    """
    rewards, values = token_rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    next_advantage = next_value = torch.zeros_like(values[:, 0])  # of token t + 1
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_advantage, next_value = advantages[:, t], values[:, t]
    return advantages, advantages + values


def whiten(x, mask):
    """Mean 0 and variance 1 over the real tokens; 0 beyond them.

    What varies no more than rounding does becomes 0: dividing noise by its own size would make a full update out of
    rewards that are all equal.
    """
    mean = masked_mean(x, mask)
    centred = (x - mean) * mask
    std = masked_mean(centred.square(), mask).sqrt()
    if std <= 1e-5 * (1 + mean.abs()):
        return torch.zeros_like(x)
    return centred / std


# ------------------------------------------------------------------------------------------------ losses


def check_first_ratio(logp, logp_old) -> None:
    """Before any update every ratio π / π_old is 1, but for rounding (1.4e-4 was seen). If not, sampling and scoring
    differ."""
    difference = (logp.detach() - logp_old).abs().max()
    assert difference < 5e-4, f"before any update a ratio differs from 1: its logarithm is {difference:.1e}"


def all_finite(*tensors) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors)


def ppo_loss(logp, logp_old, advantages, mask, clip):
    """−E[min(ρ A, clip(ρ, 1 ± ε) A)] over tokens, with ρ = π / π_old (Schulman et al. 2017, eq. 7)."""
    ratio = (logp - logp_old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -masked_mean(torch.min(ratio * advantages, clipped * advantages), mask)


def value_loss(values, values_old, returns, mask, clip):
    """½ E[max((V − G)², (V_clipped − G)²)], with returns G: V may gain nothing from moving further than `clip`."""
    clipped = values_old + (values - values_old).clamp(-clip, clip)
    error = (values - returns).square()
    error_clipped = (clipped - returns).square()
    return 0.5 * masked_mean(torch.max(error, error_clipped), mask)


def adapt_beta(beta, kl, target, episodes, horizon=10_000) -> float:
    """The KL coefficient after a rollout whose mean KL per rationale was `kl` nats (Ziegler et al. 2019, 2.2). An error
    of a fifth or more changes it by a fifth in `horizon` episodes (TRL's number)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)


# ------------------------------------------------------------------------------------------------ what to look at


@torch.no_grad()
def rollout_metrics(r: Rollout) -> dict[str, float]:
    """KL to the reference in nats per rationale, length, and how many ended."""
    log_ratio = (r.logp_old - r.logp_ref) * r.mask  # (BN, T)
    length = r.mask.sum(1).float()
    return {
        "kl": float(log_ratio.sum(1).mean()),
        "length": float(length.mean()),
        "ended": float(r.ended.float().mean()),
    }


@torch.no_grad()
def update_metrics(logp, logp_old, entropy, mask, clip) -> dict[str, float]:
    """How far one minibatch's policy is from the one that sampled it; entropy in nats per token."""
    log_ratio = logp - logp_old
    ratio = log_ratio.exp()
    is_clipped = (ratio - 1).abs() > clip
    return {
        "ratio_max": float(ratio[mask].max()),
        "clip_fraction": float(masked_mean(is_clipped, mask)),
        "approx_kl": float(masked_mean(ratio - 1 - log_ratio, mask)),
        "entropy": float(masked_mean(entropy, mask)),
    }


def explained_variance(values, returns, mask) -> float:
    """1 − Var(G − V) / Var(G) over real tokens: 1 is a perfect critic, 0 one that knows nothing, below 0 is harmful."""
    errors = (returns - values)[mask]
    variance = returns[mask].var(correction=0)
    if variance <= 1e-8:
        return 0.0
    return float(1 - errors.var(correction=0) / variance)


def warnings(rows: Sequence[dict], max_new_tokens: int) -> list[str]:
    """What has gone wrong in a run, from its metrics so far (one dict a step): each with what to do about it."""
    if len(rows) < 2:
        return []
    first, now = rows[0], rows[-1]
    found = []
    if now["ratio_max"] > 50:
        found.append(f"a ratio of {now['ratio_max']:.0f}: sampling and scoring differ, or --lr is far too high")
    if now["kl"] < -0.5:
        found.append(f"the KL is {now['kl']:.2f} nats: sampling and scoring differ")
    if now["kl"] > 50 and now["reward"] > first["reward"]:
        found.append(f"reward rises while the KL is {now['kl']:.0f} nats, hacking: raise --beta, read the samples")
    if now["entropy"] < 0.2 * first["entropy"]:
        found.append("entropy has fallen below a fifth, collapse: lower --lr or raise --beta")
    if now["entropy"] > 3 * first["entropy"] + 0.5:
        found.append("entropy has more than tripled, gibberish: lower --lr")
    if now["length"] < 0.3 * first["length"]:
        found.append("rationales shrink to nothing: a reward favours short ones; look at its parts")
    if now["length"] > 0.9 * max_new_tokens or now["ended"] < 0.5 * first["ended"]:
        found.append("rationales no longer end: set --missing-eos-penalty 1")
    lately = [row["reward"] for row in rows[-10:]]
    if len(rows) >= 50 and max(lately) <= first["reward"]:
        found.append("the reward has not risen in 50 steps: raise --lr, or sample more rationales per step")
    return found
