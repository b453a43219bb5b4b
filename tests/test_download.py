"""
Proofs for the official data sets' download: a server on this machine that cuts, lies and counts requests, and small
files in the official form, whose sizes, hashes and counts take the place of the real ones.
"""

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data
import train_kd
from data import load
from plumbing import downloads
from plumbing.command import run_main
from plumbing.errors import UserError


class Handler(BaseHTTPRequestHandler):
    """Serves server.content at any path but /moved/…; server.faults says what goes wrong with which request."""

    def do_GET(self):
        server = self.server
        fault = server.faults.pop(0) if server.faults else None
        begin = self.headers.get("Range")
        server.ranges.append(begin)
        if isinstance(fault, int):
            return self.send_error(fault)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            return self.end_headers()
        start = 0 if begin is None or fault == "ignores Range" else int(begin.removeprefix("bytes=")[:-1])
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

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.faults, server.ranges = b"", [], []
    server.end_of_silence = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.end_of_silence.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCOT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def records(count, **changes):
    return [{"_id": f"id-{i}", "question": "Who?", "answer": "Ann é", "supporting_facts": [["T", 0]],
             "context": [["T", ["Ann é. "]], ["U", ["Bob."]]], **changes} for i in range(count)]  # fmt: skip


@pytest.fixture
def publish(server, cache, monkeypatch):
    """Puts content on the server, and its address, size, hash and count in the place of the real ones."""

    def put(content, name="hotpotqa", counts=(40,), path="/hotpot_dev.json?dl=1"):
        server.content = content
        url = f"http://127.0.0.1:{server.server_port}{path}"
        parts = ("dev", "train")[: len(counts)]
        entry = (url, len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(downloads.OFFICIAL, name, {p: (*entry, n) for p, n in zip(parts, counts, strict=True)})
        return content

    return put


CONTENT = json.dumps(records(40)).encode()


def archive(folder="", dev=40, train=60, **more):
    members = {f"{folder}dev.json": records(dev), f"{folder}train.json": records(train), f"{folder}test.json": []}
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


def test_a_data_set_is_downloaded_once_and_its_bytes_are_the_servers(publish, server, cache, capsys):
    publish(CONTENT)
    first = load("hotpotqa")
    assert [e.id for e in first] == [f"id-{i}" for i in range(40)] and first[0].context == "Ann é."
    assert files(cache) == {"hotpot_dev.json": CONTENT}
    assert "hotpot_dev.json: 100%" in capsys.readouterr().err
    assert load("hotpotqa", limit=3, context="all") != first[:3] and server.ranges == [None]


@pytest.mark.parametrize("folder", ["data_ids_april7/", "", "../../"])
def test_an_archives_dev_file_is_the_test_set_and_its_training_file_falls_into_train_and_dev(
    publish, server, cache, folder
):
    publish(archive(folder, **{"__MACOSX/._dev.json": "x", "more/my_dev.json": "y"}), "2wiki", (40, 60), "/a.zip?dl=1")
    test, train, dev = (load("2wiki", split) for split in ("test", "train", "dev"))
    assert len(test) == 40 and sorted(e.id for e in train + dev) == sorted(f"id-{i}" for i in range(60))
    assert all(data.held_out(e.id) for e in dev) and not any(data.held_out(e.id) for e in train)
    assert server.ranges == [None]  # one archive, asked for once
    assert files(cache).keys() == {"a.zip"} and [path.name for path in cache.parent.iterdir()] == ["cache"]


def test_a_file_put_there_by_hand_needs_no_server(publish, server, cache):
    publish(CONTENT)
    cache.mkdir()
    (cache / "hotpot_dev.json").write_text(json.dumps(records(40), indent=1))  # other bytes, the same records
    assert len(load("hotpotqa")) == 40 and server.ranges == []


def test_the_cache_is_in_the_home_folder_unless_set(publish, tmp_path, monkeypatch):
    publish(CONTENT)
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


def test_a_named_data_set_needs_no_test_file_and_a_file_does():
    train_kd.Settings(data="hotpotqa").check()
    train_kd.Settings(data="2wiki").check()
    with pytest.raises(ValueError, match="--data FILE needs --test-data FILE"):
        train_kd.Settings(data="train.json").check()


# ---- what goes wrong on the way --------------------------------------------------------------------------------------

HALF = len(CONTENT) // 2


@pytest.mark.parametrize(
    ("path", "faults"),
    [
        ("/hotpot_dev.json", ["cut"]),
        ("/moved/hotpot_dev.json?dl=1", [None, "cut"]),
        ("/hotpot_dev.json", ["no length"]),
        ("/hotpot_dev.json", ["cut", "ignores Range"]),
    ],
)
def test_a_cut_download_is_kept_and_goes_on_where_it_ended(publish, server, cache, path, faults):
    publish(CONTENT, path=path)
    server.faults = faults
    said = refused("hotpotqa")
    assert f"cut after {HALF:,} of {len(CONTENT):,} bytes" in said and "run the same command again" in said
    assert files(cache) == {"hotpot_dev.json.part": CONTENT[:HALF]}
    server.ranges.clear()
    assert len(load("hotpotqa")) == 40 and set(server.ranges) == {f"bytes={HALF}-"}
    assert files(cache) == {"hotpot_dev.json": CONTENT}


def test_a_file_that_was_whole_before_its_renaming_is_not_asked_for_again(publish, server, cache):
    publish(CONTENT)
    cache.mkdir()
    (cache / "hotpot_dev.json.part").write_bytes(CONTENT)
    assert len(load("hotpotqa")) == 40 and server.ranges == [] and files(cache) == {"hotpot_dev.json": CONTENT}


@pytest.mark.parametrize("other", [b"<html>log in</html>", CONTENT + b" " * 100])
def test_a_file_of_another_length_is_refused_before_a_byte_of_it_is_kept(publish, server, cache, other):
    publish(CONTENT)
    server.content = other
    assert f"the file there has {len(other):,} bytes instead of {len(CONTENT):,}" in refused("hotpotqa")
    assert files(cache) == {}


def test_never_more_than_the_official_size_is_written(publish, server, cache):
    publish(CONTENT)
    server.content, server.faults = CONTENT * 6, ["no length"]  # half of it is still three times too much
    assert len(load("hotpotqa")) == 40 and files(cache) == {"hotpot_dev.json": CONTENT}


def test_a_file_that_changed_between_two_halves_is_thrown_away_and_comes_anew(publish, server, cache):
    publish(CONTENT)
    server.faults, server.content = ["cut"], CONTENT.replace(b"Ann", b"Eve")
    refused("hotpotqa")
    server.content = CONTENT
    assert "not the official file" in refused("hotpotqa") and files(cache) == {}
    assert len(load("hotpotqa")) == 40 and files(cache) == {"hotpot_dev.json": CONTENT}


@pytest.mark.parametrize("fault", ["HTTP Error 404", "HTTP Error 500", "Connection refused"])
def test_a_server_that_does_not_serve_is_one_sentence_that_says_where_to_put_the_file(publish, server, cache, fault):
    publish(CONTENT)
    if fault.startswith("HTTP"):
        server.faults = [int(fault[-3:])]
    else:
        server.shutdown()
        server.server_close()
    said = refused("hotpotqa")
    assert fault in said and f"or put hotpot_dev.json into {cache} by hand" in said and files(cache) == {}


def test_a_silent_server_is_given_up_and_what_came_is_kept(publish, server, cache, monkeypatch):
    publish(CONTENT)
    real = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: real(request, timeout=timeout / 300))
    server.faults = ["silent"]
    assert "timed out" in refused("hotpotqa")
    assert len(load("hotpotqa")) == 40 and server.ranges == [None, f"bytes={HALF}-"]


def test_a_full_disk_is_one_sentence(publish, cache):
    publish(CONTENT)
    cache.mkdir()
    (cache / "hotpot_dev.json.part").symlink_to("/dev/full")
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    assert "No space left" in refused("hotpotqa")


def test_a_file_system_without_locks_is_one_sentence_and_gets_no_lock_that_could_go_stale(publish, cache, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    publish(CONTENT)
    monkeypatch.setattr("fcntl.flock", flock)
    said = refused("hotpotqa")
    assert "no locks here" in said and f"or put hotpot_dev.json into {cache} by hand" in said and files(cache) == {}
    monkeypatch.undo()


# ---- damaged files in the cache --------------------------------------------------------------------------------------


def flipped(raw):
    """A byte of the first member's compressed content changed, which only its CRC tells."""
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        first = file.infolist()[0]
    raw = bytearray(raw)
    crc = raw.index(b"PK\x01\x02") + 16  # of the first entry of the central directory
    assert int.from_bytes(raw[crc : crc + 4], "little") == first.CRC
    raw[crc] ^= 1
    return bytes(raw)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.zip", flipped(archive()), "Bad CRC-32"),
        ("data.zip", archive()[:-50], "not a zip file"),
        ("data.zip", archive().replace(b"dev.json", b"def.json"), "it has no dev.json"),
        ("data.zip", archive(dev=39), "it has 39 dev records, and the official file has 40"),
        ("data.json", CONTENT[:-9], "Unterminated string"),
        ("data.json", b"7", "has no len"),
        ("data.json", json.dumps(records(41)).encode(), "it has 41 dev records, and the official file has 40"),
    ],
)
def test_a_damaged_file_is_one_sentence_and_comes_anew_once_it_is_deleted(publish, server, cache, name, content, said):
    publish(archive() if name == "data.zip" else CONTENT, "2wiki", (40,), f"/{name}")
    cache.mkdir()
    (cache / name).write_bytes(content)
    message = refused("2wiki")
    assert message.startswith(f"{cache / name} is damaged (") and said in message
    assert "delete it, and the same command downloads it anew" in message and server.ranges == []
    (cache / name).unlink()
    assert len(load("2wiki")) == 40 and server.ranges == [None]


# ---- several processes -----------------------------------------------------------------------------------------------


def in_another_process(*arguments):
    """`load` under run_main, in a fork of this process."""

    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells start programs with it ignored
        run_main(lambda: load(*arguments))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited for 20 seconds"
        time.sleep(0.01)


@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_process_that_is_ended_leaves_what_came_and_no_lock_and_the_next_goes_on(publish, server, cache, end, status):
    content = publish(json.dumps(records(4000)).encode(), counts=(4000,))
    server.faults = ["silent"]
    process = in_another_process("hotpotqa")
    wait_until(lambda: any(path.stat().st_size for path in cache.glob("*.part")) or not process.is_alive())
    os.kill(process.pid, end)
    process.join(60)
    came = len(files(cache)["hotpot_dev.json.part"])
    assert process.exitcode == status and 0 < came < len(content)
    assert len(load("hotpotqa")) == 4000 and server.ranges == [None, f"bytes={came}-"]
    assert files(cache) == {"hotpot_dev.json": content}


def test_a_second_process_waits_for_the_first_and_goes_on_where_that_one_was_cut(publish, server, cache):
    publish(CONTENT)
    server.faults = ["silent", None]
    process = in_another_process("hotpotqa")
    wait_until(lambda: server.ranges or not process.is_alive())
    threading.Timer(1, server.end_of_silence.set).start()
    assert len(load("hotpotqa")) == 40 and server.ranges == [None, f"bytes={HALF}-"]
    process.join(20)
    assert process.exitcode == 2  # its connection was cut: it says so
    assert files(cache) == {"hotpot_dev.json": CONTENT}


def test_many_processes_at_once_all_get_the_whole_file_which_one_of_them_downloads(publish, server, cache):
    publish(CONTENT)
    processes = [in_another_process("hotpotqa") for _ in range(4)]
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 4 and server.ranges == [None]
    assert files(cache) == {"hotpot_dev.json": CONTENT}
