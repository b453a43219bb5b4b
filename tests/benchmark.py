"""How fast this is beside what people would use instead, and how close to what the machine can do.

    python tests/benchmark.py                                  # all rows and tables but those that need TRL
    python tests/benchmark.py greedy train                     # some rows
    python tests/benchmark.py shares                           # where the time of our scripts goes, at their defaults

The last TRL whose PPO knows encoder-decoders needs an environment of its own:

    python -m venv V
    V/bin/pip install torch==2.13.0 trl==0.11.4 transformers==4.46.3 accelerate==1.1.1 datasets==3.1.0 rich
    python tests/benchmark.py method ppo --trl-python V/bin/python
    python tests/benchmark.py method ppo --trl-python V/bin/python --smallest      # does it run at all?

"method" is the whole method: asking, distilling, refining and evaluating by the scripts of this repository, and by
`peer.py` with transformers and TRL. Both run three times, in turns, with the same flags, TENTH in `stages.py`.

A row is a function of this file: it prepares our side or the peer's, and returns what is to be timed. Each side is a
process of its own, so that its peak memory (with the libraries it imports) is its own. After one run to warm up the two
take turns, and the ratio is the median over the turns of the peer's seconds by ours; a second ratio is that of CPU
seconds, which other programs on the machine disturb less. Both sides have the same weights, sources and sizes; before
anything is timed, what can be compared is: greedy ids, the loss of one batch.

The limit of a row is the time in which this machine could do its multiplications at the speed of one large matrix
product (GEMM); its share is that time by ours.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import stages

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tiny" / "small"  # the M_S of the default, which has learned when to end
# A folder with official records and FLAN-T5's tokenizer, where they are at hand.
HOTPOTQA = Path(os.environ.get("LMCOT_SAMPLES", "no samples"))
sys.path.insert(0, str(ROOT))  # torch, the project and the peers are imported where they are used: it costs memory

FULL = {
    "shape": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6, "num_layers": 8, "num_decoder_layers": 8,
              "vocab_size": 32128},  # FLAN-T5-small's
    "batch": 16, "source": 256, "target": 64, "samples": 10, "train_batch": 8, "prompts": 16, "epochs": 4,
    "rationales": 1000, "turns": (3, 5),
}  # fmt: skip
SMALLEST = FULL | {
    "shape": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
              "vocab_size": 849},
    "batch": 2, "source": 12, "target": 6, "samples": 2, "train_batch": 2, "prompts": 4, "epochs": 1,
    "rationales": 10, "turns": (1, 1),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is measured
# row(side, size, folder) → (what both sides must agree on, run), with run() → what it made, for the rates and limits.
# `folder` holds a random model of FLAN-T5-small's shape.


def greedy(side: str, size: dict, folder: Path):
    """Greedy decoding of a batch, every row to the full length; FLAN-T5-small's shape."""
    ids, mask = random_sources(size)
    return decoding(side, folder, ids, mask, size["target"])


def consistency_tiny(side: str, size: dict, folder: Path):
    """Self-consistency: samples of TinyWiki questions by the tiny M_S; they end at different lengths."""
    ids, mask, _ = tiny_sources(size["prompts"])
    return decoding(side, TINY, ids, mask, 128, size["samples"])


def consistency_flan(side: str, size: dict, folder: Path):
    """Self-consistency at FLAN-T5-small's shape, every sample to the full length."""
    ids, mask = random_sources(size)
    return decoding(side, folder, ids, mask, size["target"], size["samples"])


def decoding(side: str, folder: Path, ids, mask, target: int, samples: int = 1):
    import torch

    how = {"num_samples": samples, "temperature": 0.7} if samples > 1 else {}
    if side == "ours":
        from model import T5

        model = T5.from_pretrained(folder)
        agreed = model.generate(ids[:2], mask[:2], target).ids[:, 0]

        def run():
            return {"tokens": int(model.generate(ids, mask, target, **how).mask.sum())}
    else:
        import transformers

        model = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        if samples > 1:
            how = {"do_sample": True, "temperature": 0.7, "top_k": 0, "num_return_sequences": samples}
        agreed = model.generate(ids[:2], attention_mask=mask[:2], max_new_tokens=target)[:, 1:]

        def run():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=target, **how)[:, 1:]
            return {"tokens": int((out != 0).sum())}

    return agreed.tolist(), run


def train(side: str, size: dict, folder: Path):
    """A teacher-forced training step (forward, backward, clipping, AdamW); FLAN-T5-small's shape."""
    import torch

    import train_kd

    batches = list(train_kd.make_batches(hotpotqa_pairs(size["shape"]["vocab_size"]), size["train_batch"]))
    batches = batches[len(batches) // 2 :] + batches[: len(batches) // 2]  # the first is of middle length
    turn = 0
    if side == "ours":
        from model import T5

        model = T5.from_pretrained(folder)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0, fused=True)

        def loss_of(ids, mask, labels):
            return train_kd.token_loss(model, ids, mask, labels) / (labels != -100).sum()
    else:
        import transformers

        model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0, fused=True)

        def loss_of(ids, mask, labels):
            return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    with torch.no_grad():
        agreed = [loss_of(*batches[0]).item()]
    model.train()

    def run():
        nonlocal turn
        ids, mask, labels = batches[turn * 11 % len(batches)]  # short and long ones, the same for both sides
        turn += 1
        loss_of(ids, mask, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"tokens": int(mask.sum() + (labels != -100).sum())}

    return agreed, run


def ppo(side: str, size: dict, folder: Path):
    """A PPO iteration by the tiny M_S: 4 rationales for each question, then epochs over minibatches of a quarter."""
    import torch

    ids, mask, texts = tiny_sources(size["prompts"])
    N, quarter, limit = 4, size["prompts"] // 4, 128
    if side == "ours":
        import rl
        from model import T5

        policy, reference = T5.from_pretrained(TINY), T5.from_pretrained(TINY)
        head = rl.ValueHead(policy.config.d_model)
        optimizer = torch.optim.Adam([*policy.parameters(), *head.parameters()], 1e-6, eps=1e-5, fused=True)
        generator = torch.Generator().manual_seed(0)
        agreed = policy.generate(ids[:2], mask[:2], limit).ids[:, 0]

        def run():  # the loop of train_rl.py, with a reward that costs nothing
            r = rl.rollout(policy, reference, head, ids, mask, N, limit, (0,), generator)
            rewards = rl.token_rewards(r.logp_old, r.logp_ref, r.ended.float(), r.mask, 0.05)
            advantages, returns = rl.gae(rewards, r.values, r.mask, 1.0, 0.95)
            white = rl.whiten(advantages, r.mask)
            for _ in range(size["epochs"]):
                for b in torch.randperm(size["prompts"]).split(quarter):
                    rows = (b[:, None] * N + torch.arange(N)).flatten()
                    optimizer.zero_grad()
                    encoded = policy.encode(ids[b], mask[b])
                    seen = r.mask[rows]
                    logp, entropy, values = rl.teacher_forced(policy, head, encoded, mask[b], r.ids[rows], seen, (0,))
                    loss = rl.ppo_loss(logp, r.logp_old[rows], white[rows], seen, 0.2)
                    (loss + rl.value_loss(values, r.values[rows], returns[rows], seen, 0.2)).backward()
                    rl.update_metrics(logp, r.logp_old[rows], entropy, seen, 0.2)
                    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                    optimizer.step()
            rl.rollout_metrics(r)
            return {"episodes": len(r.ids), "tokens": int(r.mask.sum())}
    else:
        import transformers
        import trl
        from peer import sample

        def load():
            return trl.AutoModelForSeq2SeqLMWithValueHead.from_pretrained(str(TINY), torch_dtype=torch.float32)

        policy, reference = load().eval(), trl.create_reference_model(load())
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(TINY))
        episodes = size["prompts"] * N
        config = trl.PPOConfig(batch_size=episodes, mini_batch_size=quarter * N, ppo_epochs=size["epochs"],
                               learning_rate=1e-6, adap_kl_ctrl=False, init_kl_coef=0.05,
                               max_grad_norm=1.0)  # fmt: skip
        trainer = trl.PPOTrainer(config, policy, reference, tokenizer)
        agreed = policy.generate(input_ids=ids[:2], attention_mask=mask[:2], max_new_tokens=limit)[:, 1:]

        def run():
            queries, texts = sample(policy, ids, mask, N, limit)
            trainer.step(queries, texts, [torch.tensor(float(text[-1] == 1)) for text in texts])
            return {"episodes": len(texts), "tokens": sum(len(text) - 1 for text in texts)}

    return agreed.tolist(), run


def aspects(side: str, size: dict, folder: Path):
    """Scoring gold rationales of TinyWiki questions with all eight aspects, nothing kept from the run before."""
    import data
    import rewards

    examples = data.load("tiny", "test", size["rationales"])
    texts = [" ".join(e.supporting_sentences) for e in examples]

    def run():
        for memory in (rewards.read_sentence, rewards.fold, rewards.read_context):
            memory.cache_clear()
        for e, text in zip(examples, texts, strict=True):
            rewards.aspects(text, e.question, e.context, e.answer)
        return {"rationales": len(texts)}

    return [], run


def load(side: str, size: dict, folder: Path):
    """Opening a checkpoint of FLAN-T5-small's shape and reading every weight once."""
    if side == "ours":
        from model import T5
    else:
        from transformers import T5ForConditionalGeneration as T5

    def run():
        model = T5.from_pretrained(folder)
        return {"checkpoints": 1, "sum": sum(float(p.detach().sum()) for p in model.parameters())}

    return [run()["sum"]], run


def start(side: str, size: dict, folder: Path):
    """From the command to the first token of the tiny M_S: Python, imports, checkpoint, tokenizer, one step."""
    ours = ("from lmcot import LocalLM; lm = LocalLM.load({0!r}); "
            "print(lm.complete([{1!r}], 1)[0])")  # fmt: skip
    peers = ("from transformers import AutoTokenizer, T5ForConditionalGeneration as T5; import torch; "
             "t = AutoTokenizer.from_pretrained({0!r}); m = T5.from_pretrained({0!r}, dtype=torch.float32); "
             "out = m.generate(**t({1!r}, return_tensors='pt'), max_new_tokens=1); "
             "print(t.decode(out[0], skip_special_tokens=True).strip())")  # fmt: skip
    program = (ours if side == "ours" else peers).format(str(TINY), "Question: Who directed Nightdance? Reasoning:")

    def run():
        out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
        return {"starts": 1, "text": out.stdout}

    return [run()["text"]], run


# row → what stands in the table, its peer, the unit of its rate
ROWS = {
    greedy: ("greedy, b16, 256 → 64, FLAN-T5-small's shape", "transformers", "tokens"),
    consistency_tiny: ("10 samples × 16 questions, tiny M_S", "transformers", "tokens"),
    consistency_flan: ("10 samples × 16 sources, 256 → 64, FLAN-T5-small's shape", "transformers", "tokens"),
    train: ("training step, b8, HotpotQA, FLAN-T5-small's shape", "transformers", "tokens"),
    ppo: ("PPO iteration, 64 episodes, 4 epochs, tiny M_S", "trl", "episodes"),
    aspects: ("1,000 rationales, eight aspects", "", "rationales"),
    load: ("load a checkpoint, FLAN-T5-small's shape", "transformers", "checkpoints"),
    start: ("start to first token, tiny M_S", "transformers", "starts"),
}


# ------------------------------------------------------------------------------------------------ sources


def random_sources(size: dict):
    import torch

    ids = torch.randint(2, size["shape"]["vocab_size"], (size["batch"], size["source"]),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    return ids, torch.ones_like(ids)


def tiny_sources(count: int):
    """TinyWiki questions as M_S is asked them: ids, mask and texts."""
    import data
    import lmcot
    from model import load_tokenizer, pad_batch

    texts = [lmcot.RATIONALE.format(question=e.question, context=e.context) for e in data.load("tiny", "test", count)]
    return *pad_batch([e.ids for e in load_tokenizer(TINY).encode_batch(texts)]), texts


def hotpotqa_pairs(vocab: int) -> list[tuple[list[int], list[int]]]:
    """(prompt with gold paragraphs, supporting sentences) of real HotpotQA records in FLAN-T5's ids; where the records
    are not at hand, random ids of about the same lengths (log-normal)."""
    rng = random.Random(0)
    if vocab < 32100 or not HOTPOTQA.is_dir():
        lengths = [[min(740, int(rng.lognormvariate(*of))) for of in ((5.48, 0.33), (4.42, 0.40))] for _ in range(450)]
        return [([rng.randrange(2, vocab) for _ in range(s)], [rng.randrange(2, vocab) for _ in range(t)])
                for s, t in lengths]  # fmt: skip
    import data
    import lmcot
    from model import load_tokenizer

    tokenizer = load_tokenizer(HOTPOTQA / "flan-t5")
    examples = [e for split in ("train", "dev") for e in data.load(HOTPOTQA / f"hotpotqa_{split}_sample.json")]
    prompts = [lmcot.RATIONALE.format(question=e.question, context=e.context) for e in examples]
    targets = [" ".join(e.supporting_sentences) for e in examples]
    return [(p.ids, t.ids) for p, t in zip(tokenizer.encode_batch(prompts), tokenizer.encode_batch(targets),
                                           strict=True)]  # fmt: skip


def make_flan(size: dict, folder: Path) -> None:
    """A random model of FLAN-T5-small's shape; pad and EOS are unlikely, so that all decode to the full length."""
    import torch

    from model import T5, T5Config

    model = T5(T5Config(**size["shape"], dropout_rate=0.1)).init_weights(0)
    with torch.no_grad():
        model.lm_head.weight[:2] = 0.0
    model.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------ limits


def gemm_speed() -> float:
    """Floating-point operations per second of a large matrix product: a multiplication and an addition count two."""
    import torch

    a = torch.randn(2048, 2048)
    seconds = []
    for _ in range(7):
        begun = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begun)
    return 2 * 2048**3 / min(seconds)


def multiplications(run) -> float:
    """Floating-point operations of all matrix products of one run."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------ two processes


def worker(row, side: str, size: dict, folder: Path) -> None:
    """Prepares one side of a row, then answers each line of stdin with one run; an empty stdin ends it."""
    import resource
    from importlib.metadata import version

    answers, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not be taken for answers
    agreed, run = row(side, size, folder)
    run()  # warm up
    print(json.dumps(agreed), file=answers, flush=True)

    def clock() -> tuple[float, float]:  # of the wall; of the CPU, child processes included
        return time.perf_counter(), time.process_time() + sum(os.times()[2:4])

    for _ in sys.stdin:
        begun = clock()
        made = run()
        seconds, cpu = (after - before for after, before in zip(clock(), begun, strict=True))
        print(json.dumps({"seconds": seconds, "cpu": cpu} | made), file=answers, flush=True)
    status = Path("/proc/self/status").read_text()
    own = int(status.split("VmHWM:")[1].split()[0])
    peak = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024
    flops = multiplications(run) if side == "ours" and "torch" in sys.modules else 0.0
    peer = "" if side == "ours" or not ROWS[row][1] else f"{ROWS[row][1]} {version(ROWS[row][1])}"
    print(json.dumps({"peak MB": peak, "flops": flops, "peer": peer}), file=answers, flush=True)


class Side:
    """A worker as its parent sees it."""

    def __init__(self, python: str, row, side: str, size: dict, folder: Path):
        command = [python, __file__, "--worker", row.__name__, side, json.dumps(size), str(folder)]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the worker lives)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, env=stages.environment())  # fmt: skip
        self.agreed = self.answer()

    def answer(self):
        if not (line := self.process.stdout.readline()):
            self.log.seek(0)
            raise SystemExit(f"a worker ended:\n{self.log.read()[-3000:]}")
        return json.loads(line)

    def run(self) -> dict:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> dict:
        self.process.stdin.close()
        last = self.answer()
        self.process.wait()
        return last


def agree(a, b) -> bool:
    """Equal, or for floating-point numbers equal to a thousandth."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(agree, a, b))
    return math.isclose(a, b, rel_tol=1e-3) if isinstance(a, float) else a == b


def compare(row, size: dict, folder: Path, trl_python: str, gemm: float) -> list[str]:
    """One row of the table: both sides in turns."""
    name, peer, unit = ROWS[row]
    peer_python = trl_python if peer == "trl" else sys.executable
    sides = [Side(sys.executable, row, "ours", size, folder)]
    if peer:
        sides.append(Side(peer_python, row, "peer", size, folder))
        if not agree(sides[0].agreed, sides[1].agreed):
            raise SystemExit(f"{name}: the two sides do not agree: {sides[0].agreed} {sides[1].agreed}"[:2000])
    turns, (least, most), begun = [], size["turns"], time.perf_counter()
    while len(turns) < least or (len(turns) < most and time.perf_counter() - begun < 60):
        turns.append([side.run() for side in sides])
    ends = [side.end() for side in sides]

    def middle(i: int, of) -> float:
        return statistics.median(of(turn[i]) for turn in turns)

    seconds = middle(0, lambda made: made["seconds"])
    rates = [f"{middle(i, lambda made: made[unit] / made['seconds']):,.3g} {unit}/s" for i in range(len(sides))]
    wall, cpu = ([turn[-1][clock] / turn[0][clock] for turn in turns] for clock in ("seconds", "cpu"))
    ratio = f"{statistics.median(wall):.2f} × [{min(wall):.2f}, {max(wall):.2f}]"
    limit = ends[0]["flops"] / gemm
    share = f"{100 * limit / seconds:.0f} % of GEMM" if limit > 0.01 * seconds else ""
    peers = [rates[1], ends[1]["peer"], ratio, f"{statistics.median(cpu):.2f} ×"] if peer else [""] * 4
    return [name, f"{seconds:.3g}", rates[0], *peers, " / ".join(f"{end['peak MB']:,.0f}" for end in ends), share]


# ------------------------------------------------------------------------------------------------ how cost grows


def growth(size: dict, folder: Path) -> list[list[str]]:
    """CPU seconds of decoding while one size doubles and the others stay; log₂ of each ratio is the exponent."""
    import torch

    from model import T5

    def seconds(model, batch: int, source: int, samples: int, target: int) -> float:
        ids = torch.randint(2, 800, (batch, source), generator=torch.Generator().manual_seed(0))
        found = []
        for _ in range(1 + size["turns"][1]):
            begun = time.process_time()
            model.generate(ids, torch.ones_like(ids), target, samples, temperature=1.0, forbid=(0, 1))
            found.append(time.process_time() - begun)
        return min(found)

    tiny, large = T5.from_pretrained(TINY), T5.from_pretrained(ROOT / "tiny" / "large")
    at = {"batch": 8, "source": 128, "samples": 4, "target": 32}
    steps = {"samples": (4, 8, 16, 32), "source": (128, 256, 512, 1024), "batch": (8, 16, 32, 64),
             "target": (32, 64, 128, 256)}  # fmt: skip
    table = []
    for name, values in steps.items():
        found = [seconds(tiny, **(at | {name: value})) for value in values]
        table.append([name, " ".join(map(str, values)), *exponents(values, found)])
    models = [tiny, large, T5.from_pretrained(folder)]
    values = [sum(p.numel() for p in model.parameters()) for model in models]
    found = [seconds(model, **at) for model in models]
    return [*table, ["parameters", " ".join(f"{v / 1e6:.1f} M" for v in values), *exponents(values, found)]]


def exponents(values, seconds: list[float]) -> list[str]:
    """Seconds, and between neighbours the exponent p of seconds ~ value^p: 1 is linear."""
    pairs = zip(zip(values, seconds, strict=True), zip(values[1:], seconds[1:], strict=True), strict=False)
    return [" ".join(f"{s:.3f}" for s in seconds),
            " ".join(f"{math.log(s2 / s1) / math.log(v2 / v1):.2f}" for (v1, s1), (v2, s2) in pairs)]  # fmt: skip


# ------------------------------------------------------------------------------------------------ where the time goes

OPERATIONS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot_product",),
    "random numbers": ("aten::bernoulli_", "aten::native_dropout", "aten::rand"),
}


def profile(size: dict, folder: Path) -> list[list[str]]:
    """Our side of a row by one thread: its seconds, and what share of them each kind of operation takes. Seconds are
    those of a run without the profiler, which is slower where operations are small."""
    import torch

    torch.set_num_threads(1)
    table = [["", "s", *OPERATIONS, "rest"]]
    for row in (greedy, consistency_tiny, consistency_flan, train, ppo):
        (_, timed), (_, run) = (row("ours", size, folder) for _ in range(2))  # each has the same second run
        timed(), run()  # warm up
        begun = time.perf_counter()
        timed()
        seconds = time.perf_counter() - begun
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            run()
        shares = [sum(e.self_cpu_time_total for e in found.key_averages() if e.key.startswith(keys)) / 1e6 / seconds
                  for keys in OPERATIONS.values()]  # fmt: skip
        table.append([ROWS[row][0], f"{seconds:.3g}", *(f"{share:.0%}" for share in (*shares, 1 - sum(shares)))])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {row.__name__: row for row in ROWS}
    tables = {"method", "shares", "growth", "profile"}
    rows = f"{', '.join(names)}, method, shares, growth, profile (all of them if none)"
    parser.add_argument("rows", nargs="*", metavar="row", help=rows)
    parser.add_argument("--trl-python", help="a Python that has TRL 0.11, see above")
    parser.add_argument("--smallest", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        name, side, size, folder = a.worker
        return worker(names[name], side, json.loads(size), Path(folder))
    import torch

    from eval import align

    size = SMALLEST if a.smallest else FULL
    chosen = a.rows or [*names, *tables]
    if unknown := set(chosen) - {*names, *tables}:
        parser.error(f"no row {', '.join(unknown)}")
    gemm = gemm_speed()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; large matrix product {gemm / 1e9:.0f} "
          f"GFLOP/s; training on {'HotpotQA' if HOTPOTQA.is_dir() else 'made-up lengths'}\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        make_flan(size, folder := Path(folder))
        head = ["", "s", "ours", "peer's", "peer", "times faster [range]", "in CPU s", "peak MB, ours / peer's",
                "share of limit"]  # fmt: skip
        found = []
        for name in chosen:
            if name == "ppo" and not a.trl_python:
                found.append([ROWS[ppo][0], *[""] * 3, "left out: it needs --trl-python"])
            elif name in names:
                found.append(compare(names[name], size, folder, a.trl_python, gemm))
                print(" | ".join(found[-1]), file=sys.stderr)
        if found:
            print(align([head, *found]) + "\n")
        if "method" in chosen:
            pythons = {"ours": sys.executable, "peer": a.trl_python}
            flags, turns = (stages.FEW, 1) if a.smallest else (stages.TENTH, 3)
            print(align(stages.compare(pythons, flags, turns, folder)) + "\n")
        if "shares" in chosen:
            print(align(stages.shares(stages.FEW if a.smallest else stages.DEFAULTS, folder)) + "\n")
        if "growth" in chosen:
            print(align([["", "values", "CPU s", "exponent"], *growth(size, folder)]) + "\n")
        if "profile" in chosen:
            print(align(profile(size, folder)))


if __name__ == "__main__":
    main()
