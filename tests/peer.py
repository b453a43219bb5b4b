"""The whole method with transformers and TRL 0.11, the last TRL whose PPO knows encoder-decoders: the peer of
`benchmark.py`'s row "method".

    V/bin/python tests/peer.py kd FLAGS          # does what train_kd.py does with the same flags
    V/bin/python tests/peer.py rl FLAGS          # train_rl.py
    V/bin/python tests/peer.py eval FLAGS        # eval.py

Decoding, distillation and PPO are transformers' and TRL's, and written to be fast: prompts of like lengths share a
batch, equal greedy prompts are computed once, a source's samples share its encoding, training batches are sorted by
length. What these libraries lack is the project's: prompts, parsing, rewards, metrics, list of methods, run folders.
"""

import math
import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

import data
import eval
import lmcot
import train_kd
import train_rl
from eval import evaluate
from plumbing.command import parse_settings
from plumbing.run import Run
from plumbing.server import Completion
from rewards import Combination
from rl import leave_one_out_baseline


class PeerLM:
    """`lmcot.LocalLM` by transformers."""

    def __init__(self, model, tokenizer, max_input_tokens: int = 1024, batch_size: int = 64):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_input_tokens, self.batch_size = max_input_tokens, batch_size
        self.restart(0)

    @classmethod
    def load(cls, place, models) -> "PeerLM":
        model = T5ForConditionalGeneration.from_pretrained(place).float()
        return cls(model, AutoTokenizer.from_pretrained(place), models.max_input_tokens, models.decode_batch_size)

    def restart(self, seed: int) -> None:
        self.tokens_written = self.cut = self.unfinished = self.unanswered = 0
        torch.manual_seed(seed)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.backend_tokenizer.encode(text).ids)  # faster than the tokenizer's call

    def complete(self, prompts, max_new_tokens: int, samples: int = 1, temperature: float = 0.0) -> list[Completion]:
        """See `lmcot.LM`."""
        if temperature > 0:
            return self._write(prompts, max_new_tokens, samples, do_sample=True, temperature=temperature, top_k=0)
        different = list(dict.fromkeys(prompts))
        of_prompt = dict(zip(different, self._write(different, max_new_tokens, 1), strict=True))
        return [of_prompt[prompt] for prompt in prompts for _ in range(samples)]

    def _write(self, prompts, max_new_tokens: int, samples: int, **how) -> list[Completion]:
        if not prompts:
            return []
        encoded = self.tokenizer(list(prompts)).input_ids
        order = sorted(range(len(prompts)), key=lambda i: -len(encoded[i]))
        size = max(1, self.batch_size // samples)
        written: list[list[Completion]] = [[] for _ in prompts]
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            source = self.tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
            out = self.model.generate(input_ids=source.input_ids, attention_mask=source.attention_mask,
                                      max_new_tokens=max_new_tokens, num_return_sequences=samples, **how)  # fmt: skip
            ids = out[:, 1:]  # without the start token
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            ended = (ids == self.tokenizer.eos_token_id).any(1).tolist()
            for row, text in enumerate(texts):
                written[batch[row // samples]].append(Completion(text.strip(), "stop" if ended[row] else "length"))
            self.tokens_written += int((ids != self.tokenizer.pad_token_id).sum())
            self.unfinished += ended.count(False)
        return [completion for of_prompt in written for completion in of_prompt]

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_large(models) -> PeerLM:
    large = PeerLM.load(models.large, models)
    large.templates = lmcot.PROMPTS["plain"]
    return large


# ------------------------------------------------------------------------------------------------ step 1, distillation


def ask(large: PeerLM, small: PeerLM, examples, s) -> dict[str, str]:
    """M_L's chains of thought, and the filter: example id → rationale."""
    targets = {}
    for example, thought in zip(examples, lmcot.chain_of_thought(large, examples), strict=True):
        right = data.exact_match(thought.prediction, example.answers) == 1
        if not train_kd.fault(vars(thought) | {"right": right}, small, s):
            targets[example.id] = thought.rationale
    return targets


def encode_pairs(small: PeerLM, examples, targets: dict[str, str]):
    kept = [example for example in examples if example.id in targets]
    sources = small.tokenizer(lmcot.fill(lmcot.RATIONALE, small, kept)).input_ids
    labels = small.tokenizer([targets[example.id] for example in kept]).input_ids
    return list(zip(sources, labels, strict=True))


@torch.no_grad()
def held_out_loss(model, pairs, s) -> float:
    model.eval()
    total = tokens = 0
    for ids, mask, labels in train_kd.make_batches(pairs, s.batch_size):
        count = (labels != -100).sum().item()
        total += model(input_ids=ids, attention_mask=mask, labels=labels).loss.item() * count
        tokens += count
    return total / tokens


def kd() -> None:
    """A plain loop: `Seq2SeqTrainer` does the same steps, and more around them."""
    s = parse_settings(train_kd.Settings, __doc__)
    train = data.load(s.data, "train", s.train_limit)
    dev = data.load(s.data, "dev", s.dev_limit)
    test = data.load(s.data, "test", s.test_limit)
    large, small = load_large(s), PeerLM.load(s.small, s)
    untrained = PeerLM.load(s.small, s)
    with Run(s.out, s) as run:
        targets = ask(large, small, train + dev, s)
        pairs, pairs_dev = encode_pairs(small, train, targets), encode_pairs(small, dev, targets)
        steps_per_epoch = math.ceil(len(pairs) / s.batch_size)
        model = small.model
        optimizer = torch.optim.AdamW(model.parameters(), s.lr, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: train_kd.rate(step, s.epochs * steps_per_epoch))  # fmt: skip
        best, best_epoch, epoch = held_out_loss(model, pairs_dev, s), 0, 0
        run.append("metrics.jsonl", {"epoch": 0, "held_out_loss": best})
        while epoch < s.epochs and epoch - best_epoch < s.patience:
            epoch += 1
            model.train()
            torch.manual_seed(s.seed * 1000 + epoch)
            for ids, mask, labels in train_kd.make_batches(pairs, s.batch_size, random.Random(f"{s.seed} {epoch}")):
                model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            loss = held_out_loss(model, pairs_dev, s)
            run.append("metrics.jsonl", {"epoch": epoch, "held_out_loss": loss})
            if loss < best:
                best, best_epoch = loss, epoch
                small.save(run.path("model"))
        trained = PeerLM.load(run.path("model"), s)
        evaluate(run, test, large, {"untrained": [untrained], "kd": [trained]}, s)


# ------------------------------------------------------------------------------------------------ step 2, refinement


def rl() -> None:
    """TRL differs from rl.py in its critic, whose loss also reaches M_S (by its default coefficient, .1)."""
    from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

    s = parse_settings(train_rl.Settings, __doc__)
    settings = train_rl.distilled(s.kd)
    models = lmcot.Models(**{name: settings[name] for name in vars(lmcot.Models())})
    train = data.load(settings["data"], "train", s.train_limit)
    dev = data.load(settings["data"], "dev", s.dev_limit)
    test = data.load(settings["data"], "test", s.test_limit)
    large, distilled = load_large(models), PeerLM.load(f"{s.kd}/model", models)
    policy, reference = (AutoModelForSeq2SeqLMWithValueHead.from_pretrained(f"{s.kd}/model", torch_dtype=torch.float32)
                         for _ in range(2))  # fmt: skip
    small = PeerLM(policy.pretrained_model, distilled.tokenizer, models.max_input_tokens, models.decode_batch_size)
    N = s.samples_per_question
    config = PPOConfig(batch_size=s.questions * N, mini_batch_size=min(s.minibatch, s.questions) * N,
                       ppo_epochs=s.ppo_epochs, learning_rate=s.lr, adap_kl_ctrl=False, init_kl_coef=s.beta,
                       gamma=s.gamma, lam=s.lam, cliprange=s.clip, cliprange_value=s.value_clip, max_grad_norm=1.0,
                       seed=s.seed)  # fmt: skip
    optimizer = torch.optim.Adam([{"params": policy.pretrained_model.parameters(), "lr": s.lr},
                                  {"params": policy.v_head.parameters(), "lr": s.critic_lr}],
                                 eps=1e-5, fused=True)  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / s.steps)
    trainer = PPOTrainer(config, policy, reference.eval(), small.tokenizer, optimizer=optimizer, lr_scheduler=schedule)
    combination = Combination(s.reward, s.task_weight)

    with Run(s.out, s) as run:
        best = -math.inf
        for step in range(s.steps + 1):
            if step % s.eval_every == 0 or step == s.steps:
                policy.eval()
                answers = lmcot.guided(large, dev, lmcot.write_rationales(small, dev, s.max_new_tokens))
                look = train_rl.means(train_rl.judge(dev, answers, s))
                reward = look["R_aspect"] + s.task_weight * look["R_task"]
                run.append("dev.jsonl", {"step": step, "reward": reward, **look})
                if reward > best:
                    best = reward
                    small.save(run.path("model"))
            if step == s.steps:
                break
            asked = random.Random(f"{s.seed} {step}").sample(train, s.questions)
            queries, responses, texts = rollout(policy, small, asked, s)
            answers = lmcot.guided(large, asked, texts)
            scored = train_rl.judge(asked, answers, s)
            scores = combination([each["R_aspect"] for each in scored], [each["R_task"] for each in scored])
            scores = torch.tensor(scores)
            above = scores - leave_one_out_baseline(scores, N)
            found = trainer.step(queries, responses, list(above))
            run.append("metrics.jsonl", {"step": step + 1, "reward": float(scores.mean()), "episodes": len(responses),
                                         "kl": float(found["objective/kl"])})  # fmt: skip
        refined = PeerLM.load(run.path("model"), models)
        evaluate(run, test, large, {"kd": [distilled], "rl": [refined]}, s)


def rollout(policy, small: PeerLM, asked, s):
    """N rationales for each question → queries and responses, as `sample` gives them, and texts."""
    source = small.tokenizer(lmcot.fill(lmcot.RATIONALE, small, asked), padding=True, return_tensors="pt")
    queries, responses = sample(policy, source.input_ids, source.attention_mask, s.samples_per_question,
                                s.max_new_tokens)  # fmt: skip
    texts = small.tokenizer.batch_decode(responses, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return queries, responses, [text.strip() for text in texts]


def sample(policy, ids, mask, samples: int, max_new_tokens: int):
    """Sources (B, S) → queries and responses as TRL wants them, B·N tensors each; a response goes from the start token
    to EOS. Faster than TRL's own `generate`, which would encode each source N times. TRL leaves the first token out of
    its losses and fails where no other is left, so an empty rationale is never sampled."""
    policy.eval()
    out = policy.generate(input_ids=ids, attention_mask=mask, num_return_sequences=samples, do_sample=True, top_k=0,
                          min_new_tokens=2, max_new_tokens=max_new_tokens)  # fmt: skip
    queries, responses = [], []
    for row, response in enumerate(out):
        queries.append(ids[row // samples][mask[row // samples] == 1])
        ends = (response == policy.pretrained_model.config.eos_token_id).nonzero()
        responses.append(response[: ends[0] + 1] if len(ends) else response)
    return queries, responses


# ------------------------------------------------------------------------------------------------ every method


def compare() -> None:
    s = parse_settings(eval.Settings, __doc__)
    examples = data.load(s.data, s.split, s.limit)
    smalls = {"untrained": [PeerLM.load(s.small, s)]}
    for name, file in eval.trained_weights(s).items():
        role, _ = name.split()
        smalls.setdefault(role, []).append(PeerLM.load(file.parent, s))
    with Run(s.out, s) as run:
        evaluate(run, examples, load_large(s), smalls, s)


def main() -> None:
    {"kd": kd, "rl": rl, "eval": compare}[sys.argv.pop(1)]()


if __name__ == "__main__":
    main()
