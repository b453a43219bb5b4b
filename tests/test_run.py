"""Proofs for plumbing: settings from the command line, the run folder, and how a script ends."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tqdm import tqdm

import data
from model import T5, T5Config
from plumbing import run as run_module
from plumbing.command import parse_settings, run_main
from plumbing.errors import UserError
from plumbing.files import atomic_write
from plumbing.run import Run

# ---- Settings --------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    NOT_COMPARED: ClassVar[tuple[str, ...]] = ("out", "overwrite")
    out: str = "runs/x"  # the folder of the run
    learning_rate: float = 3e-4  # AdamW's step, 100 % of it after warm-up; lower it when the loss jumps
    steps: int = 10
    limit: int = 9  # so many examples only
    resample: bool = True  # draw anew every epoch
    overwrite: bool = False  # start again

    def check(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps} (expected at least 1)")


def test_settings_without_flags_are_the_dataclass_defaults():
    assert parse_settings(Settings, "doc", []) == Settings()


def test_every_kind_of_flag_sets_its_field():
    argv = ["--out", "a/b", "--learning-rate=1e-3", "--steps", "2", "--limit", "5", "--no-resample", "--overwrite"]
    assert parse_settings(Settings, "doc", argv) == Settings("a/b", 0.001, 2, 5, False, True)


def test_help_shows_the_docstring_the_comments_and_the_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_settings(Settings, "What it does.\n\n  layout kept", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert "What it does. layout kept" in shown
    assert "AdamW's step, 100 % of it after warm-up; lower it when the loss jumps (default: 0.0003)" in shown
    assert "--resample, --no-resample draw anew every epoch (default: True)" in shown
    assert "--steps INT (default: 10)" in shown


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--learning", "1"], "unrecognized arguments: --learning 1"),  # no guessing from a prefix
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--limit", "some"], "argument --limit: invalid int value: 'some'"),
        (["--steps", "0"], "error: steps is 0 (expected at least 1)"),
        (["file.json"], "unrecognized arguments: file.json"),
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


def test_a_new_run_saves_its_settings_and_leaves_no_lock(folder):
    with Run(folder, Settings()) as run:
        assert names(folder) == {"settings.json", "lock"} and run.path("a") == folder / "a"
    assert json.loads((folder / "settings.json").read_text()) == dataclasses.asdict(Settings())
    assert names(folder) == {"settings.json"}


def test_the_same_settings_continue_a_run(folder):
    with Run(folder, Settings()) as run:
        run.append("m.jsonl", {"step": 1})
    with Run(folder, Settings(out="another/name/for/it", overwrite=False)) as run:  # out is not compared
        run.append("m.jsonl", {"step": 2, "text": "é\n"})
        assert run.read("m.jsonl") == [{"step": 1}, {"step": 2, "text": "é\n"}]
        assert run.read("none.jsonl") == []


def test_other_settings_are_refused_by_name_and_value_and_the_lock_is_given_back(folder):
    Run(folder, Settings()).close()
    with pytest.raises(UserError) as caught:
        Run(folder, Settings(steps=11, limit=4))
    message = str(caught.value)
    assert "steps is 10 there and 11 here; limit is 9 there and 4 here" in message
    assert "--overwrite" in message and "--out" in message and "learning_rate" not in message
    assert names(folder) == {"settings.json"}


def test_long_settings_that_differ_only_at_their_end_are_told_apart(folder):
    @dataclass
    class Prompted:
        prompt: str = "p" * 100

    Run(folder, Prompted()).close()
    with pytest.raises(UserError, match="prompt"):
        Run(folder, Prompted("p" * 99 + "q"))


def test_a_setting_that_the_saved_run_does_not_know_is_a_difference(folder):
    Run(folder, Settings()).close()
    saved = json.loads((folder / "settings.json").read_text())
    del saved["steps"]
    (folder / "settings.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="steps is .*absent.* there and 10 here"):
        Run(folder, Settings())


def test_overwrite_empties_a_run_folder_and_saves_the_new_settings(folder):
    with Run(folder, Settings()) as run:
        run.append("m.jsonl", {"step": 1})
        run.path("model").mkdir()
        (run.path("model") / "weights").write_text("w")
    with Run(folder, Settings(steps=3), overwrite=True) as run:
        assert run.read("m.jsonl") == []
    assert names(folder) == {"settings.json"}
    assert json.loads((folder / "settings.json").read_text())["steps"] == 3


def test_overwrite_spares_the_run_of_another_script(folder):
    @dataclass
    class Other(Settings):
        beta: float = 0.1

    with Run(folder, Other()) as run:
        run.write("rationales.jsonl", "hours of work")
    with pytest.raises(UserError, match="is a run of another script or version: delete it, or use another --out"):
        Run(folder, Settings(), overwrite=True)
    assert run.path("rationales.jsonl").read_text() == "hours of work"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("foreign", [None, '{"editor.fontSize": 12}', "[1]", "no JSON"])
def test_a_folder_that_is_no_run_is_never_touched(folder, overwrite, foreign):
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    if foreign is not None:
        (folder / "settings.json").write_text(foreign)
    before = {path: path.read_text() for path in folder.iterdir()}
    with pytest.raises(UserError, match="is not empty and has no settings.json of such a run: choose another --out"):
        Run(folder, Settings(), overwrite=overwrite)
    assert {path: path.read_text() for path in folder.iterdir()} == before


def test_overwrite_spares_the_working_directory_and_runs_inside(folder, monkeypatch):
    Run(folder, Settings()).close()
    (folder / "plots").mkdir()
    monkeypatch.chdir(folder / "plots")
    with pytest.raises(UserError, match="lies in it"):
        Run("..", Settings(), overwrite=True)
    monkeypatch.chdir(folder.parent)
    Run(folder / "seed1", Settings()).close()
    with pytest.raises(UserError, match="seed1 lies in it"):
        Run(folder, Settings(), overwrite=True)
    assert names(folder) == {"settings.json", "plots", "seed1"}


def test_overwrite_deletes_a_link_and_not_what_it_points_to(folder, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights").write_text("w")
    Run(folder, Settings()).close()
    (folder / "model").symlink_to(tmp_path / "models")
    Run(folder, Settings(), overwrite=True).close()
    assert names(folder) == {"settings.json"} and (tmp_path / "models" / "weights").read_text() == "w"


@pytest.mark.parametrize("tail", ['{"step": 2', '{"step": 2, "text": "é'.encode()[:-1], '{"step": 2}'])
def test_a_torn_last_line_is_ignored_and_removed_before_the_next(folder, tail):
    with Run(folder, Settings()) as run:
        run.append("m.jsonl", {"step": 1})
        with open(run.path("m.jsonl"), "ab") as file:
            file.write(tail.encode() if isinstance(tail, str) else tail)
        assert run.read("m.jsonl") == [{"step": 1}]
        run.append("m.jsonl", {"step": 3})
        assert run.read("m.jsonl") == [{"step": 1}, {"step": 3}]
        assert run.path("m.jsonl").read_bytes() == b'{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize("middle", [b"{broken", b"[1]", b"", b"\xff"])
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(folder, middle):
    with Run(folder, Settings()) as run:
        run.path("m.jsonl").write_bytes(b'{"a": 1}\n' + middle + b'\n{"a": 2}\n')
        with pytest.raises(UserError, match="m.jsonl: line 2 is damaged"):
            run.read("m.jsonl")


def test_a_folder_in_use_is_refused_also_with_overwrite(folder):
    with Run(folder, Settings()) as run:
        for overwrite in (False, True):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
                Run(folder, Settings(), overwrite)
        run.append("m.jsonl", {"still": "mine"})
    Run(folder, Settings()).close()


HOLD = """
import sys
sys.path.insert(0, {root!r})
from dataclasses import dataclass
from plumbing.errors import UserError
from plumbing.run import Run

@dataclass
class Settings:
    steps: int = 1

sys.stdin.readline()
try:
    with Run({folder!r}, Settings()):
        print("held", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""


def test_of_several_processes_one_holds_a_folder_and_a_killed_one_holds_it_no_more(folder):
    code = HOLD.format(root=str(Path(data.__file__).parent), folder=str(folder))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    for rival in rivals:  # all have started by now, or nearly so
        print(file=rival.stdin, flush=True)
    said = [rival.stdout.readline().strip() for rival in rivals]
    holder = rivals[said.index("held")]
    others = {line for line in said if line != "held"}
    assert others == {f"{folder} is in use by process {holder.pid}: wait for it, or choose another --out"}
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
        Run(folder, Settings())
    holder.kill()
    for rival in rivals:
        rival.communicate()
    assert (folder / "lock").read_text() == str(holder.pid)
    (folder / "settings.json").unlink()
    with Run(folder, Settings()) as run:
        assert (folder / "lock").read_text() == str(os.getpid())
        run.write("a.txt", "mine")
    assert names(folder) == {"settings.json", "a.txt"}


@pytest.mark.parametrize("number", ["", "1", str(os.getppid()), str(os.getpid()), "no number"])
def test_a_lock_file_that_no_process_holds_is_stale_whatever_number_is_in_it(folder, number):
    """Empty: killed between making and filling it. A live number: another process got the dead one's."""
    folder.mkdir(parents=True)
    (folder / "lock").write_text(number)
    with Run(folder, Settings()), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        Run(folder, Settings())
    assert names(folder) == {"settings.json"}


def test_a_lock_file_deleted_by_its_last_holder_in_this_moment_is_made_anew(folder, monkeypatch):
    folder.mkdir(parents=True)
    take = run_module.take_lock

    def late(file):
        if (folder / "lock").stat().st_mtime_ns and not deleted:
            deleted.append((folder / "lock").unlink())
        return take(file)

    deleted = []
    monkeypatch.setattr(run_module, "take_lock", late)
    with Run(folder, Settings()), pytest.raises(UserError, match="in use"):
        Run(folder, Settings())


def test_what_killed_saves_left_is_gone_when_the_run_goes_on(folder):
    with Run(folder, Settings()) as run:
        run.write("state.pt", "good")
    (folder / ".state.pt.new").write_text("ha")
    (folder / "model" / ".saving-abc").mkdir(parents=True)
    (folder / "model" / ".saving-abc" / "model.safetensors").write_text("lf")
    (folder / "model" / "config.json").write_text("{}")
    with Run(folder, Settings()):
        assert names(folder) == {"settings.json", "lock", "state.pt", "model"}
        assert names(folder / "model") == {"config.json"}


def test_a_run_killed_while_it_writes_its_settings_for_the_first_time_can_start_again(folder):
    folder.mkdir(parents=True)
    (folder / ".settings.json.new").write_text('{"ste')
    (folder / "lock").touch()
    Run(folder, Settings()).close()
    assert names(folder) == {"settings.json"}


def test_write_takes_text_bytes_and_objects(folder):
    with Run(folder, Settings()) as run:
        run.write("a.txt", "é")
        run.write("b.bin", b"\x00\xff")
        run.write("c.json", {"é": [1]})
        assert run.path("a.txt").read_text(encoding="utf-8") == "é"
        assert run.path("b.bin").read_bytes() == b"\x00\xff"
        assert run.path("c.json").read_text(encoding="utf-8") == '{\n "é": [\n  1\n ]\n}\n'


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    atomic_write(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == {"a.json"}


@pytest.fixture
def full_disk():
    """No file may grow beyond 100 kB: the system refuses a write as a full disk does, after a part of it."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", [
    lambda run: run.write("state.pt", b"x" * 200_000),
    lambda run: run.save("state.pt", {"x": torch.zeros(50_000)}),
    lambda run: run.save("state.pt", {str(i): torch.zeros(500) for i in range(100)}),
    lambda run: T5(T5Config(vocab_size=2000, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=1,
                            num_decoder_layers=1)).save_pretrained(run.path("model")),
    lambda run: run.append("m.jsonl", {"text": "x" * 200_000}),
])  # fmt: skip
def test_on_a_full_disk_every_way_to_write_ends_in_one_sentence_and_what_was_there_stays(
    write, folder, full_disk, capsys
):
    def main():
        with Run(folder, Settings()) as run:
            write(run)

    with Run(folder, Settings()) as run:
        run.save("state.pt", {"epoch": 3})
        run.append("m.jsonl", {"step": 1})
        run.path("model").mkdir()
    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "File too large" in said
    assert torch.load(folder / "state.pt", weights_only=True) == {"epoch": 3}
    with Run(folder, Settings()) as run:
        assert run.read("m.jsonl") == [{"step": 1}]
        assert names(folder) == {"settings.json", "lock", "state.pt", "m.jsonl", "model"}
        assert not names(run.path("model"))
        run.append("m.jsonl", {"step": 2})
        assert run.read("m.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_folder_that_becomes_read_only_ends_a_run_in_one_sentence_that_names_the_file(capsys):
    def main():
        with Run(folder, Settings()) as run:
            folder.chmod(0o555)
            run.save("state.pt", {"epoch": 4})

    with tempfile.TemporaryDirectory() as place:  # not tmp_path, which only its owner may enter
        Path(place).chmod(0o777)
        folder, user = Path(place) / "run", os.geteuid()
        try:
            if user == 0:  # who may write anywhere
                os.seteuid(65534)
            with Run(folder, Settings()) as run:
                run.save("state.pt", {"epoch": 3})
            for _ in range(2):
                with pytest.raises(SystemExit) as stopped:
                    run_main(main)
                said = capsys.readouterr().err
                assert stopped.value.code == 2 and said == f"error: {folder / 'state.pt'}: Permission denied\n"
            folder.chmod(0o755)
            with Run(folder, Settings()) as run:
                assert torch.load(run.path("state.pt"), weights_only=True) == {"epoch": 3}
            assert names(folder) == {"settings.json", "state.pt"}
        finally:
            os.seteuid(user)


# ---- How a script ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("x.json: the file is empty"), 2, "error: x.json: the file is empty\n"),
        (UserError("runs/x is in use"), 2, "error: runs/x is in use\n"),
        (UserError("choose one"), 2, "error: choose one\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "error: a/b: Permission denied\n"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to continue\n"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_a_status(capsys, error, status, said):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    assert stopped.value.code == status and capsys.readouterr().err == said


def test_after_ctrl_c_in_a_run_that_overwrites_the_same_command_would_lose_it(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_kd.py", "--overwrite"])
    test_a_mistake_ends_in_one_sentence_and_a_status(
        capsys, KeyboardInterrupt(), 130, "interrupted: run the same command again without --overwrite to continue\n"
    )


def test_the_sentence_stands_below_a_progress_bar_that_was_not_closed(capsys):
    def main():
        bar = tqdm(total=2)
        bar.update()
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run_main(main)
    *_, bar, said, end = capsys.readouterr().err.split("\n")
    assert "1/2" in bar and said == "interrupted: run the same command again to continue" and not end


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
