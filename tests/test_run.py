"""Proofs for plumbing: settings from the command line, the run folder, the device, and how a script ends."""

import errno
import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from harness import files_of
from tqdm import tqdm

from model import T5, T5Config
from plumbing.command import parse_settings, run_main
from plumbing.errors import UserError
from plumbing.processes import find_device
from plumbing.run import Run

# ---- Settings --------------------------------------------------------------------------------------------------------


@dataclass
class Base:
    NOT_COMPARED: ClassVar[tuple[str, ...]] = ("out", "overwrite")
    out: str = "runs/x"  # the folder of the run


@dataclass
class Settings(Base):
    learning_rate: float = 3e-4  # AdamW's step, 100 % of it after warm-up; lower it when the loss jumps
    steps: int = 10
    resample: bool = True  # draw anew every epoch
    overwrite: bool = False  # start again


def test_a_flag_sets_its_field_and_what_is_not_given_is_the_dataclass_default():
    assert parse_settings(Settings, "doc", []) == Settings()
    argv = ["--out", "a/b", "--learning-rate=1e-3", "--steps", "2", "--no-resample", "--overwrite"]
    assert parse_settings(Settings, "doc", argv) == Settings("a/b", 0.001, 2, False, True)


def test_help_shows_the_docstring_the_comments_and_the_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_settings(Settings, "What it does.\n\n  layout kept", ["--help"])
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert stopped.value.code == 0
    assert "What it does.\n\n  layout kept" in text
    assert "--out STR the folder of the run (default: runs/x)" in words  # a field of the base class
    assert "AdamW's step, 100 % of it after warm-up; lower it when the loss jumps (default: 0.0003)" in words
    assert "--resample, --no-resample draw anew every epoch (default: True)" in words
    assert "--steps INT (default: 10)" in words


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--learning", "1"], "unrecognized arguments: --learning 1"),  # no guessing from a prefix
        (["file.json"], "unrecognized arguments: file.json"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--steps", "0"], "error: --steps is 0 (expected a number of at least 1)"),
        (["--steps=-1"], "error: --steps is -1 (expected a number of at least 1)"),
        (["--learning-rate", "inf"], "error: --learning-rate is inf (expected a number of at least 0)"),
        (["--learning-rate", "nan"], "error: --learning-rate is nan (expected a number of at least 0)"),
    ],
)
def test_a_wrong_flag_ends_in_one_sentence(capsys, argv, said):
    with pytest.raises(SystemExit) as stopped:
        parse_settings(Settings, "doc", argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.strip().split("\n")[-1]


# ---- The run folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "x"


def names(folder):
    return {path.name for path in folder.iterdir()}


OURS = {"settings.json", ".lock"}  # in every run folder


def test_the_same_settings_continue_a_run(folder):
    with Run(folder, Settings()) as run:
        assert run.path("m.jsonl") == folder / "m.jsonl" and not run.has("m.jsonl")
        run.append("m.jsonl", {"step": 1})
        assert run.has("m.jsonl")
    assert json.loads((folder / "settings.json").read_text()) == asdict(Settings())
    with Run(folder, Settings(out="another/name/for/it")) as run:  # out is not compared
        run.append("m.jsonl", {"step": 2, "text": "é\n"}, {"step": 3})
        assert run.read("m.jsonl") == [{"step": 1}, {"step": 2, "text": "é\n"}, {"step": 3}]
        run.rewrite("m.jsonl", [{"step": 4}])
        assert run.read("m.jsonl", "step") == [{"step": 4}] and run.read("none.jsonl") == []
        run.write("a.md", "é")
        run.write("a.json", {"é": [1]})
        assert run.path("a.md").read_text("utf-8") == "é"
        assert run.path("a.json").read_text("utf-8") == '{\n "é": [\n  1\n ]\n}\n'
    assert names(folder) == {*OURS, "m.jsonl", "a.md", "a.json"}


def test_other_settings_are_refused_by_name_and_value(folder):
    folder.mkdir(parents=True)
    saved = asdict(Settings())
    del saved["resample"]  # as a run of an older version has it
    (folder / "settings.json").write_text(json.dumps(saved))
    with pytest.raises(UserError) as caught:
        Run(folder, Settings(steps=11))
    other = 'steps is 10 there and 11 here; resample is "(absent)" there and true here'
    holds = f"{folder} holds a run with other settings ({other})"
    assert str(caught.value) == f"{holds}: use --overwrite or another --out"


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights").write_text("w")
    with Run(folder, Settings()) as run:
        run.append("m.jsonl", {"step": 1})
        run.path("model").mkdir()
        run.write("model/config.json", {})
        run.path("link").symlink_to(tmp_path / "elsewhere")
    with Run(folder / "inner", Settings()) as run:
        run.write("rationales.jsonl", "hours of work")
    (folder / ".notes").write_text("mine")
    with Run(folder, Settings(steps=3), overwrite=True):
        assert names(folder) == {*OURS, "inner", ".notes"}
    assert json.loads((folder / "settings.json").read_text())["steps"] == 3
    assert names(tmp_path / "elsewhere") == {"weights"}
    assert (folder / "inner" / "rationales.jsonl").read_text() == "hours of work"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "foreign",
    [None, '{"editor.fontSize": 12}', "[1]", "no JSON", json.dumps(asdict(Settings()) | {"beta": 0.1}),
     json.dumps(asdict(Base()))],
    ids=["none", "an editor's", "a list", "no JSON", "a script with more settings", "a script with fewer"],
)  # fmt: skip
def test_a_folder_that_is_no_run_or_that_of_another_script_is_never_touched(folder, overwrite, foreign):
    folder.mkdir(parents=True)
    (folder / "rationales.jsonl").write_text("hours of work")
    if foreign is not None:
        (folder / "settings.json").write_text(foreign)
    before = files_of(folder)
    other = "another script or version: delete it, or use another --out" if overwrite else "other settings"
    with pytest.raises(UserError, match=f"no run is in it|not JSON|a JSON object|{other}"):
        Run(folder, Settings(), overwrite=overwrite)
    assert files_of(folder) == before


@pytest.mark.parametrize("tail", [b'{"step": 2', '{"step": 2, "text": "é'.encode()[:-1], b'{"step": 2}'])
def test_a_torn_last_line_is_ignored_and_removed_before_the_next(folder, tail):
    with Run(folder, Settings()) as run:
        run.append("m.jsonl", {"step": 1})
        with open(run.path("m.jsonl"), "ab") as file:
            file.write(tail)
        assert run.read("m.jsonl") == [{"step": 1}]
    with Run(folder, Settings()) as run:
        run.append("m.jsonl", {"step": 3})
        assert run.path("m.jsonl").read_bytes() == b'{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize("middle", [b"{broken", b"[1]", b"", b"\xff", b'{"b": 1}'])
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(folder, middle):
    with Run(folder, Settings()) as run:
        run.path("m.jsonl").write_bytes(b'{"a": 1}\n' + middle + b'\n{"a": 2}\n')
        with pytest.raises(UserError, match="m.jsonl: line 2(: not JSON| is damaged)"):
            run.read("m.jsonl", "a")


def test_a_saved_state_puts_its_parts_back_and_rows_logged_after_it_go(folder):
    def step(linear, optimizer):
        optimizer.zero_grad()
        linear(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    def parts():
        linear = torch.nn.Linear(2, 1)
        return {"model": linear, "optimizer": torch.optim.Adam(linear.parameters(), 0.1)}

    trained, again = parts(), parts()
    with Run(folder, Settings()) as run:
        assert run.load_state(again, "cpu") == {} and run.trim("m.jsonl", "step", 5) == []
        step(*trained.values())
        run.append("m.jsonl", {"step": 1}, {"step": 2}, {"step": 3})
        run.save_state({"step": 2, "best": 0.5}, trained)
        step(*trained.values())
    with Run(folder, Settings()) as run:
        assert run.load_state(again, "cpu") == {"step": 2, "best": 0.5}
        step(*again.values())  # Adam's second step, which needs its first
        assert torch.equal(again["model"].weight, trained["model"].weight)
        assert run.trim("m.jsonl", "step", 2) == run.read("m.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_state_with_code_in_it_is_refused(folder):
    with Run(folder, Settings()) as run:
        torch.save({"x": print}, run.path("state.pt"))
        with pytest.raises(UserError, match="state.pt is damaged .*start again with --overwrite"):
            run.load_state({}, "cpu")


def test_a_run_whose_input_has_changed_is_refused_and_new_inputs_may_join(folder, tmp_path):
    file, other = tmp_path / "kd-0", tmp_path / "kd-1"
    file.write_text("weights")
    with Run(folder, Settings()) as run:
        run.uses({"kd 0": file, "rl 0": tmp_path / "absent"})
        run.uses({"rl 0": tmp_path / "absent", "kd 1": file})  # what is not named now is not compared
        kept = json.loads(run.path("inputs.json").read_text())
        sha256 = hashlib.sha256(b"weights").hexdigest()
        assert kept == {"kd 0": sha256, "rl 0": None, "kd 1": sha256}
        for content in (None, "other weights"):
            if content is not None:
                other.write_text(content)
            with pytest.raises(UserError) as caught:  # another folder takes the place of a seed
                run.uses({"kd 0": file, "kd 1": other})
            made = f"{folder} was made from another kd 1 than {other} is now"
            assert str(caught.value) == f"{made}: use --overwrite or another --out"
        assert json.loads(run.path("inputs.json").read_text()) == kept


# ---- One program at a time -------------------------------------------------------------------------------------------


HOLD = """
import sys
sys.path[:0] = {path!r}
from plumbing.errors import UserError
from test_run import Run, Settings

sys.stdin.readline()
try:
    with Run({folder!r}, Settings()):
        print("held", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""


def test_of_several_processes_one_holds_a_folder_and_a_killed_one_holds_it_no_more(folder):
    here = Path(__file__).parent
    code = HOLD.format(path=[str(here), str(here.parent)], folder=str(folder))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    for rival in rivals:  # all have started by now, or nearly so
        print(file=rival.stdin, flush=True)
    said = [rival.stdout.readline().strip() for rival in rivals]
    in_use = f"{folder} is in use by another process: wait for it, or choose another --out"
    assert sorted(said) == sorted(["held", in_use])
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is in use"):
            Run(folder, Settings(), overwrite)
    rivals[said.index("held")].kill()
    for rival in rivals:
        rival.communicate()
    with Run(folder, Settings()) as run, pytest.raises(UserError, match="is in use"):
        Run(folder, Settings())
    run.write("a.txt", "mine")
    with Run(folder, Settings()):
        assert names(folder) == {*OURS, "a.txt"}


def test_what_a_run_that_was_killed_in_its_first_moments_leaves_locks_nothing(folder):
    folder.mkdir(parents=True)
    (folder / ".lock").write_text(str(os.getppid()))
    (folder / ".settings.json.new").write_text('{"ste')
    (folder / ".env").write_text("not even a run's: hidden files do not count, and stay")
    with Run(folder, Settings(), overwrite=True), pytest.raises(UserError, match="is in use"):
        Run(folder, Settings())
    assert names(folder) == {*OURS, ".env"}


def test_on_a_file_system_without_locks_a_run_goes_on_with_a_warning(folder, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Run(folder, Settings()) as run:
        run.write("a.txt", "mine")
    said = capsys.readouterr().err
    assert said.startswith("warning: no lock (") and said.endswith(f": do not start a second run in {folder}\n")
    assert names(folder) == {*OURS, "a.txt"}


# ---- On a full disk, in a read-only folder ---------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """No file may grow beyond 100 kB: the system refuses a write as a full disk does, after a part of it."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("file", "write"), [
    ("state.pt", lambda run: run.save_state({"x": torch.zeros(50_000)}, {})),
    ("model.safetensors",
     lambda run: T5(T5Config(vocab_size=2000, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=1,
                             num_decoder_layers=1)).save_pretrained(run.path("model"))),
    ("", lambda run: run.append("m.jsonl", {"text": "x" * 200_000})),
])  # fmt: skip
def test_on_a_full_disk_every_way_to_write_ends_in_one_sentence_and_what_was_there_stays(
    file, write, folder, full_disk, capsys
):
    def main():
        with Run(folder, Settings()) as run:
            write(run)

    with Run(folder, Settings()) as run:
        run.save_state({"epoch": 3}, {})
        run.append("m.jsonl", {"step": 1})
        run.path("model").mkdir()
    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "File too large" in said
    assert file in said
    with Run(folder, Settings()) as run:
        assert run.load_state({}, "cpu") == {"epoch": 3} and run.read("m.jsonl") == [{"step": 1}]
        assert names(folder) == {*OURS, "state.pt", "m.jsonl", "model"} and not names(run.path("model"))
        run.append("m.jsonl", {"step": 2})
        assert run.read("m.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_the_system_refuses_names_the_file_and_leaves_the_old_one(call, folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")  # as in a folder that has become read-only

    with Run(folder, Settings()) as run:
        run.save_state({"epoch": 3}, {})
        with monkeypatch.context() as patch, pytest.raises(PermissionError) as refused:
            patch.setattr(os, call, refuse)
            run.save_state({"epoch": 4}, {})
        assert refused.value.filename == str(folder / "state.pt")
        assert run.load_state({}, "cpu") == {"epoch": 3} and names(folder) == {*OURS, "state.pt"}


# ---- The device, and how a script ends -------------------------------------------------------------------------------


def test_auto_is_the_best_device_and_each_process_of_torchrun_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch, "Generator", lambda name: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for cuda, mps, device in ((True, True, "cuda:3"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert find_device("auto") == device
    assert (find_device("cuda"), find_device("cuda:1")) == ("cuda:3", "cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match=f"there is no device '{name}' on this machine"):
        find_device(name)


AGAIN = "interrupted: run the same command again to continue\n"


@pytest.mark.parametrize(
    ("argv", "error", "status", "said"),
    [
        ([], UserError("x.json: the file is empty"), 2, "error: x.json: the file is empty\n"),
        ([], OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        ([], PermissionError(13, "Permission denied", "a/b"), 2, "error: a/b: Permission denied\n"),
        ([], KeyboardInterrupt(), 130, AGAIN),
        (["--overwrite"], KeyboardInterrupt(), 130, AGAIN.replace("again", "without --overwrite")),  # it would lose it
    ],
)
def test_a_mistake_ends_in_one_sentence_and_a_status(capsys, monkeypatch, argv, error, status, said):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["train_kd.py", *argv])
    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    assert stopped.value.code == status and capsys.readouterr().err == said


def test_the_sentence_stands_below_progress_bars_that_were_not_closed(capsys):
    def main():
        tqdm(total=2).update()
        tqdm(total=3).update()
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run_main(main)
    *_, outer, inner, said, end = capsys.readouterr().err.split("\n")
    assert "1/2" in outer and "1/3" in inner and said + "\n" == AGAIN and not end


def test_ctrl_c_while_a_progress_bar_is_made_gets_its_sentence(capsys):
    half_made = tqdm.__new__(tqdm)  # tqdm has noted it, and knows no place for it yet

    def main():
        half_made.disable = False
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run_main(main)
    assert capsys.readouterr().err == AGAIN
    half_made.disable = True  # its end is not an error either


def test_a_bug_keeps_its_traceback_and_success_returns():
    def buggy():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_main(buggy)
    assert run_main(lambda: None) is None


def test_a_terminal_that_lacks_a_character_shows_another_in_its_place(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    run_main(lambda: print("M_S · M_L", flush=True))
    assert raw.getvalue() == b"M_S ? M_L\n"
