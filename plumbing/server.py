"""A language model behind an OpenAI-compatible server."""

import hashlib
import http.client
import json
import math
import os
import random
import re
import ssl
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from plumbing import processes
from plumbing.errors import UserError
from plumbing.files import read_jsonl


class Completion(NamedTuple):
    """What a language model wrote, and why it ended."""

    text: str
    finish: str  # "stop"; "length": it was cut at its length limit; "none": no answer could be had


class Fault(NamedTuple):
    """Why one try gave no answer."""

    reason: str
    may_pass: bool  # whether another try can help
    wait: float | None = None  # seconds that the server asks to wait


class ServedLM:
    """A model behind an OpenAI-compatible server: each text is one POST to `base_url`/chat/completions.

    What may pass is tried again: overload, lost connections, time-outs, broken answers. Anything else is a UserError.
    Answers go to the JSONL file `cache` as they come, under a hash of the request. So a run that is cut off loses
    nothing and asks nothing twice. The server itself samples: a seed only gives its samples a place in the cache.
    """

    TRIES = 10  # of one text
    SILENCE = 180  # seconds that a server may say nothing
    LONGEST = 600  # seconds for an answer in all
    BYTES = 2**24  # size of an answer

    def __init__(self, base_url: str, model: str, max_input_tokens=1024, concurrency=8, cache: Path | None = None):
        self.url, self.name, self.cache = base_url.rstrip("/") + "/chat/completions", model, cache
        self.max_input_tokens, self.batch_size = max_input_tokens, concurrency
        self._key = os.environ.get("LMCOT_API_KEY", "").strip()
        address = r"https?://(\[[\da-fA-F:.]+\]|[\w-]{1,63}(\.[\w-]{1,63})*\.?)(:\d+)?(/[\w./%~-]*)?"
        if not re.fullmatch(address, base_url, re.A) or re.search("[^!-~]", self._key):
            raise UserError("a server's address is like http://host:8000/v1, and its key one word in LMCOT_API_KEY")

        # A bare opener: the usual one follows redirects, and would send the key along to wherever they lead.
        self.opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
            self.opener.add_handler(handler())
        self.answers: dict[str, dict] = {}  # hash of a request → its key, text, tokens, finish
        self.heard = False  # whether the server has ever answered
        self.told = False  # whether the user knows that texts are asked again
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.pause = self.stopped.wait  # for so many seconds → whether to stop
        self.restart(0)

    def restart(self, seed: int) -> None:
        """Sets the counters to 0. Samples are counted anew for this seed, each with its own place in the cache."""
        self.tokens_written = self.cut = self.unfinished = 0
        self.seed, self.sampled = seed, Counter()

    def count_tokens(self, text: str) -> int:
        """An estimate on the safe side (its tokenizer is not here): English has about 4 bytes a token."""
        return math.ceil(len(text.encode(errors="replace")) / 3)

    def complete(
        self, prompts: Sequence[str], max_new_tokens: int, samples: int = 1, temperature: float = 0.0
    ) -> list[Completion]:
        """`samples` completions in a row for each prompt; greedy at temperature 0, where equal prompts are asked once.
        Under torchrun each process asks its share, and all get everything."""
        self.read_cache()
        keys: list[str] = []  # one for each completion
        bodies: dict[str, dict] = {}
        for prompt in prompts:
            body = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "n": 1,
                    "max_tokens": max_new_tokens, "temperature": temperature, "top_p": 1.0}  # fmt: skip
            for _ in range(samples):
                sample = None
                if temperature > 0:
                    sample = (self.seed, self.sampled[prompt])
                    self.sampled[prompt] += 1
                key = hashlib.sha256(json.dumps([self.url, body, sample]).encode()).hexdigest()
                keys.append(key)
                bodies[key] = body

        mine = processes.share(list(bodies))
        self.ask_all({key: bodies[key] for key in mine})
        everyones = processes.gather([self.answers[key] for key in mine])
        self.answers |= {answer["key"]: answer for answer in everyones}
        for answer in everyones:
            self.tokens_written += answer["tokens"]
            self.unfinished += answer["finish"] == "length"
        return [Completion(self.answers[key]["text"], self.answers[key]["finish"]) for key in keys]

    def ask_all(self, bodies: dict[str, dict]) -> None:
        """Asks what is not known yet. After Ctrl-C or an error no request is begun; what is under way is still kept."""
        todo = [key for key in bodies if key not in self.answers]
        done = len(bodies) - len(todo)
        self.stopped.clear()
        bar = tqdm(total=len(bodies), initial=done, desc="asking", unit="text", leave=False, delay=2)
        with bar, ThreadPoolExecutor(self.batch_size) as pool:
            try:
                for asked in as_completed([pool.submit(self.ask, key, bodies[key]) for key in todo]):
                    asked.result()
                    bar.update()
            except BaseException:
                self.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                bar.write(f"stopping: answers under way are still kept, for at most {self.LONGEST} seconds", sys.stderr)
                raise

    def ask(self, key: str, body: dict) -> None:
        """One text, however many tries it takes, into `answers` and the cache; UserError says why there is none."""
        tried, wait = 0, 0.0
        while not self.pause(wait):
            found = self.attempt(body)
            tried += 1
            if not isinstance(found, Fault):
                answer = {"key": key, **found}
                with self.lock, open(self.own_cache() or os.devnull, "a", encoding="utf-8") as file:
                    file.write(json.dumps(answer) + "\n")
                self.answers[key] = answer
                return

            most = self.TRIES if self.heard else 4  # a server that never answered is probably not there
            if not found.may_pass or tried == most:
                self.stopped.set()
                times = f" (tried {tried} times)" if tried > 1 else ""
                raise UserError(f"{self.url}, model {self.name}: {found.reason}{times}")
            if tried > 1 and not self.told:
                self.told = True
                tqdm.write(f"{self.url} failed twice for one text, and is asked again: {found.reason}", sys.stderr)
            wait = found.wait
            if wait is None:
                wait = min(60, 2**tried / 4) * random.uniform(0.5, 1.5)  # back off, and not all at once

    def attempt(self, body: dict) -> dict | Fault:
        """One request → text, tokens, finish, or why there is none."""
        try:
            status, headers, said = within(self.LONGEST, self.post, body)
            self.heard = True
            if status == 200:
                return self.read(said)
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            is_certificate = isinstance(cause, ssl.SSLCertVerificationError)
            return Fault(self.shown(str(cause) or "no answer in time"), may_pass=not is_certificate)

        if 300 <= status < 400:
            said = f"it redirects to {headers['Location']}; if that may have your key, give it as the address"
        reason = f"status {status}, {self.shown(said)}"
        if status in (401, 403) and not self._key:
            reason += " (no key was sent: set LMCOT_API_KEY)"
        may_pass = status in (408, 409, 429) or status >= 500
        if "insufficient_quota" in said:
            may_pass = False
        return Fault(reason, may_pass, retry_after(headers["Retry-After"]))

    def post(self, body: dict) -> tuple[int, http.client.HTTPMessage, str]:
        """One request → status, headers, content."""
        headers = {"Content-Type": "application/json", "User-Agent": "lmcot"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with self.opener.open(request, timeout=self.SILENCE) as response:
            raw = response.read(self.BYTES + 1)
        if len(raw) > self.BYTES:
            self.stopped.set()
            raise UserError(f"{self.url}, model {self.name}: an answer has more than {self.BYTES} bytes")
        return response.status, response.headers, raw.decode(errors="replace")

    def read(self, said: str) -> dict:
        """The content of an answer → text, tokens, finish; HTTPException if it is no chat completion."""
        try:
            reply = json.loads(said)
            text = reply["choices"][0]["message"]["content"] or ""  # null where thinking took all the room
            text = text.encode(errors="replace").decode().strip()  # JSON may hold half a character
            tokens = (reply.get("usage") or {}).get("completion_tokens")
            if type(tokens) is not int or not 0 < tokens <= self.BYTES:
                tokens = self.count_tokens(text)
            cut = reply["choices"][0].get("finish_reason") == "length"
            return {"text": text, "tokens": tokens, "finish": "length" if cut else "stop"}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise http.client.HTTPException(f"no chat completion came: {said}") from None

    def own_cache(self) -> Path | None:
        """The file that this process writes: under torchrun each has its own."""
        rank, _ = processes.rank_and_size()
        if self.cache is None or rank == 0:
            return self.cache
        return self.cache.with_stem(f"{self.cache.stem}{rank}")

    def read_cache(self) -> None:
        """At the first call, takes what earlier runs were told, from the files of all processes."""
        if self.answers or self.cache is None:
            return
        own = self.own_cache()
        if own.exists():
            os.truncate(own, own.read_bytes().rfind(b"\n") + 1)  # a crash may have left half a line
        for file in sorted(self.cache.parent.glob(f"{self.cache.stem}*{self.cache.suffix}")):
            for answer in read_jsonl(file):
                self.check_cached(answer, file)
                self.answers[answer["key"]] = answer

    def check_cached(self, answer: dict, file: Path) -> None:
        """UserError if `ask` cannot have written this line of the file."""
        key, text, tokens = map(answer.get, ("key", "text", "tokens"))
        is_text = isinstance(text, str) and text == text.encode(errors="replace").decode()
        is_count = type(tokens) is int and 0 <= tokens <= self.BYTES
        if not (isinstance(key, str) and is_text and is_count and answer.get("finish") in ("stop", "length")):
            raise UserError(f"{file} holds what is no answer of a server: delete it, and all is asked anew")

    def shown(self, said: str) -> str:
        """What a server said, in one short line and without the key."""
        said = " ".join(said.split())
        return (said.replace(self._key, "…") if self._key else said)[:300]


def within(seconds: float, call: Callable, *arguments):
    """What the call returns or raises; TimeoutError after so many seconds, even if a server sends byte after byte."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as e:  # whoever waits gets it
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()  # one that waits in vain holds up nobody, not even the exit
    return future.result(seconds)


def retry_after(header: str | None) -> float | None:
    """Seconds to wait, at most 60, by a Retry-After header, a number or a date; None if it says nothing."""
    try:
        seconds = float(header) if header.isdecimal() else parsedate_to_datetime(header).timestamp() - time.time()
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return min(60.0, max(0.0, seconds))
