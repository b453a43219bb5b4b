"""Proofs for rl.py: every formula against a plain loop or a value worked by hand, and PPO as a whole against tasks
whose optimum is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rl
from model import T5, T5Config

FORBID = (0, 2)


def tiny_policy(seed=0, vocab=12):
    config = T5Config(vocab_size=vocab, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2,
                      dropout_rate=0.0)  # fmt: skip
    return T5(config).init_weights(seed).eval()


def sources(count, vocab=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    source = torch.randint(3, vocab, (count, 6), generator=g)
    mask = torch.ones_like(source)
    mask[::2, 4:] = 0  # ragged
    return source.masked_fill(mask == 0, 0), mask


@st.composite
def ragged(draw):
    """Four tensors (BN, T) in float64 and a mask of rows of 1 to T tokens; what is beyond the mask is rubbish."""
    rows, length = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    lengths = torch.tensor([draw(st.integers(1, length)) for _ in range(rows)])
    mask = torch.arange(length)[None, :] < lengths[:, None]
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    a, b, c, d = (torch.randn(rows, length, generator=g, dtype=torch.float64) for _ in range(4))
    return a, b, c, d, mask


# ------------------------------------------------------------------------------------------------ worked by hand


def test_three_tokens_by_hand():
    """One rationale of three tokens, score 2, β .1, γ 1, λ .5: all figures were worked out on paper."""
    mask = torch.tensor([[True, True, True, False]])
    logp, logp_ref = torch.tensor([[-1.0, -2.0, -1.0, -9.0]]), torch.tensor([[-2.0, -1.0, -1.0, 7.0]])
    rewards = rl.token_rewards(logp, logp_ref, torch.tensor([2.0]), mask, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.1, 2.0, 0.0]]))
    values = torch.tensor([[1.0, 0.5, 1.5, 99.0]])
    advantages, returns = rl.gae(rewards, values, mask, 1.0, 0.5)
    # δ = (-.1 + .5 - 1, .1 + 1.5 - .5, 2 + 0 - 1.5) = (-.6, 1.1, .5); A_3 = .5, A_2 = 1.1 + .25, A_1 = -.6 + .675
    torch.testing.assert_close(advantages, torch.tensor([[0.075, 1.35, 0.5, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.075, 1.85, 2.0, 0.0]]))


def test_the_kl_coefficient_moves_by_at_most_a_fifth_of_the_episodes_share_of_the_horizon():
    assert rl.adapt_beta(0.1, kl=12.0, target=6.0, episodes=1000) == pytest.approx(0.1 * 1.02)
    assert rl.adapt_beta(0.1, kl=0.0, target=6.0, episodes=1000) == pytest.approx(0.1 * 0.98)
    assert rl.adapt_beta(0.1, kl=6.6, target=6.0, episodes=1000) == pytest.approx(0.1 * 1.01)
    assert rl.adapt_beta(0.1, kl=6.0, target=6.0, episodes=1000) == pytest.approx(0.1)


def test_what_is_logged_of_two_rationales_by_hand():
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[0.5, 0.4], [0.2, 0.9]]).log()  # .9 is beyond the mask
    reference = torch.tensor([[0.25, 0.2], [0.2, 0.1]]).log()
    nothing = torch.zeros(2, 2)
    rolled = rl.Rollout(nothing, nothing, nothing, mask, old, reference, nothing, torch.tensor([True, False]))
    # KL: log 2 for each token of the first, nothing for the second
    assert rl.rollout_metrics(rolled) == pytest.approx({"kl": math.log(4) / 2, "length": 1.5, "ended": 0.5})

    new = torch.tensor([[0.55, 0.6], [0.2, 0.1]]).log()  # ratios 1.1, 1.5 and 1
    entropy = torch.tensor([[0.3, 0.6], [0.9, 7.0]])
    approx_kl = (0.1 - math.log(1.1) + 0.5 - math.log(1.5)) / 3
    expected = {"ratio_max": 1.5, "clip_fraction": 1 / 3, "approx_kl": approx_kl, "entropy": 0.6}
    assert rl.update_metrics(new, old, entropy, mask, 0.2) == pytest.approx(expected, rel=1e-4)


def test_a_ratio_that_is_not_1_before_any_update_is_seen():
    logp = torch.tensor([[-1.0, -2.0]])
    rl.check_first_ratio(logp, logp + 1e-5)
    with pytest.raises(AssertionError, match="a ratio differs from 1"):
        rl.check_first_ratio(logp, logp + torch.tensor([0.0, 1e-3]))


# ------------------------------------------------------------------------------------------------ against plain loops


@settings(max_examples=60, deadline=None)
@given(ragged(), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_gae_equals_the_sum_over_all_future_deltas_row_by_row(tensors, gamma, lam):
    rewards, values, _, _, mask = tensors
    advantages, returns = rl.gae(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        n = int(mask[row].sum())
        r, v = rewards[row, :n].tolist(), [*values[row, :n].tolist(), 0.0]
        for t in range(n):
            expected = sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, n))
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-9)
            assert float(returns[row, t]) == pytest.approx(expected + v[t], abs=1e-9)
        assert advantages[row, n:].eq(0).all() and returns[row, n:].eq(0).all()


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_the_baseline_of_a_rationale_is_the_mean_of_the_others_by_brute_force(prompts, samples, seed):
    scores = torch.randn(prompts * samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for i, baseline in enumerate(rl.leave_one_out_baseline(scores, samples).tolist()):
        group = range(i // samples * samples, (i // samples + 1) * samples) if samples > 1 else range(len(scores))
        others = [float(scores[j]) for j in group if j != i]
        assert baseline == pytest.approx(sum(others) / len(others) if others else 0.0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(ragged())
def test_whitening_sees_real_tokens_only(tensors):
    x, _, _, _, mask = tensors
    white = rl.whiten(x, mask)
    real = [float(x[i, t]) for i in range(len(x)) for t in range(x.shape[1]) if mask[i, t]]
    mean = sum(real) / len(real)
    std = math.sqrt(sum((value - mean) ** 2 for value in real) / len(real))
    expected = [(value - mean) / std if len(real) > 1 else 0.0 for value in real]
    assert white[mask].tolist() == pytest.approx(expected, abs=1e-9)
    assert white[~mask].eq(0).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_whitening_equal_advantages_gives_nothing_however_rounding_moves_them(scale):
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(8, 5, generator=g) < 0.8
    noise = 1 + 1e-7 * torch.randn(8, 5, generator=g)
    assert rl.whiten(scale * noise, mask).eq(0).all()
    assert rl.whiten(1e-7 * torch.randn(8, 5, generator=g), mask).eq(0).all()
    assert rl.whiten(torch.full((1, 1), 3.0), torch.ones(1, 1, dtype=torch.bool)).eq(0).all()  # one token alone


@settings(max_examples=60, deadline=None)
@given(ragged(), st.floats(0.05, 0.5))
def test_losses_and_their_gradients_equal_those_of_a_loop_over_tokens(tensors, clip):
    new, old, third, fourth, mask = tensors
    places = mask.nonzero().tolist()

    def loop_policy(new):
        total = 0 * new.sum()
        for i, t in places:
            ratio, advantage = torch.exp(new[i, t] - old[i, t]), third[i, t]
            limit = 1 + clip if advantage > 0 else 1 - clip
            is_clipped = ratio > limit if advantage > 0 else ratio < limit  # it has gone where the advantage points
            total = total - (limit if is_clipped else ratio) * advantage
        return total / len(places)

    def loop_value(new):
        total = 0 * new.sum()
        for i, t in places:
            move = new[i, t] - old[i, t]
            near = old[i, t] + (move if abs(move) <= clip else clip * move.detach().sign())
            errors = (new[i, t] - fourth[i, t]) ** 2, (near - fourth[i, t]) ** 2
            total = total + max(errors)
        return total / (2 * len(places))

    for ours, loop in (
        (lambda x: rl.ppo_loss(x, old, third, mask, clip), loop_policy),
        (lambda x: rl.value_loss(x, old, fourth, mask, clip), loop_value),
    ):
        a, b = (new.clone().requires_grad_() for _ in range(2))
        loss, expected = ours(a), loop(b)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(a.grad, b.grad)


@settings(max_examples=40, deadline=None)
@given(ragged())
def test_the_score_lands_on_the_last_real_token_alone_and_every_real_token_pays_kl(tensors):
    logp, logp_ref, scores, _, mask = tensors
    rewards = rl.token_rewards(logp, logp_ref, scores[:, 0], mask, 0.3)
    for i in range(len(mask)):
        n = int(mask[i].sum())
        for t in range(mask.shape[1]):
            kl = -0.3 * float(logp[i, t] - logp_ref[i, t]) if t < n else 0.0
            assert float(rewards[i, t]) == pytest.approx(kl + (float(scores[i, 0]) if t == n - 1 else 0.0))


@settings(max_examples=40, deadline=None)
@given(ragged())
def test_explained_variance_is_1_for_a_perfect_critic_0_for_a_constant_one(tensors):
    returns, _, _, _, mask = tensors
    if mask.sum() > 1:
        assert rl.explained_variance(returns, returns, mask) == pytest.approx(1)
        assert rl.explained_variance(torch.full_like(returns, 0.7), returns, mask) == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------ rollouts


@pytest.fixture(scope="module")
def rolled():
    """(policy, a critic that knows nothing yet, 3 rationales for each of 5 sources); the reference is the policy."""
    policy, head = tiny_policy(), rl.ValueHead(32)
    r = rl.rollout(policy, tiny_policy(), head, *sources(5), 3, 10, FORBID, torch.Generator().manual_seed(0))
    return policy, head, r


def scored(policy, head, r):
    """teacher_forced for all rows of a rollout."""
    encoded = policy.encode(r.source, r.source_mask)
    return rl.teacher_forced(policy, head, encoded, r.source_mask, r.ids, r.mask, FORBID)


def test_what_a_rollout_says_of_a_row_is_what_this_row_and_its_source_alone_give(rolled):
    policy, head, r = rolled
    _, entropy, _ = scored(policy, head, r)
    assert r.ids.shape[0] == 15 and len({tuple(row) for row in r.ids.tolist()}) > 10
    assert 0 < float(r.ended.float().mean()) < 1, "all of them end, or none"
    assert torch.equal(r.logp_old, r.logp_ref) and r.values.eq(0).all()
    # test_model.py proves that `generate` samples at the temperature that it is given; here it must be 1.
    again = policy.generate(*sources(5), 10, 3, 1.0, FORBID, torch.Generator().manual_seed(0))
    assert torch.equal(r.ids, again.ids.flatten(0, 1))
    for row, ids in enumerate(r.ids.tolist()):
        n = ids.index(1) + 1 if 1 in ids else len(ids)
        assert r.mask[row].tolist() == [True] * n + [False] * (len(ids) - n) and r.ended[row] == (1 in ids)
        assert not set(ids[:n]) & set(FORBID)
        length = int(r.source_mask[row // 3].sum())
        source = r.source[row // 3 : row // 3 + 1, :length]  # without padding
        logits = policy(source, torch.ones_like(source), policy.shift_right(r.ids[row : row + 1, :n]))
        p = torch.softmax(logits[0].index_fill(1, torch.tensor(FORBID), -torch.inf), 1)
        torch.testing.assert_close(r.logp_old[row, :n], p[range(n), r.ids[row, :n]].log(), rtol=1e-4, atol=1e-4)
        expected = torch.distributions.Categorical(p).entropy()
        torch.testing.assert_close(entropy[row, :n], expected, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_the_critic_and_all_that_is_made_of_it_stay_in_fp32():
    policy, head = tiny_policy(), rl.ValueHead(32)
    torch.nn.init.normal_(head.weight)
    source, mask = sources(3)
    with torch.autocast("cpu", torch.bfloat16):
        r = rl.rollout(policy, tiny_policy(1), head, source, mask, 2, 5, FORBID, torch.Generator().manual_seed(0))
        hidden = policy.decode(r.ids, policy.encode(source, mask), mask)
        values = head(hidden)
    torch.testing.assert_close(values, (hidden.float() * head.weight).sum(-1) + head.bias)
    assert {x.dtype for x in (r.values, r.logp_old, values)} == {torch.float32}
    advantages, returns = rl.gae(torch.ones_like(r.values), r.values, r.mask, 1.0, 0.95)
    assert advantages.dtype == returns.dtype == torch.float32


def test_in_a_rollout_each_encoder_runs_once_per_prompt_and_keys_are_made_once_per_pass_of_the_decoder():
    policy, reference = tiny_policy(), tiny_policy(1)
    rows, keys = [], []
    for model in (policy, reference):
        model.encoder.block[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        key = model.decoder.block[0].layer[1].EncDecAttention.k
        key.register_forward_pre_hook(lambda _, args: keys.append(len(args[0])))
    source, mask = sources(5)
    rl.rollout(policy, reference, rl.ValueHead(32), source, mask, 4, 6, FORBID, torch.Generator().manual_seed(0))
    assert rows == [5, 5]
    assert keys == [5, 5, 5], "sampling, scoring by the policy, scoring by the reference"


def test_the_critic_learns_from_its_loss_the_policy_does_not_and_forbidden_ids_make_no_gradient_nan(rolled):
    policy, _, r = rolled
    head = rl.ValueHead(32)
    logp, _, values = scored(policy, head, r)
    rl.value_loss(values, r.values, torch.ones_like(values), r.mask, 0.2).backward(retain_graph=True)
    assert head.weight.grad.abs().max() > 0 and head.bias.grad.abs().max() > 0
    assert all(p.grad is None for p in policy.parameters())

    (logp.sum() + values.sum()).backward()  # the forbidden ids have probability 0
    assert all(torch.isfinite(p.grad).all() for p in [*policy.parameters(), *head.parameters()] if p.grad is not None)
    policy.zero_grad()


# ------------------------------------------------------------------------------------------------ PPO as a whole


def test_a_toy_reward_rises_to_near_its_optimum():
    """Rewarded is the share of 8 tokens that are token 5: 1/10 at first, and 1 if the text does nothing else. A loop as
    that of train_rl.py, of 32 rationales a step."""

    def share(r):
        return ((r.ids == 5) & r.mask).sum(1) / 8

    policy, reference, head = tiny_policy(), tiny_policy(), rl.ValueHead(32)
    optimizer = torch.optim.Adam([*policy.parameters(), *head.parameters()], 1e-2, eps=1e-5)
    means = []
    for step in range(15):
        g = torch.Generator().manual_seed(step)
        r = rl.rollout(policy, reference, head, *sources(4), 8, 8, FORBID, g)
        means.append(share(r).mean())
        rewards = rl.token_rewards(r.logp_old, r.logp_ref, share(r), r.mask, 0.0)
        advantages, returns = rl.gae(rewards, r.values, r.mask, 1.0, 0.95)
        white = rl.whiten(advantages, r.mask)
        for _ in range(2):
            logp, _, values = scored(policy, head, r)
            loss = rl.ppo_loss(logp, r.logp_old, white, r.mask, 0.2)
            loss = loss + rl.value_loss(values, r.values, returns, r.mask, 0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert means[0] < 0.2 and means[-1] > 0.9


# ------------------------------------------------------------------------------------------------ warnings

HEALTHY = {"reward": 5.0, "kl": 1.0, "ratio_max": 1.5, "entropy": 0.5, "length": 20.0, "ended": 1.0}


@pytest.mark.parametrize(
    ("now", "word"),
    [
        ({"ratio_max": 80.0}, "sampling and scoring"), ({"kl": -2.0}, "sampling and scoring"),
        ({"kl": 90.0, "reward": 7.0}, "hacking"), ({"entropy": 0.05}, "collapse"), ({"entropy": 2.5}, "gibberish"),
        ({"length": 2.0}, "shrink"), ({"length": 62.0}, "no longer end"), ({"ended": 0.3}, "no longer end"),
    ],
)  # fmt: skip
def test_each_failure_signature_is_named_and_a_healthy_run_names_none(now, word):
    assert rl.warnings([HEALTHY, HEALTHY | {"reward": 6.0}], 64) == []
    (found,) = rl.warnings([HEALTHY, HEALTHY | now], 64)
    assert word in found and ":" in found


def test_a_reward_that_stays_flat_for_50_steps_is_named():
    assert rl.warnings([HEALTHY] * 49, 64) == []
    assert "not risen" in rl.warnings([HEALTHY] * 50, 64)[0]
    assert rl.warnings([HEALTHY] * 49 + [HEALTHY | {"reward": 5.5}], 64) == []
