"""A language model behind an OpenAI-compatible server: the request, what came back, tries and pace, the cache."""

import hashlib
import http.client
import json
import math
import os
import random
import re
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tqdm import tqdm

from plumbing import processes
from plumbing.errors import UserError
from plumbing.files import as_jsonl, read_jsonl

CONNECT = 20  # seconds until a connection must stand
BYTES = 2**24  # of an answer
MAY_PASS = math.inf  # tries: as many as there are


class Completion(NamedTuple):
    """What a language model wrote, and why it ended."""

    text: str
    finish: str  # "stop"; "length": it was cut at its length limit; "none": no answer could be had


Answer = dict  # as the cache keeps it: text, finish, tokens (written), prompt_tokens (read; 0: the server does not say)


class Fault(NamedTuple):
    """Why a request brought no answer, and what follows."""

    reason: str
    tries: float = 1  # of this text in all
    then: str = "end"  # after these: "end" the run; "none": no answer; "ask": none, if others get theirs
    wait: float | None = None  # seconds that the server asks to wait
    field: str = ""  # a field of the request that the server refuses


class TooSlow(Exception):
    """The connection stands, but no answer came in time."""


# ---- The request -----------------------------------------------------------------------------------------------------


def post(url: str, body: dict, key: str, timeout: float, tls: ssl.SSLContext | None) -> tuple[int, Message, bytes]:
    """One POST → status, headers, content. OSError, HTTPException or TooSlow if none came. It follows no redirect: that
    would take the key along."""
    scheme, place, path, _, _ = urlsplit(url)
    proxy = "" if proxy_bypass(place) else getproxies().get(scheme, "").rpartition("://")[2].rstrip("/")
    if scheme == "https":
        connection = http.client.HTTPSConnection(proxy or place, timeout=CONNECT, context=tls)
        if proxy:
            connection.set_tunnel(place)
    else:
        connection = http.client.HTTPConnection(proxy or place, timeout=CONNECT)
        path = url if proxy else path
    headers = {"Content-Type": "application/json", "User-Agent": "lmcot", "Connection": "close"}
    if key:
        headers["Authorization"] = f"Bearer {key}"

    connection.connect()
    connection.sock.settimeout(None)
    begun = time.monotonic()
    # The timer hangs up. A time-out of the socket would not: a server may send byte after byte.
    timer = threading.Timer(timeout, socket.socket.shutdown, (connection.sock, socket.SHUT_RDWR))
    timer.start()
    try:
        connection.request("POST", path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read(BYTES + 1)
    finally:
        timer.cancel()
        connection.close()
        if time.monotonic() - begun >= timeout:  # whatever was read by then, or went wrong
            raise TooSlow


# ---- What came back --------------------------------------------------------------------------------------------------

STOPPED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}  # values of finish_reason, in lower case
CUT = {"length", "max_tokens", "model_length"}
REFUSED = {"content_filter", "refusal", "safety"}
TOO_LONG = re.compile(r"context.{0,10}(length|size|window)|(prompt|input|request).{0,20} too (long|large)|"
                      r"reduce the length|\btokens\b.{0,60}(exceed|must be)|exceed.{0,60}\btokens\b", re.I)  # fmt: skip
FILTERED = re.compile("content.?(filter|management|policy)|responsible.?ai|moderation|flagged|safety", re.I)
TOO_LARGE = re.compile("too (large|big|high)|at most|exceed|less than|<=", re.I)


def read_reply(status: int, headers: Message, content: bytes, sent: dict) -> Answer | Fault:
    """What a server replied to the request `sent`."""
    if len(content) > BYTES:
        return Fault(f"an answer has more than {BYTES} bytes")
    reply, said = None, content.decode(errors="replace")
    with suppress(ValueError, RecursionError):
        reply = json.loads(said)
        said = json.dumps(reply, ensure_ascii=False)
    error = reply.get("error") if isinstance(reply, dict) else None
    if status == 200 and not error:
        return read_completion(reply, said)
    if status == 200:  # some servers put the status into the error
        code = error.get("code") if isinstance(error, dict) else None
        status = int(code) if re.fullmatch(r"[3-5]\d\d", str(code)) else 0

    reason = f"status {status or 'unknown'}, {said}"
    if 300 <= status < 400:
        place = headers["Location"]
        return Fault(f"status {status}, it redirects to {place}; if that may have your key, give it as the address")
    if status == 413 or (status in (0, 400, 422, 500) and TOO_LONG.search(said)):
        return Fault(f"a prompt is too long for it, so lower --max-input-tokens ({reason})")
    if status in (0, 400, 403, 422) and FILTERED.search(said):
        return Fault(reason, then="none")
    if status in (401, 403):
        return Fault(f"status {status} (is LMCOT_API_KEY set, and right?), {said}")
    if status in (400, 422):
        return Fault(reason, then="ask", field=refused_field(said, sent))
    if status == 0:
        return Fault(reason, 3, "ask")
    if (status in (408, 409, 429) or status >= 500) and "insufficient_quota" not in said:
        then = "ask" if status == 500 else "end"  # some servers crash on one prompt
        return Fault(reason, MAY_PASS, then, retry_after(headers["Retry-After"]))
    return Fault(reason)


def read_error(error: Exception, url: str, heard: bool) -> Fault:
    """Why no reply came, from a server that has replied before (`heard`) or has not."""
    reason = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault(reason)
    if not heard and (isinstance(error, ssl.SSLError) or "handshake" in reason):
        return Fault(f"{reason} (perhaps http:// is right)", 2)
    if not heard and isinstance(error, http.client.HTTPException | ConnectionResetError) and url.startswith("http:"):
        reason += " (perhaps https:// is right)"
    return Fault(reason, MAY_PASS)


def read_completion(reply: Any, said: str) -> Answer | Fault:
    """What a reply with status 200 holds."""
    if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list):
        return Fault(f"no chat completion came, but {said or 'nothing'}", MAY_PASS, "ask")
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        text = joined(message.get("content"))
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        refusal = message.get("refusal")
        finish = str(choice.get("finish_reason") or "stop").lower()
    except (LookupError, TypeError, AttributeError):
        return Fault(f"a chat completion came without its parts, {said}", 3, "none")

    if refusal or finish in REFUSED:
        return Fault("it refuses to answer", then="none")
    if not text and (finish in CUT or (thoughts and finish in STOPPED)):
        more = "give more with --answer-tokens or --chain-tokens, or switch thinking off with --large-extra"
        return Fault(f"thinking took all the room for an answer, {more}", then="none")
    if not text or finish not in STOPPED | CUT:
        return Fault(f"an answer of {len(text)} characters ended with finish_reason {finish}", 3, "none")
    tokens = count(reply, "completion_tokens") or math.ceil(len(text.encode()) / 3)
    finish = "length" if finish in CUT else "stop"
    return Answer(text=text, finish=finish, tokens=tokens, prompt_tokens=count(reply, "prompt_tokens"))


def joined(content: str | list | None) -> str:
    """The text of a message, which may come in parts."""
    text = ""
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict):
            part = part["text"] if part.get("type", "text") == "text" else ""
        text += part or ""
    return text.encode(errors="replace").decode().strip()  # JSON may hold half a character


def count(reply: dict, name: str) -> int:
    """A number of tokens; 0 if the server does not say it, or says what cannot be."""
    usage = reply.get("usage")
    tokens = usage.get(name) if isinstance(usage, dict) else 0
    return tokens if type(tokens) is int and 0 < tokens <= BYTES else 0


def refused_field(said: str, sent: dict) -> str:
    """The field of a request that a server will not have; "" if it names none, or asks for fewer tokens."""
    for field in re.findall(r"\b(?:max_tokens|max_completion_tokens|temperature)\b", said):
        if field in sent and (field == "temperature" or not TOO_LARGE.search(said)):
            return field
    return ""


def without(body: dict, refused: Sequence[str]) -> dict:
    """A request without these fields. The limit of its length is first sent under its second name."""
    body = dict(body)
    for field in refused:
        value = body.pop(field, None)
        if field == "max_tokens" and value:
            body["max_completion_tokens"] = value
    return body


def retry_after(header: str | None) -> float | None:
    """Seconds to wait, at most 60, by a Retry-After header, a number or a date; None if it says nothing."""
    try:
        seconds = float(header) if header.isdecimal() else parsedate_to_datetime(header).timestamp() - time.time()
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return min(60.0, max(0.0, seconds))


# ---- The model -------------------------------------------------------------------------------------------------------


def extra_fields(text: str) -> dict:
    """JSON → fields for every request; ValueError if it is no object, or has fields that are set elsewhere."""
    try:
        fields = json.loads(text or "{}")
    except (ValueError, RecursionError):
        fields = None
    ours = {"model", "messages", "max_tokens", "temperature", "n", "stream"}
    if not isinstance(fields, dict) or fields.keys() & ours:
        raise ValueError("--large-extra is a JSON object, without " + ", ".join(sorted(ours)))
    return fields


class ServedLM:
    """A model behind an OpenAI-compatible server: each text is one POST to `base_url`/chat/completions, with the fields
    of `extra` besides its own. An answer may take `timeout` seconds.

    What may pass is tried again: overload, lost connections, time-outs, broken answers. A text that the server will not
    answer has finish "none". Anything else is a UserError.
    Answers go to the JSONL file `cache` as they come, under a hash of the request. So a run that is cut off loses
    nothing and asks nothing twice. The server itself samples: a seed only gives its samples a place in the cache.
    """

    TRIES = 10  # of one text

    def __init__(self, base_url: str, model: str, max_input_tokens: int = 1024, concurrency: int = 8,
                 cache: Path | None = None, extra: dict | None = None, timeout: float = 600):  # fmt: skip
        self.url, self.name, self.cache = base_url.rstrip("/") + "/chat/completions", model, cache
        rank, _ = processes.rank_and_size()
        self.own_cache = cache and cache.with_stem(f"{cache.stem}{rank or ''}")  # under torchrun each writes its own
        self.max_input_tokens, self.batch_size = max_input_tokens, concurrency
        self.extra, self.timeout = extra or {}, timeout
        self._key = os.environ.get("LMCOT_API_KEY", "").strip()
        self.tls = ssl.create_default_context() if base_url.startswith("https") else None  # it takes a while
        address = r"https?://(\[[\da-fA-F:.]+\]|[\w-]{1,63}(\.[\w-]{1,63})*\.?)(:\d+)?(/[\w./%~-]*)?"
        if not re.fullmatch(address, base_url, re.A) or re.search("[^!-~]", self._key):
            raise UserError("a server's address is like http://host:8000/v1, and its key one word in LMCOT_API_KEY")

        self.bytes_per_token = 3.0  # on the safe side, until `begin` measures it
        self.expected = 0  # requests of the run, as `begin` is told
        self.answers: dict[str, Answer] = {}  # by the hash of the request
        self.heard = False  # whether the server has ever replied
        self.answered: dict | None = None  # a request that it has answered
        self.refused: tuple[str, ...] = ()  # fields that it will not have
        self.told: set[str] = set()  # what the user knows already
        self.at_once, self.is_slow = concurrency, False  # requests; whether one has timed out in this round
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.pause = self.stopped.wait  # for so many seconds → whether to stop
        self.restart(0)

    def restart(self, seed: int) -> None:
        """Sets the counters to 0. Samples are counted anew for this seed, each with its own place in the cache."""
        self.tokens_written = self.cut = self.unfinished = self.unanswered = 0
        self.seed, self.sampled = seed, Counter()

    def count_tokens(self, text: str) -> int:
        """An estimate: its tokenizer is not here."""
        return math.ceil(len(text.encode(errors="replace")) / self.bytes_per_token)

    def begin(self, prompts: Sequence[str], max_new_tokens: int, requests: int) -> None:
        """Before so many requests with prompts like these: asks one as long as the longest, made of the ends of 16. So
        a wrong address, a missing model or a context that is too small end the run at once, and the bytes of a token
        become known. The cache keeps the answer: a run that goes on builds the same prompts."""
        sample = prompts[:: max(1, len(prompts) // 16)][:16]
        longest = min(max(map(len, prompts)), 4 * self.max_input_tokens)
        text = "".join(prompt[-(longest // len(sample)) :] for prompt in sample)
        self.complete([text], max_new_tokens)
        key, body = self.request(text, max_new_tokens)
        answer = self.answers[key]
        if answer["text"]:
            self.answered = body
        size = len(text.encode(errors="replace"))
        if size / 6 <= answer["prompt_tokens"] <= size:  # some servers do not count what they have read before
            self.bytes_per_token = size / answer["prompt_tokens"]
        self.restart(self.seed)

        self.expected = requests
        tokens = sum(min(self.count_tokens(prompt), self.max_input_tokens) for prompt in prompts) / len(prompts)
        print(f"M_L gets about {requests:,} requests of {tokens:,.0f} tokens, {requests * tokens:,.0f} in all; "
              f"{len(self.answers):,} are answered")  # fmt: skip

    def complete(
        self, prompts: Sequence[str], max_new_tokens: int, samples: int = 1, temperature: float = 0.0
    ) -> list[Completion]:
        """`samples` completions in a row for each prompt; greedy at temperature 0, where equal prompts are asked once.
        Under torchrun each process asks its share, and all get everything."""
        self.read_cache()
        keys: list[str] = []  # one for each completion
        bodies: dict[str, dict] = {}
        for prompt in prompts:
            for _ in range(samples):
                sample = None
                if temperature > 0:
                    sample = (self.seed, self.sampled[prompt])
                    self.sampled[prompt] += 1
                key, body = self.request(prompt, max_new_tokens, temperature, sample)
                keys.append(key)
                bodies[key] = body

        mine = processes.share(list(bodies))
        self.ask_all({key: bodies[key] for key in mine})
        self.answers |= processes.gather([(key, self.answers[key]) for key in mine])
        for key in bodies:
            answer = self.answers[key]
            self.tokens_written += answer["tokens"]
            self.unfinished += answer["finish"] == "length"
            self.unanswered += answer["finish"] == "none"
        return [Completion(self.answers[key]["text"], self.answers[key]["finish"]) for key in keys]

    def request(self, prompt: str, max_new_tokens: int, temperature=0.0, sample=None) -> tuple[str, dict]:
        """Its key in the cache, and its body."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.name, "messages": messages, "max_tokens": max_new_tokens, "temperature": temperature}
        body |= self.extra
        return hashlib.sha256(json.dumps([self.url, body, sample]).encode()).hexdigest(), body

    # ---- Tries and pace

    def ask_all(self, bodies: dict[str, dict]) -> None:
        """Asks what is not known yet. A time-out ends a round of requests; the next one has half as many at once."""
        todo = [key for key in bodies if key not in self.answers]
        bar = tqdm(total=len(bodies), initial=len(bodies) - len(todo), desc="asking", unit="text", leave=False, delay=2)
        with bar:
            while todo:
                part = todo if self.answered else todo[: self.at_once]  # perhaps nothing is ever answered
                self.ask_round({key: bodies[key] for key in part}, bar)
                todo = [key for key in todo if key not in self.answers]

    def ask_round(self, bodies: dict[str, dict], bar: tqdm) -> None:
        """After Ctrl-C or an error no request is begun; what is under way is still kept."""
        self.stopped.clear()
        in_doubt: dict[str, Fault] = {}
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                asked = {pool.submit(self.ask, key, body): key for key, body in bodies.items()}
                for future in as_completed(asked):
                    if fault := future.result():
                        in_doubt[asked[future]] = fault
                    bar.update(asked[future] in self.answers)
                    done = bar.n - bar.initial
                    if done == 20 and self.expected:
                        left = (self.expected - len(self.answers)) / processes.rank_and_size()[1]
                        minutes = max(0, left) * bar.format_dict["elapsed"] / done / 60
                        tqdm.write(f"M_L needs about {minutes:,.0f} minutes for all its answers")
                        self.expected = 0
            except BaseException:
                self.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                if self.cache:
                    bar.write(f"stopping: answers under way are still kept, for {self.timeout:g} s at most", sys.stderr)
                raise
        for key, fault in in_doubt.items():
            self.give_up(key, fault)
        if self.is_slow:
            self.is_slow, self.at_once = False, self.at_once // 2
            self.tell(f"no answer within {self.timeout:g} seconds (--server-timeout), so it now gets only "
                      f"{self.at_once} requests at once")  # fmt: skip

    def ask(self, key: str, body: dict) -> Fault | None:
        """One text, however many tries it takes, into `answers` and the cache. A fault that is returned is in doubt."""
        found = self.persist(body)
        if isinstance(found, Fault):
            if found.then == "ask" and not self.answered:  # the first answer may still be under way
                return found
            self.give_up(key, found)
        elif found:
            self.keep(key, found)
        return None

    def give_up(self, key: str, fault: Fault) -> None:
        """No answer for a text, if the fault lies in it. UserError if it is general: if the server does not even answer
        again what it has answered before."""
        again = fault
        if fault.then == "ask" and self.answered:
            again = self.persist(self.answered)
        if again is None:  # stopped: it is asked anew
            return
        if fault.then != "none" and isinstance(again, Fault):
            self.stopped.set()
            raise UserError(f"{self.url}, model {self.name}: {fault.reason}")
        self.tell(f"some texts get no answer: {fault.reason}")
        self.keep(key, Answer(text="", finish="none", tokens=0, prompt_tokens=0))

    def persist(self, body: dict) -> Answer | Fault | None:
        """Tries until there is an answer or no hope; None if it was stopped."""
        tried, wait, refused = Counter(), 0.0, self.refused
        while not self.pause(wait):
            found = self.attempt(without(body, refused))
            if isinstance(found, Answer):
                self.refused = max(refused, self.refused, key=len)  # only what helped
                if "temperature" in refused:
                    self.tell("it will have no temperature, so answers are sampled as it likes")
                return found
            if found.field:
                refused, wait = (*refused, found.field), 0.0
                continue

            tried[found.tries] += 1  # each kind has its own: overload does not use up those of broken answers
            times = tried.total()
            most = self.TRIES if self.heard else min(4, self.TRIES)  # who never replied is probably not there
            if tried[found.tries] == min(found.tries, most):
                return found._replace(reason=f"{found.reason} (tried {times} times)" if times > 1 else found.reason)
            if times > 1:
                self.tell(f"a text failed twice and is asked again: {found.reason}")
            wait = found.wait
            if wait is None:
                wait = min(60, 2**times / 4) * random.uniform(0.5, 1.5)  # back off, and not all at once
        return None

    def attempt(self, body: dict) -> Answer | Fault:
        """One request. Some servers send back what they got: the key does not stay in what they say."""
        try:
            status, headers, content = post(self.url, body, self._key, self.timeout, self.tls)
            self.heard = True
            found = read_reply(status, headers, content, body)
        except TooSlow:
            found = Fault(f"no answer within {self.timeout:g} seconds (--server-timeout)", MAY_PASS)
            if self.at_once > 1:
                self.is_slow = True
                self.stopped.set()
        except (OSError, http.client.HTTPException) as error:
            found = read_error(error, self.url, self.heard)
        if isinstance(found, Fault):
            return found._replace(reason=self.without_key(" ".join(found.reason.split()))[:400])
        self.answered = body
        return found | {"text": self.without_key(found["text"])}

    def without_key(self, text: str) -> str:
        """A key of a few letters (EMPTY, none) is no secret and may be a word."""
        return text.replace(self._key, "…") if len(self._key) > 5 else text

    def tell(self, sentence: str) -> None:
        """Tells the user about the server. Of sentences that are equal up to a comma, the first is enough."""
        with self.lock:
            if sentence.partition(",")[0] not in self.told:
                self.told.add(sentence.partition(",")[0])
                tqdm.write(f"{self.url}: {sentence}", sys.stderr)

    # ---- The cache

    def keep(self, key: str, answer: Answer) -> None:
        with self.lock, open(self.own_cache or os.devnull, "a", encoding="utf-8") as file:
            file.write(as_jsonl([{"key": key, **answer}]))
        self.answers[key] = answer

    def read_cache(self) -> None:
        """At the first call, takes what earlier runs were told, from the files of all processes."""
        if self.answers or self.cache is None:
            return
        if self.own_cache.exists():
            os.truncate(self.own_cache, self.own_cache.read_bytes().rfind(b"\n") + 1)  # a crash may leave half a line
        for file in sorted(self.cache.parent.glob(f"{self.cache.stem}*{self.cache.suffix}")):
            for line in read_jsonl(file):
                if not can_be(line):
                    raise UserError(f"{file} holds what is no answer of a server: delete it, and all is asked anew")
                self.answers[line["key"]] = line


def can_be(line: dict) -> bool:
    """Whether `keep` can have written this line of a cache."""
    key, text, finish, *counts = map(line.get, ("key", "text", "finish", "tokens", "prompt_tokens"))
    if not isinstance(key, str) or not isinstance(text, str) or text != text.encode(errors="replace").decode():
        return False
    if not all(type(tokens) is int and 0 <= tokens <= BYTES for tokens in counts):
        return False
    return finish == "none" if text == "" else finish in ("stop", "length")
