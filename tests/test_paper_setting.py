"""The README's commands for the paper's setting, as far as a machine without hub and GPU can run them: ids of a hub on
the loopback, FLAN-T5-small's shape and real tokenizer, random weights, real HotpotQA and 2WikiMultihopQA records."""

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from harness import SAMPLES, lines, save_flan_form
from test_hub import Hub

import data

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SAMPLES.exists(), reason="the real samples are not here")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    for seed, name in enumerate(("google/flan-t5-small", "google/flan-t5-xxl")):
        folder = tmp_path_factory.mktemp("upload")
        save_flan_form(folder, seed, lr=1e-3, steps=40)
        server.push(name, folder)
    yield server
    server.shutdown()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "train, dev",
    [("hotpotqa_train_sample.json", "hotpotqa_dev_sample.json"),
     ("2wikimultihop_train_sample.json", "2wikimultihop_dev_sample.json")],
)  # fmt: skip
def test_the_commands_of_the_real_run_end_with_tables_and_checkpoints(hub, train, dev, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}

    def run(script, *arguments):
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return ended.stdout

    models = ["--small", "google/flan-t5-small", "--large", "google/flan-t5-xxl", "--large-dtype", "bfloat16"]
    few = ["--test-limit", 3, "--dev-limit", 4, "--samples", 2, "--max-new-tokens", 24]
    run("train_kd.py", *models, "--data", SAMPLES / train, "--test-data", SAMPLES / dev, "--no-filter", "--lr", 3e-4,
        "--train-limit", 8, "--batch-size", 4, "--micro-batch", 2, "--epochs", 1, "--bf16", *few)  # fmt: skip
    run("train_rl.py", "--steps", 2, "--questions", 2, "--samples-per-question", 2, "--minibatch", 2,
        "--micro-batch", 1, "--train-limit", 8, "--eval-every", 1, "--lr", 1e-5, *few)  # fmt: skip
    table = run("eval.py", *models, "--data", SAMPLES / dev, "--limit", 3, "--samples", 2, "--max-new-tokens", 24)
    assert all(name in table for name in ("CoT + SC", "KD + SC", "LM-guided, RL, best of N", "gold rationale"))
    said = run("lmcot.py", *models, "--data", SAMPLES / dev)
    assert data.load(SAMPLES / dev)[0].question in " ".join(said.split()) and "LM-guided" in said

    kept = json.loads((tmp_path / "runs/kd/filter.json").read_text())[0]
    assert kept["asked"] == 8 and kept.get("kept", 0) > 0
    assert lines(tmp_path / "runs/rl/metrics.jsonl")[0]["kl"] == 0
    asked = hub.names("GET")
    assert asked.count("model.safetensors") == 2  # once each, for four scripts
