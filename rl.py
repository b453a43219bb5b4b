"""Proximal policy optimisation (Schulman et al. 2017) for an encoder-decoder, by hand; `train_rl.py` is the loop.

An episode is one rationale: each token is an action, EOS included. The policy is M_S; the reference, which a KL penalty
keeps it close to, is M_S as distillation left it. Nearly everything here is a pure function of tensors.

Shapes: B prompts, N samples of each, R = B·N rationales (row b·N + n), S source tokens, T target tokens, V vocabulary.
All per-token tensors are (R, T), and mask is True up to and including EOS, or up to the length limit.
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

    def __init__(self, d_model: int):
        super().__init__(d_model, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # it would compute this in bfloat16, too
            return super().forward(hidden.detach().float())[..., 0]


@dataclass
class Rollout:
    """What was sampled, and what policy, reference and critic thought of it at that time; all without gradient.

    Sampled ids are kept as they are: text that is decoded and encoded again may have other tokens.
    """

    source: Tensor  # (B, S) ids
    source_mask: Tensor  # (B, S)
    ids: Tensor  # (R, T)
    mask: Tensor  # (R, T)
    logp_old: Tensor  # (R, T) of the policy that sampled, at temperature 1
    logp_ref: Tensor  # (R, T) of the reference
    values: Tensor  # (R, T) of the critic; value t is that of the state before token t
    ended: Tensor  # (R,) whether the rationale ends in EOS; the others were cut

    def to(self, device: str | torch.device) -> "Rollout":
        return Rollout(**{name: x.to(device) for name, x in vars(self).items()})


def teacher_forced(
    model: T5, head: ValueHead | None, encoded: Tensor, source_mask: Tensor, ids: Tensor, mask: Tensor,
    forbid: tuple[int, ...],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Log-probability of each given token, entropy of the softmax it was drawn from, and value, each (R, T), in nats.

    encoded is (B, S, D): N rows of ids share one source, and its keys and values. The old and new log-probabilities of
    a ratio must both come from here: the cached decoder that samples rounds differently. What is beyond the mask is 0.
    """
    hidden = model.decode(model.shift_right(ids), encoded, source_mask)[mask]  # (tokens, D): only real ones are scored
    every = log_softmax(model.logits(hidden), forbid)  # (tokens, V)

    def grid(x: Tensor) -> Tensor:  # (tokens,) → (R, T)
        return x.new_zeros(mask.shape).masked_scatter(mask, x)

    logp = grid(every.gather(1, ids[mask][:, None])[:, 0])
    entropy = grid(torch.special.entr(every.detach().exp()).sum(1))  # Σ −p log p, 0 for the forbidden ids
    values = grid(head(hidden)) if head else torch.zeros_like(logp)
    return logp, entropy, values


@torch.no_grad()
def rollout(
    policy: T5, reference: T5, head: ValueHead, source: Tensor, source_mask: Tensor, samples: int, max_new_tokens: int,
    forbid: tuple[int, ...], generator: torch.Generator,
) -> Rollout:  # fmt: skip
    """Sample N rationales for each prompt (B, S), at temperature 1 and from all tokens but the forbidden, and score
    them by policy, reference and critic. Each model's encoder runs once per prompt."""
    encoded = policy.encode(source, source_mask)
    out = policy.generate(source, source_mask, max_new_tokens, samples, temperature=1.0, forbid=forbid,
                          generator=generator, encoded=encoded)  # fmt: skip
    ids, mask = out.ids.flatten(0, 1), out.mask.flatten(0, 1)  # (R, T)
    logp_old, _, values = teacher_forced(policy, head, encoded, source_mask, ids, mask, forbid)
    encoded = reference.encode(source, source_mask)
    logp_ref, _, _ = teacher_forced(reference, None, encoded, source_mask, ids, mask, forbid)
    ended = ((ids == policy.config.eos_token_id) & mask).any(1)
    return Rollout(source, source_mask, ids, mask, logp_old, logp_ref, values, ended)


def rows_of(prompts: Tensor, samples: int) -> Tensor:
    """Numbers of prompts (B,) → those of their rationales (B·N,), N = samples in a row for each."""
    return (prompts[:, None] * samples + torch.arange(samples)).flatten()


def join(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of parts of a batch, or of several processes → one, with all rows as long as the longest."""

    def pad(name: str) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        width = max(x.shape[-1] for x in tensors)
        return torch.cat([F.pad(x, (0, width - x.shape[-1])) if x.ndim > 1 else x for x in tensors])

    return Rollout(**{name: pad(name) for name in vars(parts[0])})


# ------------------------------------------------------------------------------------------------ rewards to advantages


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over all real tokens of a batch: long rationales weigh more than short ones, token for token."""
    return (x * mask).sum() / mask.sum()


def last_token(mask: Tensor) -> Tensor:
    """(R, T) → (R, T), True at each row's last real token: EOS, or where the length limit cut."""
    return mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))


def leave_one_out_baseline(scores: Tensor, samples: int) -> Tensor:
    """Scores (R,) → (R,): the mean score of the same prompt's other N − 1 rationales (N = 1: of the batch's others).

    As a baseline it says how hard the question is, and no token of the rationale can change it: subtracting it leaves
    the policy gradient's expectation as it is and lowers its variance (Kool et al. 2019; Ahmadian et al. 2024).
    """
    groups = scores.view(-1, samples if samples > 1 else len(scores))
    return ((groups.sum(1, keepdim=True) - groups) / max(1, groups.shape[1] - 1)).flatten()


def token_rewards(logp: Tensor, logp_ref: Tensor, scores: Tensor, mask: Tensor, beta: float) -> Tensor:
    """r_t = −β (log π(a_t) − log π_ref(a_t)), and the rationale's score (R,) on top at its last token → (R, T)."""
    return (-beta * (logp - logp_ref) * mask) + scores[:, None] * last_token(mask)


def gae(token_rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) → advantages, returns, each (R, T).

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}; beyond the last token value and advantage are 0, whether the
    rationale ended there or was cut. Returns are A + V, the critic's targets.
    """
    rewards, values = token_rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    following = value_after = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t], value_after = following, values[:, t]
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the real tokens; 0 beyond them.

    What varies no more than rounding does becomes 0: dividing noise by its own size would make a full update out of
    rewards that are all equal.
    """
    mean = masked_mean(x, mask)
    centred = (x - mean) * mask
    std = (centred.square().sum() / mask.sum()).sqrt()
    return torch.where(std > 1e-5 * (1 + mean.abs()), centred / std, torch.zeros_like(x))


# ------------------------------------------------------------------------------------------------ losses


def check_first_ratio(logp: Tensor, logp_old: Tensor) -> None:
    """Before any update every ratio π / π_old is 1. If not, sampling and scoring differ."""
    assert float((logp.detach() - logp_old).abs().max()) < 5e-4, "a ratio is not 1 before any update"


def all_finite(*tensors: Tensor) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors)


def ppo_loss(logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """−E[min(ρ A, clip(ρ, 1 ± ε) A)] over tokens, with ρ = π / π_old (Schulman et al. 2017, eq. 7)."""
    ratio = (logp - logp_old).exp()
    return masked_mean(-torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages), mask)


def value_loss(values: Tensor, values_old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """½ E[max((V − R)², (V_clipped − R)²)]: V may gain nothing from moving further than `clip` from the rollout's."""
    clipped = values_old + (values - values_old).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.max((values - returns).square(), (clipped - returns).square()), mask)


def adapt_beta(beta: float, kl: float, target: float, episodes: int, horizon: int = 10_000) -> float:
    """The KL coefficient after a rollout whose mean KL per rationale was `kl` nats (Ziegler et al. 2019, 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)


# ------------------------------------------------------------------------------------------------ what to look at


@torch.no_grad()
def rollout_metrics(r: Rollout) -> dict[str, float]:
    """KL to the reference in nats per rationale (k1, and Schulman's always positive k3), length, how many ended."""
    log_ratio = (r.logp_old - r.logp_ref) * r.mask
    return {
        "kl": float(log_ratio.sum(1).mean()),
        "kl_k3": float((((-log_ratio).exp() - 1 + log_ratio) * r.mask).sum(1).mean()),
        "length": float(r.mask.sum(1).float().mean()),
        "ended": float(r.ended.float().mean()),
    }


@torch.no_grad()
def update_metrics(logp: Tensor, logp_old: Tensor, entropy: Tensor, mask: Tensor, clip: float) -> dict[str, float]:
    """How far one minibatch's policy is from the one that sampled it; entropy in nats per token."""
    ratio = (logp - logp_old).exp()
    return {
        "ratio_max": float(ratio[mask].max()),
        "clip_fraction": float(masked_mean(((ratio - 1).abs() > clip).float(), mask)),
        "approx_kl": float(masked_mean((ratio - 1) - (logp - logp_old), mask)),
        "entropy": float(masked_mean(entropy, mask)),
    }


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(R − V) / Var(R) over real tokens: 1 is a perfect critic, 0 one that knows nothing, below 0 is harmful."""
    returns, errors = returns[mask], (returns - values)[mask]
    variance = returns.var(correction=0)
    return float(1 - errors.var(correction=0) / variance) if variance > 1e-8 else 0.0


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
    if len(rows) >= 50 and max(row["reward"] for row in rows[-10:]) <= first["reward"]:
        found.append("the reward has not risen in 50 steps: raise --lr, or sample more rationales per step")
    return found
