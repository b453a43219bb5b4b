"""Rationale refinement, the second training: PPO, rewarded for the rationale's quality and for M_L's answer from it.

    python train_rl.py                                         # continues runs/kd → runs/rl, minutes on a CPU
    python train_rl.py --kd runs/kd1 --seed 1 --out runs/rl1   # another seed
    python train_rl.py --task-weight 0 --out runs/rl-aspects   # for quality alone; --weights 0 for answers alone
    python train_rl.py --kd runs/kd-hotpotqa --lr 1e-5 --micro-batch 2 --out runs/rl-hotpotqa   # after FLAN-T5's KD

Each step, of which a run has `--steps`:
1 Rollout: M_S samples N rationales for each of B training questions.
2 M_L answers from each; every rationale gets R = Σ w_i s_i (eight aspects) + w_task · [M_L's answer is right].
3 Reward per token: −β (log π − log π_ref), and on the last token R, less the mean R of the question's other rationales.
  GAE gives advantages, which are whitened.
4 The clipped policy and value losses, some epochs over minibatches.
The M_S with the highest mean R on held-out questions is kept, and compared with the one that distillation gave.

Departures from the paper: the aspects' measures, the weights and hyper-parameters are ours (the paper's are unknown).
The same command continues a run that was interrupted and prints the table of one that has ended.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

import data
import lmcot
import rewards
import rl
from data import Example
from eval import evaluate, read_run, texts_of_large
from lmcot import Answer, LocalLM
from model import pad_batch
from plumbing import processes
from plumbing.command import parse_settings, parse_weights, run_main
from plumbing.errors import UserError
from plumbing.run import Run
from train_kd import side_by_side


@dataclass
class Settings:
    kd: str = "runs/kd"  # run folder of train_kd.py: its M_S is policy and reference; data, M_L, server are the same
    out: str = "runs/rl"  # folder of this run
    overwrite: bool = False  # start anew in a folder that holds other settings
    steps: int = 140  # rollouts
    questions: int = 32  # B, of a rollout
    samples_per_question: int = 8  # N, rationales of each
    minibatch: int = 32  # questions (with their N rationales) of one update, over all processes; here the whole rollout
    micro_batch: int = 0  # questions that go through M_S at once (0: all); gradients add up, it only saves memory
    ppo_epochs: int = 2  # times that a rollout is learned from
    lr: float = 7e-5  # peak, Adam, falls linearly to 0; 1e-5 for FLAN-T5
    device: str = "auto"  # as in train_kd.py
    bf16: bool = False  # M_S computes in bfloat16 autocast, on GPUs that are fast at it; its weights stay float32
    beta: float = 0.05  # KL coefficient
    target_kl: float = 0.0  # nats per rationale; above 0, beta adapts to reach it
    gamma: float = 1.0  # discount
    lam: float = 0.95  # of GAE
    clip: float = 0.2  # of the ratio
    value_clip: float = 0.2  # of the critic, in units of reward
    critic_lr: float = 1e-2  # of the critic, a linear layer on the decoder's hidden states that does not change them
    reward: str = "sum"  # how aspects and task are combined: sum, or standardized
    weights: str = "1"  # w of the aspects: one number for all, or a list such as factuality=2,fluency=0 (the rest is 1)
    task_weight: float = 4.0  # w_task; at 1 a right answer drowns among eight aspects
    task_metric: str = "em"  # em, or f1 for a denser reward
    missing_eos_penalty: float = 0.0  # taken from R where a rationale was cut at the length limit
    max_new_tokens: int = 128  # of a rationale
    train_limit: int = 12000  # training questions to draw from; distillation has seen the first of them
    eval_every: int = 10  # steps between looks at held-out questions
    dev_limit: int = 300  # held-out questions
    test_limit: int = 500  # questions of the evaluation at the end
    samples: int = 10  # N of self-consistency and of best of N in the evaluation, not of rollouts
    temperature: float = 0.7  # of these samples
    seed: int = 0  # choice of questions, sampling, order of minibatches

    NOT_COMPARED: ClassVar[tuple[str, ...]] = ("out", "overwrite", "device")

    def check(self) -> None:
        if self.reward not in ("sum", "standardized") or self.task_metric not in ("em", "f1"):
            raise ValueError("--reward is sum or standardized, --task-metric is em or f1")
        parse_weights(self.weights, rewards.ASPECTS)
        if self.questions < processes.rank_and_size()[1]:
            raise ValueError("--questions must be at least the number of processes")


def distilled(folder: str) -> dict:
    """The settings of the run that made M_S; UserError where there is none."""
    kind, settings = read_run(folder)
    if kind == "direct":
        raise UserError(f"the M_S of {folder} learned to answer, not to write rationales: choose another --kd")
    if kind != "kd" or not (Path(folder) / "model").is_dir():
        raise UserError(f"no distilled M_S in {folder}: run train_kd.py first, or name its folder with --kd")
    return vars(lmcot.Models()) | settings  # defaults for what runs of older versions did not save


def sample_rationales(
    small: LocalLM, reference: LocalLM, head: rl.ValueHead, asked: list[Example], s: Settings, seed: int
) -> rl.Rollout:
    """N rationales for each question. Each process samples for its share of the questions, and gets everyone's."""
    mine = processes.share(asked)
    prompts = small.tokenizer.encode_batch(lmcot.fill(lmcot.RATIONALE, small, mine))
    source, source_mask = pad_batch([prompt.ids for prompt in prompts], device=small.device)
    generator = torch.Generator(small.device).manual_seed(seed + processes.rank_and_size()[0])
    size = s.micro_batch or len(source)
    parts = []
    for start in range(0, len(source), size):
        part = source[start : start + size], source_mask[start : start + size]
        parts.append(rl.rollout(small.model, reference.model, head, *part, s.samples_per_question, s.max_new_tokens,
                                small.forbid, generator))  # fmt: skip
    everyones = processes.gather([rl.join(parts).to("cpu")])
    return rl.join(everyones).to(small.device)


def judge(examples: list[Example], answers: list[Answer], s: Settings) -> list[dict[str, float]]:
    """R_aspect, the eight aspects and R_task of each rationale, of which N in a row belong to each example."""
    weights = parse_weights(s.weights, rewards.ASPECTS)
    samples = len(answers) // len(examples)
    judged = []
    for i, answer in enumerate(answers):
        example = examples[i // samples]
        parts = rewards.quality(answer.rationale, example, answer.prediction, weights)
        parts["R_task"] = rewards.r_task(answer.prediction, example.answers, s.task_metric)
        judged.append(parts)
    return judged


def learn(
    small: LocalLM, head: rl.ValueHead, r: rl.Rollout, minibatch: Tensor, advantages: Tensor, returns: Tensor,
    s: Settings, is_first: bool,
) -> list[dict[str, float]]:  # fmt: skip
    """The gradients of a minibatch, added up from micro-batches and over all processes → metrics of each part.

    minibatch holds numbers of questions; advantages and returns are (BN, T). Both losses are means over all tokens of
    the minibatch. They are of separate parameters, so that no coefficient has to weigh them.
    """
    policy = small.model
    tokens = r.mask[rl.rows_of(minibatch, s.samples_per_question)].sum()
    parts = []
    for b in processes.micro_batches(minibatch, s.micro_batch):
        rows = rl.rows_of(b, s.samples_per_question)
        source_mask = r.source_mask[b]
        ids, mask, logp_old = r.ids[rows], r.mask[rows], r.logp_old[rows]
        with torch.autocast(small.device.type, torch.bfloat16, enabled=s.bf16):
            encoded = policy.encode(r.source[b], source_mask)
            logp, entropy, values = rl.teacher_forced(policy, head, encoded, source_mask, ids, mask, small.forbid)
        if is_first and not s.bf16:
            rl.check_first_ratio(logp, logp_old)
        policy_loss = rl.ppo_loss(logp, logp_old, advantages[rows], mask, s.clip)
        value_loss = rl.value_loss(values, r.values[rows], returns[rows], mask, s.value_clip)
        loss = (policy_loss + value_loss) * (mask.sum() / tokens)
        loss.backward()
        found = rl.update_metrics(logp, logp_old, entropy, mask, s.clip)
        parts.append(found | {"policy_loss": policy_loss.item(), "value_loss": value_loss.item()})
    processes.sum_gradients([*policy.parameters(), *head.parameters()])
    norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0))  # the critic's loss clips by itself
    return processes.gather([part | {"grad_norm": norm} for part in parts])


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    found = {}
    for name in rows[0]:
        found[name] = sum(row[name] for row in rows) / len(rows)
    return found


def main() -> None:
    s = parse_settings(Settings, __doc__)
    kd = distilled(s.kd) | {"device": s.device}
    train = data.load(kd["data"], "train", s.train_limit, kd["context"])
    dev = data.load(kd["data"], "dev", s.dev_limit, kd["context"])
    test_data = kd["test_data"] or kd["data"]
    test = data.load(test_data, "test", s.test_limit, kd["context"])
    models = lmcot.Models(**{name: kd[name] for name in vars(lmcot.Models())})
    large = lmcot.load_large(models, s.out)
    small = lmcot.load_small(models, Path(s.kd) / "model")
    reference = lmcot.load_small(models, Path(s.kd) / "model")
    policy = small.model  # without dropout, as the reference: it would change the ratios
    head = rl.ValueHead(policy.config.d_model).to(small.device)
    optimizer = torch.optim.Adam([{"params": policy.parameters(), "lr": s.lr},
                                  {"params": head.parameters(), "lr": s.critic_lr}], eps=1e-5, fused=True)  # fmt: skip
    parts = {"policy": policy, "head": head, "optimizer": optimizer}

    with Run(s.out, s, s.overwrite) as run:
        run.uses({"M_S": Path(s.kd) / "model" / "model.safetensors"})
        if run.has_ended():
            return
        print(f"M_S {s.kd}/model · M_L {kd['large']} · {s.steps} steps of {s.questions} × {s.samples_per_question} "
              f"rationales from {len(train)} questions · folder {s.out}\n")  # fmt: skip
        # M_L writes texts for rollouts, for looks at held-out questions, and for the table.
        requests = s.steps * s.questions * s.samples_per_question
        requests += (1 + s.steps // s.eval_every) * len(dev)
        requests += texts_of_large(test, {"kd": [None], "rl": [None]}, s.samples)
        lmcot.announce(large, train, requests)
        state = {"step": 0, "best": -math.inf, "best_step": 0, "beta": s.beta}
        state |= run.load_state(parts, small.device)
        combination = rewards.Combination(s.reward, s.task_weight)
        vars(combination).update(state.pop("combination", {}))
        log = run.trim("metrics.jsonl", "step", state["step"])
        run.trim("dev.jsonl", "step", state["step"] - 1)  # the look at this step comes again
        run.trim("texts.jsonl", "step", state["step"] - 1)

        bar = tqdm(total=s.steps, initial=state["step"], desc="PPO")
        while True:
            step = state["step"]
            if step % s.eval_every == 0 or step == s.steps:  # look at held-out questions, keep the best, save all
                answers = lmcot.guided(large, dev, lmcot.write_rationales(small, dev, s.max_new_tokens))
                look = means(judge(dev, answers, s))
                reward = look["R_aspect"] + s.task_weight * look["R_task"]  # on the same scale whatever --reward is
                run.append("dev.jsonl", {"step": step, "reward": reward, **look})
                run.append("texts.jsonl", {"step": step, "answers": list(map(vars, answers))})
                if reward > state["best"]:
                    state |= {"best": reward, "best_step": step}
                    if run.writes:
                        policy.save_pretrained(run.path("model"), small.tokenizer)
                run.save_state(state | {"combination": vars(combination)}, parts)
            if step == s.steps:
                break
            rng = random.Random(f"{s.seed} {step}")  # every step has its own: a run that goes on repeats nothing

            # ---- 1 rollout: BN = questions × samples_per_question rationales
            seed = rng.getrandbits(62)
            asked = rng.sample(train, min(s.questions, len(train)))
            with torch.autocast(small.device.type, torch.bfloat16, enabled=s.bf16):
                r = sample_rationales(small, reference, head, asked, s, seed)

            # ---- 2 M_L answers, every rationale gets its reward
            answers = lmcot.guided(large, asked, small.decode(r.ids, r.mask))
            judged = judge(asked, answers, s)
            aspect = [each["R_aspect"] for each in judged]
            task = [each["R_task"] for each in judged]
            scores = torch.tensor(combination(aspect, task), device=small.device)  # (BN,) R of each rationale
            scores = scores - s.missing_eos_penalty * ~r.ended
            batch = vars(r) | {"scores": scores, "questions": [example.id for example in asked]}
            if not rl.all_finite(scores, r.logp_old, r.logp_ref, r.values):
                run.stop("a reward, log-probability or value", batch)

            # ---- 3 rewards per token, advantages
            baseline = rl.leave_one_out_baseline(scores, s.samples_per_question)  # of the question's other rationales
            token_rewards = rl.token_rewards(r.logp_old, r.logp_ref, scores - baseline, r.mask, state["beta"])
            advantages, returns = rl.gae(token_rewards, r.values, r.mask, s.gamma, s.lam)
            whitened = rl.whiten(advantages, r.mask)

            # ---- 4 epochs × minibatches
            optimizer.param_groups[0]["lr"] = s.lr * (1 - step / s.steps)
            updates: list[dict] = []
            for _ in range(s.ppo_epochs):
                order = torch.tensor(rng.sample(range(len(asked)), len(asked)))
                for minibatch in order.split(s.minibatch):
                    optimizer.zero_grad()
                    found = learn(small, head, r, minibatch, whitened, returns, s, is_first=not updates)
                    if not math.isfinite(sum(sum(part.values()) for part in found)):
                        run.stop("a loss, a ratio or a gradient", batch | {"minibatch": minibatch, "updates": found})
                    optimizer.step()
                    updates += found

            # ---- log
            row = {"step": step + 1, "reward": float(scores.mean()), "beta": state["beta"]}
            row |= rl.rollout_metrics(r) | means(judged) | means(updates)
            row["ratio_max"] = max(each["ratio_max"] for each in updates)
            row["explained_variance"] = rl.explained_variance(r.values, returns, r.mask)
            run.append("metrics.jsonl", row)
            log.append(row)
            bar.set_postfix_str(f"R {row['reward']:.2f} aspects {row['R_aspect']:.2f} task {row['R_task']:.2f} "
                                f"KL {row['kl']:.2f} length {row['length']:.0f}")  # fmt: skip
            bar.update()
            if (step + 1) % s.eval_every == 0:
                for i in (0, len(answers) - 1):
                    example = asked[i // s.samples_per_question]
                    bar.write(described(step + 1, example, answers[i], judged[i]))
                for warning in rl.warnings(log, s.max_new_tokens):
                    bar.write(f"warning, step {step + 1}: {warning}")
            if s.target_kl:
                state["beta"] = rl.adapt_beta(state["beta"], row["kl"], s.target_kl, len(scores))
            state["step"] += 1
        bar.close()
        print(f"kept: M_S after step {state['best_step']}, mean R {state['best']:.3f} on {len(dev)} held-out questions")
        if state["best_step"] == 0:
            print("PPO did not raise it: this is the M_S of distillation")

        # ---- what it did to rationales and answers
        refined = lmcot.load_small(models, run.path("model"))
        print(side_by_side(dev[:3], reference, refined, s.max_new_tokens))
        print("\n" + evaluate(run, test, large, {"kd": [reference], "rl": [refined]}, s))
        print(f"The refined M_S is in {run.path('model')}; this table is in {run.path('results.md')}.")
        print(f"How it learned, as a page: python lab/report.py {s.kd} {s.out}")


def described(step: int, example: Example, answer: Answer, parts: dict[str, float]) -> str:
    """A sampled rationale with every part of its reward: reading them is how reward hacking is seen."""
    values = " ".join(f"{name} {value:.2f}" for name, value in parts.items())
    return (f"\nstep {step}  {example.question}\n  rationale   {answer.rationale}\n"
            f"  M_L answers {answer.prediction} (gold: {example.answer})\n  {values}")  # fmt: skip


if __name__ == "__main__":
    run_main(main)
