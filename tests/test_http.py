"""Proofs for ServedLM: a fake server on this machine fails in every way there is and counts what it is asked."""

import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from email.utils import formatdate

import pytest
from fake_server import KEY, completion, error, serving
from harness import SAMPLES, lines
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

import data
import lmcot
from model import load_tokenizer
from plumbing import processes
from plumbing import server as plumbing_server
from plumbing.errors import UserError
from plumbing.server import Completion, ServedLM

serve = pytest.fixture(serving)
NONE, PARIS = Completion("", "none"), Completion("Paris", "stop")


def connect(url, **options):
    """An ServedLM that writes down how long it would wait, and does not wait."""
    lm = ServedLM(url, "a-model", **options)
    lm.waits = []

    def wait(seconds):
        if seconds:
            lm.waits.append(seconds)
        return lm.stopped.is_set()

    lm.stopped.wait = wait
    return lm


def connect_and_ask(url, **options):
    """The same, but the server has answered before, as after `begin`."""
    lm = connect(url, **options)
    assert lm.complete(["first"], 5) == echoes(["first"])
    lm.restart(0)
    return lm


def echo(prompt, n):
    return completion(f"said {prompt}")


def echoes(prompts):
    """What `echo` says to these prompts."""
    return [Completion(f"said {prompt}", "stop") for prompt in prompts]


def texts(completions):
    return [completion.text for completion in completions]


def after(seconds):
    """A plan that takes so long."""
    return lambda prompt, n: time.sleep(seconds) or echo(prompt, n)


# ------------------------------------------------------------------------------------------------ when all goes well


def test_every_request_has_these_fields_and_the_answers_come_in_the_order_of_the_prompts(serve):
    server = serve(lambda prompt, n: after(0.05)(prompt, n) if prompt == "p0" else echo(prompt, n))
    prompts = [f"p{i}" for i in range(20)]
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    assert connect(server.url + "/", extra=extra).complete(prompts, 33, temperature=0.25) == echoes(prompts)
    assert set(server.seen.values()) == {1} and set(server.seen) == set(prompts)
    for path, headers, body in server.requests:
        assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
        assert body.pop("messages")[0]["content"] in prompts
        assert body == {"model": "a-model", "max_tokens": 33, "temperature": 0.25} | extra
    connect(server.url).complete(["p0"], 5)
    messages = [{"role": "user", "content": "p0"}]
    assert server.requests[-1][2] == {"model": "a-model", "max_tokens": 5, "temperature": 0, "messages": messages}


def test_the_key_is_sent_without_its_line_end_and_where_there_is_none_no_other_programs_key(serve, monkeypatch):
    monkeypatch.delenv("LMCOT_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-program")
    server = serve(echo)
    connect(server.url).complete(["a"], 5)
    assert "Authorization" not in server.requests[0][1] and "another" not in str(server.requests)
    monkeypatch.setenv("LMCOT_API_KEY", KEY + "\n")  # a line end after the key, as files have it, does no harm
    connect(server.url).complete(["a"], 5)
    assert server.requests[1][1]["Authorization"] == f"Bearer {KEY}"


def test_as_many_requests_are_under_way_as_the_setting_says(serve):
    for concurrency in (1, 5):
        server = serve(after(0.1))
        connect(server.url, concurrency=concurrency).complete([f"p{i}" for i in range(3 * concurrency)], 5)
        assert server.most == concurrency


def test_a_greedy_prompt_is_asked_once_and_samples_stand_in_a_row_for_each_prompt(serve):
    server = serve(lambda prompt, n: completion(f"{prompt} {n}"))
    lm = connect(server.url)
    assert texts(lm.complete(list("abacab"), 5)) == ["a 0", "b 0", "a 0", "c 0", "a 0", "b 0"]
    assert texts(lm.complete(["d", "a"], 5, samples=2)) == ["d 0", "d 0", "a 0", "a 0"]
    assert server.seen == {"a": 1, "b": 1, "c": 1, "d": 1} and lm.tokens_written == (3 + 2) * 7
    sampled = lm.complete(["x", "y"], 5, 3, 0.7)
    assert set(texts(sampled[:3])) == {"x 0", "x 1", "x 2"} and set(texts(sampled[3:])) == {"y 0", "y 1", "y 2"}
    assert set(texts(lm.complete(["x", "x"], 5, 1, 0.7))) == {"x 3", "x 4"}  # new samples, not the old
    lm.restart(0)
    assert lm.complete(["x", "y"], 5, 3, 0.7) == sampled and server.seen["x"] == 5
    lm.restart(1)
    assert texts(lm.complete(["x"], 5, 1, 0.7)) == ["x 5"]  # another seed, another sample
    assert lm.complete([], 5) == []


# ------------------------------------------------------------------------------------------------ what is an answer

PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Pa"},
         {"type": "text", "text": "ris"}]  # fmt: skip
TWO = {"choices": [completion("Paris")["choices"][0], completion("Rome")["choices"][0]], "error": None}
FILTER = error("The response was filtered due to our content management policy", code="content_filter", status=400)
ESCAPED = json.dumps(completion(f"{KEY} Pari\ud83d")).replace("sk-", "\\u0073k-").encode()
REPLIES = {  # what comes back for one prompt, each time → what that is, and how often it is asked for
    "text": (completion(" Paris\n"), PARIS, 1),
    **{f"finish {finish!r}": (completion("Paris", finish), PARIS, 1)
       for finish in (None, "", "eos", "eos_token", "stop_sequence", "end_turn", "STOP")},
    **{f"cut, {finish}": (completion("Par", finish), Completion("Par", "length"), 1)
       for finish in ("length", "max_tokens")},
    **{f"a fragment, {finish}": (completion("Par", finish), NONE, 3)
       for finish in ("error", "abort", "tool_calls", "function_call", 7)},
    **{f"no text, {text!r}": (completion(text), NONE, 3) for text in ("", None, " \n", [], {}, [{"type": "image"}])},
    "a number for text": (completion(7), NONE, 3),
    "no content": ({"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}]}, NONE, 3),
    "no message": ({"choices": [{}]}, NONE, 3),
    "no choices": ({"choices": []}, NONE, 3),
    "filtered": (completion("Par", "content_filter"), NONE, 1),
    "filtered, 400": ((400, FILTER), NONE, 1),
    "filtered, 403": ((403, error("Your input was flagged by moderation")), NONE, 1),
    "filtered, 200": (FILTER, NONE, 1),
    "refused": (completion(None, refusal="I will not."), NONE, 1),
    "400 for this prompt": ((400, error("I cannot")), NONE, 1),
    "400 that quotes": ((400, error("invalid: 'What temperature has max_tokens?'")), NONE, 3),
    "422 for this prompt": ((422, {"detail": [{"loc": ["body", "messages"], "msg": "bad text"}]}), NONE, 1),
    "500 for this prompt": ((500, error("the template crashed")), NONE, 10),
    "an error, '400'": (error("I cannot", code="400"), NONE, 1),
    "an error without code": ({"error": "I cannot"}, NONE, 3),
    "parts": (completion(PARTS), PARIS, 1),
    "parts as strings": (completion(["Pa", "ris"]), PARIS, 1),
    "thought": (completion("Paris", reasoning_content="Hm."), PARIS, 1),
    "only thought": (completion(None, reasoning_content="Hm."), NONE, 1),
    "only thought, cut": (completion("", "length", reasoning="Hm."), NONE, 1),
    "no text, an error while it thought": (completion(None, "error", reasoning_content="Hm."), NONE, 3),
    "nothing, cut": (completion("", "length"), NONE, 1),
    "two choices": (TWO, PARIS, 1),
    "the key, escaped, and half a character": (ESCAPED, Completion("… Pari?", "stop"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_the_right_answer_or_none_and_the_run_goes_on(name, serve, tmp_path, capsys):
    what, right, tries = REPLIES[name]
    server, cache = serve(lambda prompt, n: what if prompt == "p" else echo(prompt, n)), tmp_path / "c"
    lm = connect_and_ask(server.url, cache=cache)
    assert lm.complete(["p", "q", "r"], 5) == [right, *echoes("qr")]
    assert server.seen["p"] == tries and (lm.unanswered, lm.unfinished) == (right == NONE, right.finish == "length")
    others = [body for _, _, body in server.requests if body["messages"][0]["content"] != "p"]
    assert {*map(len, others)} == {4}  # "temperature" in a refusal changes no other request
    count = len(server.requests)
    again = connect(server.url, cache=cache)
    assert again.complete(["p", "q", "r"], 5) == [right, *echoes("qr")] and len(server.requests) == count
    assert again.unanswered == lm.unanswered and again.tokens_written == lm.tokens_written
    said = capsys.readouterr().err
    assert KEY not in cache.read_text() + said and ("get no answer" in said) == (right == NONE)
    assert ("--chain-tokens" in said) == (name in ("only thought", "only thought, cut", "nothing, cut"))
    lm.restart(0)
    assert (lm.unanswered, lm.unfinished, lm.tokens_written, lm.cut) == (0, 0, 0, 0)


def test_a_key_of_a_few_letters_is_no_secret_and_no_answer_loses_it(serve, monkeypatch):
    monkeypatch.setenv("LMCOT_API_KEY", "EMPTY")
    assert texts(connect(serve(lambda prompt, n: completion("EMPTY")).url).complete(["p"], 5)) == ["EMPTY"]


# ------------------------------------------------------------------------------------------------ fields of a request


def knows(*fields, status=400):
    """A plan that refuses every other field, and names it as OpenAI (400) and FastAPI (422) do."""

    def plan(body, prompt, n):
        for field in ("max_tokens", "max_completion_tokens", "temperature"):
            if field in body and field not in fields:
                detail = [{"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs are not permitted"}]
                said = f"Unsupported parameter: '{field}'. Use 'max_completion_tokens'."
                return (422, {"detail": detail}) if status == 422 else (400, error(said, param=field))
        return (400, error("I cannot")) if prompt == "bad" else echo(prompt, n)

    return plan


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("known", "more"),
    [(("max_completion_tokens", "temperature"), 1), (("max_tokens",), 1), (("max_completion_tokens",), 2),
     (("temperature",), 2), ((), 3)],
)  # fmt: skip
def test_a_field_that_a_server_refuses_is_left_out_or_renamed_for_the_run_and_the_cache_stays(
    known, more, status, serve, tmp_path, capsys
):
    plan = knows(*known, status=status)
    server = serve(lambda prompt, n: plan(server.requests[-1][2], prompt, n))
    lm = connect(server.url, cache=tmp_path / "c", concurrency=1)
    assert lm.complete(["a", "b", "bad"], 5) == [*echoes("ab"), NONE]
    assert len(server.requests) == 3 + 1 + more  # the server is asked once more whether it answers others
    for _, _, body in server.requests[more:]:  # remembered
        assert body.keys() == {"model", "messages", *known} and all(body[field] in (0, 5) for field in known)
    assert capsys.readouterr().err.count("answers are sampled") == ("temperature" not in known)
    keys = [lm.request(prompt, 5)[0] for prompt in ("a", "b", "bad")]
    assert [line["key"] for line in lines(tmp_path / "c")] == keys  # as if nothing had been refused


# ------------------------------------------------------------------------------------------------ what may pass


def raw(text):
    """What sends this instead of a reply."""
    return lambda handler: handler.wfile.write(text.encode())


PASSING = {
    "408": (408, {}),
    "409": (409, {}),
    "429": (429, error("slow down", code="rate_limit_exceeded")),
    "500": (500, b"<html>oops"),
    "529": (529, {}),
    "503 with status 200": error("overloaded", code="503"),
    "cut at once": lambda handler: handler.connection.shutdown(socket.SHUT_RDWR),
    "cut in the middle": raw('HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{"choices": [{"message": {"content": '),
    "no HTTP": raw("220 mail.example.org\r\n\r\n"),
    "a page": b"<!doctype html><title>We will be back soon</title>",
    "nothing": b"",
    "no UTF-8": b"\xff\xfe",
    "no object": b"[1]",
}
REFUSING = {name: what for name, (what, right, tries) in REPLIES.items() if right == NONE and "filter" in name}
UNUSABLE = {name: what for name, (what, right, tries) in REPLIES.items() if tries == 3 and "choices" in what}


@pytest.mark.parametrize("fault", [*PASSING, *UNUSABLE])
def test_what_may_pass_is_tried_again_and_nothing_else_is(fault, serve):
    what = (PASSING | UNUSABLE)[fault]
    server = serve(lambda prompt, n: what if prompt == "p3" and n < 2 else echo(prompt, n))
    lm = connect(server.url)
    prompts = [f"p{i}" for i in range(6)]
    assert lm.complete(prompts, 5) == echoes(prompts)
    assert server.seen == {f"p{i}": 3 if i == 3 else 1 for i in range(6)}
    assert len(lm.waits) == 2 and 0.25 <= lm.waits[0] <= 0.75 and 0.5 <= lm.waits[1] <= 1.5


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [("7", 7, 7), ("0", 0.25, 0.75), ("3600", 60, 60), (formatdate(time.time() + 9000, usegmt=True), 60, 60),
     (formatdate(time.time() - 50, usegmt=True), 0.25, 0.75), ("soon", 0.25, 0.75), ("-3", 0.25, 0.75)],
)  # fmt: skip
def test_the_wait_is_what_the_server_asks_for_if_that_is_longer_in_seconds_or_as_a_date_and_at_most_60(
    header, low, high, serve
):
    server = serve(lambda prompt, n: echo(prompt, n) if n else (429, {}, {"Retry-After": header}))
    lm = connect(server.url)
    assert lm.complete(["p"], 5) == echoes(["p"])
    (wait,) = lm.waits
    assert low <= wait <= high


@given(st.one_of(st.none(), st.text(), st.from_regex(r"(Mon, )?\d{1,3} [A-Z][a-z]{2} \d{1,6} [\d:]{0,8} ?[A-Z+\-\d]*")))
def test_no_header_whatever_it_says_makes_the_wait_longer_than_60_seconds_or_an_exception(header):
    assert 0 <= plumbing_server.retry_after(header) <= 60


def test_a_server_that_never_recovers_is_given_up_after_ten_tries_with_growing_waits_of_chance(serve):
    server = serve(lambda prompt, n: (503, error("the model is asleep")))
    lm = connect(server.url)
    with pytest.raises(UserError, match=r"a-model.*503.*the model is asleep.*tried 10 times"):
        lm.complete(["p"], 5)
    middles = [min(60, 0.5 * 2**i) for i in range(9)]
    shares = [wait / middle for wait, middle in zip(lm.waits, middles, strict=True)]
    assert server.seen["p"] == 10 and min(shares) >= 0.5 and max(shares) <= 1.5 and len(set(shares)) == 9


def test_a_server_with_one_slot_gets_fewer_requests_at_once_after_a_time_out_and_answers_all(serve, capsys):
    slot = threading.Lock()

    def plan(prompt, n):
        with slot:  # it works on what nobody waits for any more, too
            return after(0.1)(prompt, n)

    server = serve(plan)
    prompts = [f"p{i}" for i in range(12)]
    lm = connect(server.url, timeout=0.45)
    assert lm.complete(prompts, 5) == echoes(prompts)
    assert 1 <= lm.at_once <= 4 and len(server.requests) < 3 * len(prompts)
    said = capsys.readouterr().err
    assert "no answer within 0.45 seconds (--server-timeout), so it now gets only 4 requests at once" in said


@pytest.mark.parametrize("begins", [b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\n"], ids=["headers", "content"])
def test_a_server_that_sends_byte_after_byte_without_end_is_left_and_asked_again(begins, serve):
    over = threading.Event()

    def drip(handler):
        handler.wfile.write(begins)
        while not over.wait(0.02):
            handler.wfile.write(b"x")

    server = serve(lambda prompt, n: echo(prompt, n) if n else drip)
    begun = time.perf_counter()
    assert connect(server.url, timeout=0.5).complete(["p", "q"], 5) == echoes(["p", "q"])
    assert server.seen == {"p": 2, "q": 2} and time.perf_counter() - begun < 20
    over.set()


# ------------------------------------------------------------------------------------------------ what does not pass

LONG = "lower --max-input-tokens"
FATAL = {  # what comes back for every prompt → words of the sentence, how often it is asked for
    "400": ((400, error("max_tokens is too large")), "max_tokens is too large", 1),
    "401": ((401, error(f"Incorrect API key provided: {KEY}.")), "Incorrect API key", 1),
    "401 with status 200": (error(f"No key like {KEY}", code=401), "is LMCOT_API_KEY set, and right", 1),
    "403": ((403, f"Bearer {KEY} may not".encode()), "may not", 1),
    "404": ((404, {"detail": "Not Found"}), "Not Found", 1),
    "422": ((422, error("no such field")), "no such field", 1),
    "500": ((500, error(KEY), {"Retry-After": KEY}), "status 500", 10),
    "error with status 200": ({"error": "no model is loaded"}, "no model is loaded", 3),
    "quota": ((429, error("You exceeded your quota", code="insufficient_quota"), {"Retry-After": "1"}), "quota", 1),
    "too much": (b" " * 2**24 + json.dumps(completion("Paris")).encode(), "no chat completion came", 10),
    "a page": (f"<html>Bearer {KEY}".encode(), "no chat completion came, but <html>", 10),
    "choices in a word": ({"choices": KEY}, "no chat completion came", 10),
    "the key in the reason": (raw(f"HTTP/1.0 400 {KEY}\r\n\r\n"), "status 400", 1),
    "the key in place of HTTP": (raw(f"{KEY} {KEY}\r\n\r\n"), "perhaps https:// is right", 4),
    "the key, cut": (raw(f"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{KEY}"), "no chat completion", 10),
    **{f"a redirect, {status}": ((status, KEY.encode(), {"Location": f"http://127.0.0.1:1/{KEY}"}),
                                 f"give it as the address (status {status} http://127.0.0.1:1/…", 1)
       for status in (301, 302, 303, 307, 308)},  # followed, it would be "refused"
    "413": ((413, b""), LONG, 1),
    **{f"too long, {said[:20]}": ((status, error(said)), LONG, 1) for status, said in (
        (400, "This model's maximum context length is 4096 tokens. However, you requested 4200 tokens."),
        (400, "the request exceeds the available context size, try increasing it"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens"),
        (400, "The input token count (9000) exceeds the maximum number of tokens allowed (8192)."),
        (500, "input is too large to process. increase the physical batch size"),
        (400, "Please reduce the length of the messages or completion."))},
}  # fmt: skip


@pytest.mark.parametrize("fault", FATAL)
def test_what_does_not_pass_ends_in_one_sentence_without_the_key(fault, serve, tmp_path, capsys):
    what, words, tries = FATAL[fault]
    server, cache = serve(lambda prompt, n: what), tmp_path / "c"
    with pytest.raises(UserError) as caught:
        connect(server.url, concurrency=1, cache=cache).complete([f"p{i}" for i in range(100)], 5)
    assert server.seen == {"p0": tries} and not cache.exists()  # and nothing more was begun
    said = str(caught.value)
    assert words in said and server.url in said and "\n" not in said and len(said) < 500
    assert KEY not in said + repr(caught.value.__context__) + capsys.readouterr().err


def test_a_400_for_every_prompt_ends_the_run_also_where_the_server_has_answered_before(serve, tmp_path):
    server = serve(lambda prompt, n: echo(prompt, n) if len(server.requests) <= 8 else (400, error("nothing loaded")))
    with pytest.raises(UserError, match="nothing loaded"):
        connect(server.url, cache=tmp_path / "c", concurrency=3).complete([f"p{i}" for i in range(40)], 5)
    assert [line["finish"] for line in lines(tmp_path / "c")] == ["stop"] * 8  # and no "none"


def test_a_run_that_is_stopped_while_a_400_is_in_doubt_keeps_no_none(serve):
    def plan(prompt, n):
        if n:  # asked whether it still answers
            lm.stopped.set()
            return 503, {}
        return (400, error("I cannot")) if prompt == "bad" else echo(prompt, n)

    lm = connect_and_ask(serve(plan).url)
    assert lm.persist(lm.request("bad", 5)[1]) is None


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_a_certificate_that_nobody_signed_or_of_another_host_is_refused_at_once_and_no_key_is_sent(
    serve, tmp_path, monkeypatch
):
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test"
    command = ["openssl", "req", *options.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-out", "cert", "-keyout",
               "key"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    server = serve(echo)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http://", "https://")
    lm = connect(url)
    with pytest.raises(UserError, match="certificate verify failed"):
        lm.complete(["p"], 5)
    assert server.requests == [] and lm.waits == []
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    assert connect(url).complete(["p"], 5) == echoes(["p"])  # its owner may say that it is good
    with pytest.raises(UserError, match="certificate verify failed.*localhost"):
        connect(url.replace("127.0.0.1", "localhost")).complete(["p"], 5)
    with pytest.raises(UserError, match="perhaps https:// is right"):
        connect(server.url).complete(["p"], 5)
    assert server.seen == {"p": 1}


def test_a_server_that_has_never_answered_is_tried_4_times_and_http_is_suggested_in_place_of_https(serve, monkeypatch):
    monkeypatch.setattr(plumbing_server, "CONNECT", 0.3)
    with socket.socket() as nobody, socket.create_server(("127.0.0.1", 0)) as silent:
        nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
        suggestion = "perhaps http:// is right"
        for scheme, place, said in (
            ("http", nobody, "refused"),
            ("https", silent, suggestion),
            ("https", serve(echo).socket, suggestion),
        ):
            with pytest.raises(UserError, match=f"{said}.*tried 4 times"):
                connect(f"{scheme}://127.0.0.1:{place.getsockname()[1]}/v1").complete(["p"], 5)


ADDRESSES = ["", "localhost:8000/v1", "ftp://host/v1", "http://", f"http://user:{KEY}@host/v1", "http://ho st/v1",
             f"http://host/v1?key={KEY}", "http://host/v1#x", "http://höst/v1", "http://host/v1\r\nX: y",
             "http://[::1/v1", "http://host:port/v1"]  # fmt: skip
KEYS = [f"{KEY}\nX: 1", f"{KEY} x", f"ключ{KEY}"]


@pytest.mark.parametrize(
    ("address", "key"), [*((address, KEY) for address in ADDRESSES), *(("http://127.0.0.1:1/v1", key) for key in KEYS)]
)
def test_other_forms_of_address_and_keys_that_no_header_can_carry_are_refused_and_not_shown(address, key, monkeypatch):
    monkeypatch.setenv("LMCOT_API_KEY", key)
    with pytest.raises(UserError, match="http://host:8000/v1.*LMCOT_API_KEY") as caught:
        ServedLM(address, "m")
    assert KEY not in str(caught.value)


# ------------------------------------------------------------------------------------------------ before a run


def counted(bytes_per_token):
    """A plan that counts as a tokenizer with so many bytes a token would."""

    def plan(prompt, n):
        reply = echo(prompt, n)
        reply["usage"]["prompt_tokens"] = round(len(prompt.encode()) / bytes_per_token)
        return reply

    return plan


def test_one_request_as_long_as_the_longest_tells_the_bytes_of_a_token_or_that_the_run_cannot_be(
    serve, tmp_path, capsys
):
    prompts = [letter * 1000 for letter in "abcd"] + ["e" * 240]
    server = serve(counted(4))
    lm = connect(server.url, cache=tmp_path / "c", max_input_tokens=200)
    assert lm.count_tokens("x" * 600) == 200  # until it is known, on the safe side
    lm.begin(prompts, 5, 3000)
    pieces = "".join(letter * 160 for letter in "abcde")
    assert [body["messages"][0]["content"] for _, _, body in server.requests] == [pieces]
    assert lm.count_tokens("x" * 800) == 200 and lm.tokens_written == 0
    assert "about 3,000 requests of 172 tokens, 516,000 in all; 1 are answered" in capsys.readouterr().out
    server.plan = counted(2)
    again = connect(server.url, cache=tmp_path / "c", max_input_tokens=200)
    again.begin(prompts, 5, 3000)  # a run that goes on
    assert again.count_tokens("x" * 800) == 200 and len(server.requests) == 1
    server.plan = lambda prompt, n: FATAL["413"][0]
    with pytest.raises(UserError, match=LONG):
        connect(server.url).begin(["a", "b"], 5, 10)
    assert server.seen["ab"] == 1


def test_the_progress_bar_is_that_of_the_whole_run_and_shows_the_time_it_still_needs(serve, monkeypatch, capsys):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"delay": 0, "mininterval": 0})
            bars.append(self)

    monkeypatch.setattr(plumbing_server, "tqdm", Bar)
    lm = connect(serve(after(0.01)).url, concurrency=1)
    lm.begin(["a"], 5, 1000)
    lm.complete([f"p{i}" for i in range(20)], 5)
    # tqdm divides the seconds by the answers since `initial`: those that were there before took no time.
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 1, 1), (1, 21, 1000)]
    assert re.search(r"21/1000 \[\d\d:\d\d<\d\d:\d\d", capsys.readouterr().err)


@pytest.mark.parametrize("counts", [counted(1e9), counted(40), counted(0.5), echo], ids=["0", "few", "many", "none"])
def test_a_count_of_the_prompt_that_cannot_be_leaves_the_estimate_on_the_safe_side(counts, serve):
    lm = connect(serve(counts).url)
    lm.begin(["x" * 300], 5, 10)
    assert lm.count_tokens("x" * 300) == 100


@pytest.mark.skipif(not SAMPLES.exists(), reason="needs real records and the tokenizer of FLAN-T5: LMCOT_SAMPLES")
def test_fewer_contexts_are_cut_in_vain_than_by_the_first_estimate_and_hardly_one_is_too_long(serve):
    examples = data.load(SAMPLES / "2wikimultihop_dev_sample.json", limit=100, context="gold")
    prompts = [lmcot.STANDARD.format(question=each.question, context=each.context) for each in examples]
    tokenizer = load_tokenizer(SAMPLES / "flan-t5")

    def tokens(prompt):
        return len(tokenizer.encode(prompt).ids)

    lm = connect(serve(lambda prompt, n: echo(prompt, n) | {"usage": {"prompt_tokens": tokens(prompt)}}).url)
    estimates = [list(map(lm.count_tokens, prompts))]
    lm.begin(prompts, 5, 100)
    estimates.append(list(map(lm.count_tokens, prompts)))
    cut = [Counter((n <= 512, tokens(p) <= 512) for n, p in zip(each, prompts, strict=True)) for each in estimates]
    assert cut[0][False, True] > 10 and cut[1][False, True] < 4 and cut[1][True, False] < 4


# ------------------------------------------------------------------------------------------------ nothing is lost


def test_what_was_answered_is_never_asked_again_and_half_a_line_that_a_crash_left_costs_one_answer(serve, tmp_path):
    server, cache = serve(lambda prompt, n: completion(f"{prompt} {n}", "length")), tmp_path / "http_cache.jsonl"

    def ask():
        lm = connect(server.url, cache=cache, concurrency=1)
        said = texts(lm.complete(["a"], 5, 2, 0.5) + lm.complete(["a", "b"], 5))
        assert (lm.unfinished, lm.tokens_written, len(lines(cache))) == (4, 28, 4)
        return said

    assert ask() == ask() == ["a 0", "a 1", "a 2", "b 0"] and len(server.requests) == 4
    cache.write_bytes(cache.read_bytes()[:-10])
    assert ask() == ask() == ["a 0", "a 1", "a 2", "b 1"] and len(server.requests) == 5
    changes = ("a-model", 6, 0.0, 0), ("a-model", 5, 0.6, 0), ("a-model", 5, 0.5, 1), ("another", 5, 0.0, 0)
    for requests, (name, length, temperature, seed) in enumerate(changes, start=6):
        changed = ServedLM(server.url, name, cache=cache)
        changed.restart(seed)
        changed.complete(["a"], length, 1, temperature)
        assert len(server.requests) == requests and server.requests[-1][2]["model"] == name


def test_each_process_writes_a_cache_of_its_own_and_all_are_read(serve, tmp_path, monkeypatch):
    server, cache = serve(echo), tmp_path / "http_cache.jsonl"
    for rank, prompts in enumerate(["ab", "cd"]):
        with monkeypatch.context() as patch:  # as if it had the whole share
            patch.setattr(processes, "rank_and_size", lambda rank=rank: (rank, 1))
            patch.setattr(processes, "share", lambda items: items)
            assert connect(server.url, cache=cache).complete(prompts, 5) == echoes(prompts)
    assert [len(lines(tmp_path / name)) for name in ("http_cache.jsonl", "http_cache1.jsonl")] == [2, 2]
    with open(tmp_path / "http_cache1.jsonl", "a") as file:
        file.write('{"key": "half a li')  # what a crash of the other process left
    assert connect(server.url, cache=cache).complete("abcd", 5) == echoes("abcd")
    assert set(server.seen.values()) == {1}
    (tmp_path / "http_cache1.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(UserError, match="http_cache1.jsonl holds what is no answer"):  # and not the other file
        connect(server.url, cache=cache).complete("abcd", 5)


def test_after_ctrl_c_no_request_is_begun_and_what_came_back_is_kept(serve, tmp_path):
    interrupted = []

    def plan(prompt, n):
        if len(server.requests) == 20 and not interrupted:
            interrupted.append(len(server.requests))
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return (500, {}) if prompt == "p5" and not interrupted else echo(prompt, n)

    server = serve(plan)
    lm, prompts = ServedLM(server.url, "a-model", concurrency=4, cache=tmp_path / "c"), [f"p{i}" for i in range(100)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells start programs with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            lm.complete(prompts, 5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(server.requests) < 60
    assert not any(thread.name.startswith("ThreadPool") for thread in threading.enumerate())
    assert len(lines(tmp_path / "c")) == sum(server.answered.values())
    assert connect(server.url, cache=tmp_path / "c").complete(prompts, 5) == echoes(prompts)
    assert set(server.answered.values()) == {1}


@functools.cache
def in_turn(prompt):
    """What an unreliable server sends for a prompt: a fifth are faults, up to an answer or a third unusable one; and
    every fiftieth prompt is refused."""
    if prompt.endswith(("13", "57")):
        return [[*REFUSING.values()][int(prompt[1:]) // 50 % len(REFUSING)]]
    rng, sent, unusable = random.Random(prompt), [], 0
    while unusable < 3:
        if rng.random() > 0.2:
            return [*sent, echo(prompt, 0)]
        sent.append(rng.choice([*(PASSING | UNUSABLE).values()]))
        unusable += sent[-1] in UNUSABLE.values()
    return sent


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_of_many_requests_to_a_server_that_fails_a_fifth_of_them_nothing_is_lost_or_asked_twice_or_wrong(
    count, serve, tmp_path, capsys
):
    server, prompts = serve(lambda prompt, n: in_turn(prompt)[n]), [f"p{i}" for i in range(count)]
    wanted = Counter({prompt: len(in_turn(prompt)) for prompt in prompts})
    right = [echoes([p])[0] if in_turn(p)[-1] == echo(p, 0) else NONE for p in prompts]
    lm = connect(server.url, cache=tmp_path / "c", concurrency=16)
    begun = time.perf_counter()
    assert lm.complete(prompts, 5) == right
    seconds = time.perf_counter() - begun
    assert lm.unanswered == right.count(NONE) >= count / 50 and 1.15 < len(server.requests) / count < 1.35
    lost = count - len(lines(tmp_path / "c"))
    again = (server.seen - wanted).total()
    if count > 500:
        with capsys.disabled():
            print(f"\n{count} texts: {len(server.requests)} requests, {lm.unanswered} texts rightly without an answer, "
                  f"{lost} lost, {again} asked again after their answer, {seconds:.0f} s")  # fmt: skip
    assert lost == again == 0
    kept = connect(server.url, cache=tmp_path / "c")
    assert kept.complete(prompts, 5) == right and server.seen == wanted
