"""Proofs for the official data sets' download: a server on this machine that cuts, lies and counts requests, and small
files in the official form, whose sizes and hashes take the place of the real ones."""

import errno
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
import time
import urllib.request
import zipfile

import pytest
from fake_server import LocalServer, QuietHandler

import data
import train_kd
from data import load
from plumbing import downloads
from plumbing.command import run_main
from plumbing.errors import UserError


class Handler(QuietHandler):
    """Serves server.content at any path but /moved/…; server.faults says what goes wrong with which request."""

    def do_GET(self):
        server = self.server
        fault = server.faults.pop(0) if server.faults else None
        server.ranges.append(self.headers["Range"])
        if fault == 500:
            return self.send_error(fault)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            return self.end_headers()
        start = 0 if fault == "ignores Range" else int(self.headers["Range"].removeprefix("bytes=")[:-1])
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if fault != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("cut", "silent", "no length"):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.wfile.flush()
        if fault == "silent":
            server.end_of_silence.wait(30)


@pytest.fixture
def server():
    with LocalServer(Handler) as server:
        server.content, server.faults, server.ranges = b"", [], []
        server.end_of_silence = threading.Event()
        yield server
        server.end_of_silence.set()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCOT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def records(count, **changes):
    return [{"_id": f"id-{i}", "question": "Who?", "answer": "Ann é", "supporting_facts": [["T", 0]],
             "context": [["T", ["Ann é. "]], ["U", ["Bob."]]], **changes} for i in range(count)]  # fmt: skip


CONTENT = json.dumps(records(40)).encode()
HALF = len(CONTENT) // 2
DONE = {"hotpot_dev.json": CONTENT}


@pytest.fixture
def publish(server, cache, monkeypatch):
    """Puts content on the server, and its address, size and hash in the place of the real ones."""

    def put(content=CONTENT, name="hotpotqa", path="/hotpot_dev.json?dl=1"):
        server.content = content
        entry = (server.url + path, len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(downloads.OFFICIAL, name, {"dev": entry, "train": entry})

    return put


def archive(folder="", **more):
    members = {f"{folder}dev.json": records(40), f"{folder}train.json": records(60), f"{folder}test.json": []}
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as file:
        for member, content in {**more, **members}.items():
            file.writestr(member, json.dumps(content))
    return raw.getvalue()


def files(folder):
    """name → content of what lies in the folder, without the empty files of locks and of downloads not begun."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.stat().st_size}


def refused(*arguments):
    with pytest.raises(UserError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is loaded --------------------------------------------------------------------------------------------------


def test_a_data_set_is_downloaded_once_and_its_bytes_are_the_servers_and_a_file_put_there_by_hand_is_taken(
    publish, server, cache, capsys
):
    publish()
    first = load("hotpotqa")
    assert [e.id for e in first] == [f"id-{i}" for i in range(40)] and first[0].context == "Ann é."
    assert files(cache) == DONE and "hotpot_dev.json: 100%" in capsys.readouterr().err
    (cache / "hotpot_dev.json").write_text(json.dumps(records(30)))  # other bytes
    again = load("hotpotqa", limit=20, context="all")
    assert len(again) == 20 and again[0].context == "Ann é. Bob." and len(server.ranges) == 1


@pytest.mark.parametrize("folder", ["data_ids_april7/", "", "../../"])
def test_an_archives_dev_file_is_the_test_set_and_its_training_file_falls_into_train_and_dev(
    publish, server, cache, folder
):
    publish(archive(folder, **{"__MACOSX/._dev.json": "x", "more/my_dev.json": "y"}), "2wiki", "/a.zip?dl=1")
    test, train, dev = (load("2wiki", split) for split in ("test", "train", "dev"))
    assert len(test) == 40 and sorted(e.id for e in train + dev) == sorted(f"id-{i}" for i in range(60))
    assert all(data.held_out(e.id) for e in dev) and not any(data.held_out(e.id) for e in train)
    assert len(server.ranges) == 1  # one archive, asked for once
    assert files(cache).keys() == {"a.zip"} and [path.name for path in cache.parent.iterdir()] == ["cache"]


def test_the_cache_is_in_the_home_folder_unless_set(publish, tmp_path, monkeypatch):
    publish()
    monkeypatch.delenv("LMCOT_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("hotpotqa")
    assert (tmp_path / "home/.cache/lmcot/hotpot_dev.json").read_bytes() == CONTENT


def test_faulty_records_of_an_official_file_are_left_out_and_said_but_not_if_all_are(publish, cache, capsys):
    bad = records(1, _id="bad", supporting_facts=[["Nobody", 0]])
    publish(json.dumps(records(38) + bad + records(1)).encode())
    assert [e.id for e in load("hotpotqa")] == [f"id-{i}" for i in range(38)]
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert "hotpotqa: 2 faulty records left out" in said
    assert 'record 38 (id bad): the context lacks the title "Nobody"' in said
    (cache / "hotpot_dev.json").write_text(json.dumps(records(40, answer=None)))
    assert "record 0 (id id-0): field 'answer' holds null" in refused("hotpotqa")


def test_a_named_data_set_needs_no_test_file():
    train_kd.Settings(data="hotpotqa").check()
    train_kd.Settings(data="2wiki").check()


# ---- what goes wrong on the way --------------------------------------------------------------------------------------

CUT = f"cut after {HALF:,} of {len(CONTENT):,} bytes"
OTHER = CONTENT.replace(b"Ann", b"Eve")  # of the same length


@pytest.mark.parametrize(
    ("content", "faults", "said", "kept"),
    [
        (CONTENT, ["cut"], CUT, HALF),
        (CONTENT, ["no length"], CUT, HALF),
        (CONTENT, ["cut", "ignores Range"], CUT, HALF),
        (CONTENT, ["silent"], "timed out", HALF),
        (CONTENT, [500], "HTTP Error 500", 0),
        (CONTENT + b" " * 100, [], f"bytes instead of {len(CONTENT):,}", 0),
        (b"<html>log in</html>", [], f"the file there has 19 bytes instead of {len(CONTENT):,}", 0),
        (OTHER, [], "not the official file, for its SHA-256 differs", 0),
    ],
)
def test_a_failed_download_is_one_sentence_and_the_next_one_goes_on_with_what_came(
    publish, server, cache, monkeypatch, content, faults, said, kept
):
    publish()
    real = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: real(request, timeout=timeout / 60))
    server.content, server.faults = content, faults
    sentence = refused("hotpotqa")
    assert said in sentence and f"again to go on, or put hotpot_dev.json into {cache} by hand" in sentence
    assert files(cache) == ({"hotpot_dev.json.part": CONTENT[:kept]} if kept else {})
    server.content = CONTENT
    assert len(load("hotpotqa")) == 40 and server.ranges == ["bytes=0-", f"bytes={kept}-"]
    assert files(cache) == DONE


def test_a_redirect_is_followed_and_a_file_that_was_whole_before_its_renaming_is_not_asked_for_again(
    publish, server, cache
):
    publish(path="/moved/hotpot_dev.json?dl=1")
    assert len(load("hotpotqa")) == 40 and len(server.ranges) == 2
    (cache / "hotpot_dev.json").rename(cache / "hotpot_dev.json.part")
    assert len(load("hotpotqa")) == 40 and len(server.ranges) == 2 and files(cache) == DONE


def test_never_more_than_the_official_size_is_written(publish, server, cache):
    publish()
    server.content, server.faults = CONTENT * 6, ["no length"]  # half of it is still three times too much
    assert len(load("hotpotqa")) == 40 and files(cache) == DONE


def test_a_file_system_without_locks_is_one_sentence_and_gets_no_lock_that_could_go_stale(publish, cache, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    publish()
    monkeypatch.setattr("fcntl.flock", flock)
    assert "no locks here" in refused("hotpotqa") and files(cache) == {}
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (archive().replace(b"PK\x01\x02", b"PK\x01\x03"), "Bad magic number"),
        (archive()[:-50], "not a zip file"),
        (archive().replace(b"dev.json", b"def.json"), "it has no dev.json"),
    ],
)
def test_a_damaged_archive_is_one_sentence_and_comes_anew_once_it_is_deleted(publish, server, cache, content, said):
    publish(archive(), "2wiki", "/a.zip")
    cache.mkdir()
    (cache / "a.zip").write_bytes(content)
    message = refused("2wiki")
    assert message.startswith(f"{cache / 'a.zip'} is damaged (") and said in message
    assert "delete it, and the same command downloads it anew" in message and server.ranges == []
    (cache / "a.zip").unlink()
    assert len(load("2wiki")) == 40 and len(server.ranges) == 1


# ---- several processes -----------------------------------------------------------------------------------------------


def in_another_process():
    """`load` under run_main, in a fork of this process."""

    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells start programs with it ignored
        run_main(lambda: load("hotpotqa"))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_process_that_is_ended_leaves_what_came_and_no_lock_and_the_next_goes_on(publish, server, cache, end, status):
    content = json.dumps(records(4000)).encode()
    publish(content)
    server.faults = ["silent"]
    process = in_another_process()
    while not any(path.stat().st_size for path in cache.glob("*.part")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, end)
    process.join(60)
    came = len(files(cache)["hotpot_dev.json.part"])
    assert process.exitcode == status and 0 < came < len(content)
    assert len(load("hotpotqa")) == 4000 and server.ranges == ["bytes=0-", f"bytes={came}-"]
    assert files(cache) == {"hotpot_dev.json": content}


def test_of_several_processes_one_downloads_and_where_it_is_cut_the_next_goes_on(publish, server, cache):
    publish()
    server.faults = ["silent"]
    processes = [in_another_process() for _ in range(4)]
    while not server.ranges:
        time.sleep(0.01)
    threading.Timer(1, server.end_of_silence.set).start()
    for process in processes:
        process.join(20)
    # One was cut, and says so; all others have the whole file, of which the second one downloaded the rest.
    assert sorted(process.exitcode for process in processes) == [0, 0, 0, 2]
    assert server.ranges == ["bytes=0-", f"bytes={HALF}-"] and files(cache) == DONE
