"""Whole runs with M_L behind a server: a fake one, and a real one against its model in this process."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest
from fake_server import KEY, completion, error, serving
from harness import call, lines, save_random_small

import lmcot
import train_kd
import train_rl
from plumbing.errors import UserError
from plumbing.server import Completion, ServedLM
from tiny import pretrain, world

serve = pytest.fixture(serving)
SIZES = {"train": 16, "dev": 8, "test": 4}
RECORDS = {r["question"]: r for split, n in SIZES.items() for r in world.records(split, world.SEED, n)}


def chat_model(prompt, n):
    """A chat model that knows TinyWiki, and writes as such models do."""
    question = re.search(r"Question: (.*)\n", prompt)
    if question is None or question[1] not in RECORDS:
        return completion("I see.")  # to the request that measures the server
    record = RECORDS[question[1]]
    if prompt.endswith("step by step."):
        texts = {title: sentences for title, sentences in record["context"]}
        facts = "\n".join(texts[title][i] for title, i in record["supporting_facts"])
        return completion(f"<think>Is the answer is a phrase?</think>\n{facts}\n\n**Answer:** {record['answer']}")
    said = f"{record['answer']}, because it says so." if record["answer"] in ("yes", "no") else record["answer"]
    return completion(f"The answer is **{said}**.")


def run(monkeypatch, capfd, script, *arguments):
    """A script's command in this process → (status, all that it printed)."""
    monkeypatch.setattr(world, "SIZES", world.SIZES | SIZES)
    code = call(monkeypatch, script.main, *arguments)
    return code, "".join(capfd.readouterr())


@pytest.fixture
def kd_flags(serve, tmp_path):
    save_random_small(tmp_path / "small", pretrain.make_tokenizer())
    return ["--small", tmp_path / "small", "--large-model", "a-model", "--out", tmp_path / "kd", "--epochs", 1, "--lr",
            3e-3, "--batch-size", 4, "--max-new-tokens", 40, "--samples", 2, "--concurrency", 2]  # fmt: skip


def test_distillation_and_refinement_with_m_l_behind_a_server(serve, kd_flags, tmp_path, monkeypatch, capfd):
    server = serve(chat_model)
    code, said = run(monkeypatch, capfd, train_kd, *kd_flags, "--large", server.url)
    assert code == 0 and "M_L a-model" in said
    table = json.loads((tmp_path / "kd" / "results.json").read_text())["methods"]
    assert table["standard"]["EM"]["mean"] == table["CoT"]["EM"]["mean"] == 1  # sentences, bold type and thoughts apart
    assert table["standard"]["tokens per question"] == 7 and table["CoT"]["two-stage"] == 0
    rows = lines(tmp_path / "kd" / "rationales.jsonl")
    assert len(rows) == 24 and all(row["right"] and row["parsed"] for row in rows)
    assert not any(re.search("answer|think|[*]", row["rationale"]) for row in rows)
    greedy = [request[2] for request in server.requests if request[2]["temperature"] == 0]
    prompts = Counter((body["messages"][0]["content"], body["max_tokens"]) for body in greedy)
    assert set(prompts.values()) == {1}  # in the whole run nothing is asked twice
    count = len(server.requests)
    code, more = run(monkeypatch, capfd, train_rl, "--kd", tmp_path / "kd", "--out", tmp_path / "rl", "--steps", 1,
                     "--questions", 2, "--samples-per-question", 2, "--max-new-tokens", 8, "--samples", 1)  # fmt: skip
    assert code == 0 and len(server.requests) > count and (tmp_path / "rl" / "http_cache.jsonl").exists()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 15 and not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in said + more


def test_a_run_that_its_server_fails_goes_on_where_it_was(serve, kd_flags, tmp_path, monkeypatch, capfd):
    state = {"left": 10}

    def plan(prompt, n):
        state["left"] -= 1
        return chat_model(prompt, n) if state["left"] >= 0 else (401, error(f"no more with {KEY}"))

    server = serve(plan)
    code, said = run(monkeypatch, capfd, train_kd, *kd_flags, "--large", server.url)
    assert code == 2 and said.splitlines()[-1].startswith("error: http://127.0.0.1") and "no more with" in said
    assert KEY not in said and "Traceback" not in said
    assert len(lines(tmp_path / "kd" / "http_cache.jsonl")) == 10
    state["left"] = 10**6
    code, _ = run(monkeypatch, capfd, train_kd, *kd_flags[:-2], "--concurrency", 3, "--large", server.url)
    assert code == 0  # with another number of requests at once: it says where to compute, and not what
    bodies = [body for _, _, body in server.requests if body["temperature"] == 0]
    cots = [body for body in bodies if body["messages"][0]["content"].endswith("step by step.")]
    assert 28 <= len(cots) <= 28 + 2  # 24 to learn from, 4 in the table, and two that were under way when it failed


TOGETHER, EXTRA = "--large-model NAME go together", "--large-extra is a JSON object, without"
FLAGS = [
    ("--large-model m", TOGETHER),  # --large is a folder
    ("--large http://127.0.0.1:1/v1", TOGETHER),
    (f"--large http://u:{KEY}@127.0.0.1/v1 --large-model m", "is like http://host:8000/v1"),
    *((f"--large http://127.0.0.1:1/v1 --large-model m --large-extra {extra}", EXTRA)
      for extra in ("{", "[]", '{"model":"x"}', '{"stream":true}', '{"n":2}')),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), FLAGS)
def test_flags_of_a_server_that_cannot_be_are_refused_before_a_run_begins(flags, words, tmp_path, monkeypatch, capfd):
    code, said = run(monkeypatch, capfd, train_kd, *flags.split(), "--out", tmp_path / "kd")
    assert code == 2 and words in said and KEY not in said and not (tmp_path / "kd").exists()


def test_one_question_is_answered_by_a_model_behind_a_server(serve, tmp_path, monkeypatch, capfd):
    server = serve(chat_model)
    save_random_small(tmp_path / "small", pretrain.make_tokenizer())
    flags = ["--small", tmp_path / "small", "--large", server.url, "--large-model", "a-model", "--server-timeout", 9,
             "--large-extra", '{"chat_template_kwargs": {"enable_thinking": false}}']  # fmt: skip
    monkeypatch.chdir(tmp_path)  # where nobody has trained
    code, said = run(monkeypatch, capfd, lmcot, *flags)
    record = next(r for r in RECORDS.values() if r["_id"].startswith("tiny-test"))
    assert code == 0 and re.search(rf"^Gold answer +{record['answer']}\n\nStandard prompting +.*\(right\)$", said, re.M)
    assert re.search(r"^Chain of thought +.*\(right\)$", said, re.M)
    assert len(server.requests) == 3  # one for each method
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for _, _, body in server.requests)


@pytest.mark.slow
def test_a_real_server_gives_the_texts_that_its_model_writes_in_this_process(tmp_path):
    """`transformers serve` with a random decoder LM, against generate() on the same folder."""
    for package in ("fastapi", "uvicorn", "openai", "accelerate"):
        pytest.importorskip(package, reason=f"transformers serve needs {package}")
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pretrain.make_tokenizer(), pad_token="<pad>", eos_token="</s>",
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        eos_token_id=1, pad_token_id=0, bos_token_id=None)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.do_sample = True  # without it this server is greedy at every temperature
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 8 if weight.ndim == 2 else 1  # texts that depend on the prompt
    folder = tmp_path / "model"
    model.save_pretrained(folder), tokenizer.save_pretrained(folder)
    prompts = ["Who directed Stormgate?", "yes", "The mayor of Roton"]
    expected = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        finish = "stop" if out[-1] == 1 else "length"
        expected.append((Completion(tokenizer.decode(out, skip_special_tokens=True).strip(), finish), len(out)))
    assert len({completion.text for completion, _ in expected}) == 3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", script, "serve", str(folder), "--port", str(port), "--device", "cpu"]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            for _ in range(240):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
            lm = ServedLM(f"http://127.0.0.1:{port}/v1", str(folder), cache=tmp_path / "c")
            assert lm.complete(prompts, 12) == [c for c, _ in expected], (tmp_path / "log").read_text()
            assert lm.unfinished == sum(c.finish == "length" for c, _ in expected)
            assert lm.tokens_written == sum(n for _, n in expected)
            samples = lm.complete(prompts[:1], 12, 8, 1.0)
            assert len(set(samples)) > 4
            with pytest.raises(UserError, match="status 404"):
                ServedLM(f"http://127.0.0.1:{port}/v2", str(folder)).complete(prompts[:1], 5)
        finally:
            server.terminate()
