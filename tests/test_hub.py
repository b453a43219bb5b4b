"""Proofs that model.py loads from the Hugging Face hub: a server on the loopback serves the hub's routes and counts
what is asked for; the weights that it was given are the truth."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_server import LocalServer, QuietHandler
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

import model as M
from model import T5, T5Config
from plumbing.errors import UserError

ROOT = Path(__file__).parents[1]
SIZES = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 3, "num_layers": 1}
CONFIG = T5Config(**SIZES, num_decoder_layers=1)
ROUTE = "/{repo_id}/resolve/{revision}/{filename}"


class Hub(LocalServer):
    """/{id}/resolve/{revision}/{file} as the hub answers HEAD and GET; `asked` lists (method, file)."""

    def __init__(self):
        super().__init__(Handler)
        self.commits, self.branches, self.gated, self.asked, self.tokens = {}, {}, set(), [], set()
        self.cut = None  # the name of a file of which only a half is sent
        self.down = False

    def push(self, repository, folder, branch="main"):
        """Uploads a folder as a new commit → its hash."""
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        commit = hashlib.sha1(repr((repository, branch, sorted(files.items()))).encode()).hexdigest()
        self.commits[repository, commit] = files
        self.branches[repository, branch] = commit
        return commit

    def names(self, method):
        return sorted(name for how, name in self.asked if how == method)


class Handler(QuietHandler):
    def do_GET(self):
        path, _, rest = self.path.partition("/resolve/")
        repository, (revision, _, name) = path[1:], rest.partition("/")
        commit = self.server.branches.get((repository, revision), revision)
        files = self.server.commits.get((repository, commit), {})
        if not rest:  # what else huggingface_hub asks of the hub
            return self.answer(404)
        self.server.asked.append((self.command, name))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.down:
            self.answer(503)
        elif repository in self.server.gated:
            self.answer(403, "GatedRepo")
        elif repository not in {known for known, _ in self.server.commits}:
            self.answer(401, "RepoNotFound")  # what the hub says to somebody without a token
        elif not files:
            self.answer(404, "RevisionNotFound")
        elif name not in files:
            self.answer(404, "EntryNotFound", commit)
        else:
            self.answer(200, "", commit, files[name], cut=name == self.server.cut)

    do_HEAD = do_GET

    def answer(self, status, error="", commit="", content=b"", cut=False):
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"X-Error-Code": error, "X-Repo-Commit": commit, "ETag": etag, "X-Linked-ETag": etag,
                   "X-Linked-Size": len(content), "Content-Length": len(content)}  # fmt: skip
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)


@pytest.fixture
def server():
    with Hub() as server:
        yield server


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server, and this process with HF_ENDPOINT and HF_HOME as if they had been set before huggingface_hub."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + ROUTE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between huggingface_hub's tries
    monkeypatch.chdir(tmp_path)
    return server


VOCABULARY = {"<pad>": 0, "</s>": 1, "<unk>": 2, "one": 3, "two": 4}
FORMS = {"both": ["model.safetensors"]}  # form of the weights → the files that are downloaded for them
for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
    one, index = f"{stem}.{suffix}", f"{stem}.{suffix}.index.json"
    FORMS |= {one: [one], index: [*(f"{stem}-0000{i}-of-00003.{suffix}" for i in (1, 2, 3)), index]}


def checkpoint(folder: Path, form: str = "model.safetensors", seed: int = 0) -> T5:
    """A folder with the weights in this form ("both": as XXL has it), and what such repositories have besides."""
    model = T5(CONFIG).init_weights(seed).eval()
    model.save_pretrained(folder, Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>")))
    weights = load_file(folder / "model.safetensors")
    for other in ("README.md", "spiece.model", "tf_model.h5", "flax_model.msgpack"):
        (folder / other).write_text(other)
    if form == "both":
        torch.save(weights, folder / "pytorch_model.bin")
        return model
    (folder / "model.safetensors").unlink()
    *parts, last = FORMS[form]
    weight_map = {}
    for i, name in enumerate(parts or [last]):
        part = dict(list(weights.items())[i :: len(parts) or 1])
        torch.save(part, folder / name) if name.endswith(".bin") else save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if parts:
        (folder / last).write_text(json.dumps({"weight_map": weight_map}))
    return model


def same(one: T5, other: T5) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def refusal(place: str, load=T5.from_pretrained) -> str:
    with pytest.raises(UserError) as error:
        load(place)
    text = str(error.value)
    assert text.startswith(place) and "\n" not in text and len(text) < 600 and "Traceback" not in text, text
    return text


@pytest.mark.parametrize("form", FORMS)
def test_a_hub_id_gives_the_model_and_costs_only_the_files_needed_and_those_once(form, hub, monkeypatch):
    model, repository = checkpoint(Path("upload"), form), "t5-small" if form == "both" else "google/flan-t5-small"
    hub.push(repository, Path("upload"))
    loaded = T5.from_pretrained(repository)
    assert same(loaded, model) and loaded.config == model.config
    assert hub.names("GET") == sorted(["config.json", *FORMS[form]])

    hub.asked.clear()
    assert same(T5.from_pretrained(repository, dtype=torch.bfloat16), model.bfloat16())
    assert hub.names("GET") == [] and not set(hub.names("HEAD")) & set(FORMS[form])

    hub.down = True
    assert same(T5.from_pretrained(repository, dtype=torch.bfloat16), model)
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(T5.from_pretrained(repository, dtype=torch.bfloat16), model) and hub.asked == []


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub):
    for seed, branch in enumerate(("main", "v1.0", "refs/pr/3")):
        model = checkpoint(Path(f"upload{seed}"), seed=seed)
        commit = hub.push("a/b", Path(f"upload{seed}"), branch.replace("/", "%2F"))
        assert same(T5.from_pretrained(f"a/b@{branch}"), model) and same(T5.from_pretrained(f"a/b@{commit}"), model)
        assert same(T5.from_pretrained("a/b"), model) == (branch == "main")
    assert "Revision Not Found" in refusal("a/b@nowhere")


def test_config_and_weights_come_from_one_commit_although_the_branch_moves_on(hub, monkeypatch):
    old = checkpoint(Path("old"), seed=0)
    checkpoint(Path("new"), seed=1)
    hub.push("a/b", Path("old"))
    read = M.read_json

    def push_between(path):
        hub.push("a/b", Path("new"))
        return read(path)

    monkeypatch.setattr(M, "read_json", push_between)
    assert same(T5.from_pretrained("a/b"), old)


def test_a_model_that_is_no_t5_costs_no_more_than_its_configuration(hub):
    checkpoint(Path("upload"))
    Path("upload/config.json").write_text('{"model_type": "llama"}')
    hub.push("a/b", Path("upload"))
    with pytest.raises(UserError, match="llama"):
        T5.from_pretrained("a/b")
    assert hub.names("GET") == ["config.json"] and set(hub.names("HEAD")) == {"config.json"}


def test_a_local_folder_wins_then_one_beside_the_program_and_neither_asks_the_hub(hub):
    embedded = T5.from_pretrained(ROOT / "tiny" / "small")
    assert same(T5.from_pretrained("tiny/small"), embedded) and same(T5.from_pretrained(Path("tiny/small")), embedded)
    assert M.load_tokenizer("tiny/small").get_vocab() == M.load_tokenizer(ROOT / "tiny" / "small").get_vocab()
    local = checkpoint(Path("tiny/small"))
    assert same(T5.from_pretrained("tiny/small"), local) and M.load_tokenizer("tiny/small").token_to_id("two") == 4
    Path("tiny/small/tokenizer.json").unlink()
    assert "tokenizer.json" in refusal("tiny/small", M.load_tokenizer)
    assert hub.asked == []


PATHS = ["./a/b", "../b", "/a/b", "~/b", "runs/nobody/model", r"C:\a", "a b", Path("a/b")]


@pytest.mark.parametrize("place", PATHS, ids=repr)
def test_what_is_meant_as_a_path_never_goes_to_the_hub(place, hub):
    for load in (T5.from_pretrained, M.load_tokenizer):
        with pytest.raises(UserError, match="no such folder|no config.json there|no tokenizer.json there"):
            load(place)
    assert hub.asked == []


def test_a_tokenizer_costs_one_file_and_a_repository_without_one_is_refused(hub):
    checkpoint(Path("upload"))
    hub.push("a/b", Path("upload"))
    assert M.load_tokenizer("a/b").get_vocab() == VOCABULARY and hub.names("GET") == ["tokenizer.json"]
    Path("upload/tokenizer.json").unlink()
    hub.push("a/b", Path("upload"))
    assert "no tokenizer.json there" in refusal("a/b", M.load_tokenizer)


# ------------------------------------------------------------------------------------------------ what can go wrong


def no_network(hub, patch):
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9" + ROUTE)


def disk_full(hub, patch):
    def write(*_, **__):
        raise OSError(28, "No space left on device")

    patch.setattr(file_download, "http_get", write)


def lacks(*names):
    return lambda hub, _: [files.pop(name) for files in hub.commits.values() for name in names]


FAILURES = {
    "unknown repository": (lambda hub, _: hub.commits.clear(), ["no such folder", "Repository Not Found", "HF_TOKEN"]),
    "gated": (lambda hub, _: hub.gated.add("a/b"), ["gated", "HF_TOKEN"]),
    "offline": (lambda _, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True), ["no such folder", "cache"]),
    "no network": (no_network, ["no such folder", "cache", "connection"]),
    "disk full": (disk_full, ["No space left"]),
    "cut off": (lambda hub, _: setattr(hub, "cut", "model.safetensors"), ["connection"]),
    "no configuration": (lacks("config.json"), ["no config.json there"]),
    "no weights": (lacks("model.safetensors", "pytorch_model.bin"), ["model.safetensors or", "pytorch_model.bin or"]),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_download_ends_in_one_sentence_and_the_next_try_succeeds(case, hub, monkeypatch):
    model = checkpoint(Path("upload"), "both")
    hub.push("a/b", Path("upload"))
    spoil, words = FAILURES[case]
    with monkeypatch.context() as patch:
        spoil(hub, patch)
        text = refusal("a/b")
    assert all(word in text for word in words), text
    assert "pytorch_model.bin" not in hub.names("GET"), "a lost connection leads to the other form, 45 GB of XXL"
    hub.cut = None
    hub.gated.clear()
    hub.push("a/b", Path("upload"))
    assert same(T5.from_pretrained("a/b"), model)


@pytest.mark.parametrize("name", ["../../x.safetensors", "/x.safetensors", "..", "not-there.safetensors"])
def test_an_index_reaches_no_file_outside_its_repository_and_a_shard_that_is_not_there_is_named(name, hub):
    checkpoint(Path("upload"), "model.safetensors.index.json")
    Path("upload/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"shared.weight": name}}))
    hub.push("a/b", Path("upload"))
    for place in ("a/b", Path("upload")):
        with pytest.raises(UserError) as error:
            T5.from_pretrained(place)
        assert name in str(error.value)
    assert not any("x.safetensors" in asked for _, asked in hub.asked)


# ------------------------------------------------------------------------------------------------ the environment

CLIENT = """
import sys
import model
assert "huggingface_hub" not in sys.modules, "imported although nobody asked for it"
m = model.T5.from_pretrained("a/b")
print(m.shared.weight.double().sum().item(), model.load_tokenizer("a/b").get_vocab_size())
"""


def test_the_environment_variables_of_huggingface_hub_are_honoured(server, tmp_path):
    model = checkpoint(tmp_path / "upload")
    server.push("a/b", tmp_path / "upload")
    own = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"}
    expected = f"{model.shared.weight.double().sum().item()} 5\n"
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        server.asked.clear()
        command = [sys.executable, "-c", CLIENT]
        run = subprocess.run(command, cwd=ROOT, env=own | offline, capture_output=True, text=True)
        assert (run.returncode, run.stdout) == (0, expected), run.stderr
        assert bool(server.asked) != bool(offline)
    assert server.tokens == {"Bearer hf_secret"}
    assert list((tmp_path / "home").rglob("model.safetensors"))
