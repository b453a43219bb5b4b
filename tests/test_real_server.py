"""A real server as the independent truth: what ServedLM gets is what the server's model writes in this process."""

import contextlib
import socket
import subprocess
import sys
import time

import pytest

from plumbing.errors import UserError
from plumbing.server import Completion, ServedLM
from tiny import pretrain


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
    serve = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", serve, "serve", str(folder), "--port", str(port), "--device", "cpu"]
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
