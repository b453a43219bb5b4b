"""A language model behind an OpenAI-compatible server."""

import hashlib
import http.client
import json
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

from tqdm import tqdm

from plumbing.errors import UserError
from plumbing.files import read_jsonl


class ServedLM:
    """A model behind an OpenAI-compatible server: each text is one POST to `base_url`/chat/completions.

    What may pass is tried again: overload, lost connections, time-outs, broken answers; the rest is a UserError.
    Answers go to the JSONL file `cache` as they come, under a hash of the request, so that a run cut off loses nothing
    and asks nothing twice. The server samples: a seed only gives its samples a place of their own in the cache.
    """

    # Of one text; seconds that a server may say nothing; seconds for an answer in all; its size.
    TRIES, SILENCE, LONGEST, BYTES = 10, 180, 600, 2**24

    def __init__(self, base_url: str, model: str, max_input_tokens=1024, concurrency=8, cache: Path | None = None):
        self.url, self.name, self.cache = base_url.rstrip("/") + "/chat/completions", model, cache
        self.max_input_tokens, self.batch_size = max_input_tokens, concurrency
        self._key = os.environ.get("LMCOT_API_KEY", "").strip()
        address = r"https?://(\[[\da-fA-F:.]+\]|[\w-]{1,63}(\.[\w-]{1,63})*\.?)(:\d+)?(/[\w./%~-]*)?"
        if not re.fullmatch(address, base_url, re.A) or re.search("[^!-~]", self._key):
            raise UserError("a server's address is like http://host:8000/v1, and its key one word in LMCOT_API_KEY")
        self.answers: dict[str, dict] = {}  # hash of a request → its key, text, tokens, finish
        self.opener = urllib.request.OpenerDirector()  # bare: it would follow redirects, to wherever, with the key
        for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
            self.opener.add_handler(handler())
        self.heard, self.told, self.lock, self.stopped = False, False, threading.Lock(), threading.Event()
        self.pause = self.stopped.wait  # for so many seconds → whether to stop
        self.restart(0)

    def restart(self, seed: int) -> None:
        self.tokens_written = self.cut = self.unfinished = 0
        self.seed, self.sampled = seed, Counter()  # prompt → its samples since then: each has a place in the cache

    def count_tokens(self, text: str) -> int:
        """An estimate on the safe side (its tokenizer is not here): English has about 4 bytes a token."""
        return -(-len(text.encode(errors="replace")) // 3)

    def complete(self, prompts: Sequence[str], max_new_tokens: int, temperature=0.0, progress="") -> list[str]:
        """One text for each prompt, in order. After Ctrl-C or an error none is begun; what is under way is kept."""
        if not self.answers and self.cache and self.cache.exists():
            os.truncate(self.cache, self.cache.read_bytes().rfind(b"\n") + 1)  # a crash may have left half a line
            self.answers = {answer["key"]: answer for answer in map(self.cached, read_jsonl(self.cache))}
        keys, bodies = [], {}
        for prompt in prompts:
            body = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "n": 1,
                    "max_tokens": max_new_tokens, "temperature": temperature, "top_p": 1.0}  # fmt: skip
            sample = (self.seed, self.sampled[prompt]) if temperature else None
            self.sampled[prompt] += temperature > 0
            keys.append(hashlib.sha256(json.dumps([self.url, body, sample]).encode()).hexdigest())
            bodies[keys[-1]] = body
        todo = [key for key in bodies if key not in self.answers]
        self.stopped.clear()
        bar = tqdm(total=len(bodies), initial=len(bodies) - len(todo), desc=progress, disable=not progress)
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
        self.tokens_written += sum(self.answers[key]["tokens"] for key in bodies)
        self.unfinished += sum(self.answers[key]["finish"] == "length" for key in bodies)
        return [self.answers[key]["text"] for key in keys]

    def ask(self, key: str, body: dict) -> None:
        """One text, however many tries it takes, into `answers` and the cache; UserError says why there is none."""
        tried, wait = 0, 0.0
        while not self.pause(wait):
            tried += 1
            wait = min(60, 2**tried / 4) * random.uniform(0.5, 1.5)
            try:
                status, headers, said = within(self.LONGEST, self.post, body)
                self.heard = True
                if status == 200:
                    answer = {"key": key, **self.read(said)}
                    break
                may_pass = (status in (408, 409, 429) or status >= 500) and "insufficient_quota" not in said
                if 300 <= status < 400:
                    said = f"it redirects to {headers['Location']}; if that may have your key, give it as the address"
                fault = f"status {status}, {self.shown(said)}"
                fault += " (no key was sent: set LMCOT_API_KEY)" * (status in (401, 403) and not self._key)
                wait = retry_after(headers["Retry-After"], wait)
            except (OSError, http.client.HTTPException) as e:
                reason = getattr(e, "reason", e)
                may_pass = not isinstance(reason, ssl.SSLCertVerificationError)
                fault = self.shown(str(reason) or "no answer in time")
            if not may_pass or tried == (self.TRIES if self.heard else 4):  # never heard of: it is probably not there
                self.stopped.set()
                raise UserError(f"{self.url}, model {self.name}: {fault}{f' (tried {tried} times)' * (tried > 1)}")
            if tried > 1 and not self.told:
                self.told = True
                tqdm.write(f"{self.url} failed twice for one text, and is asked again: {fault}", sys.stderr)
        else:
            return
        with self.lock, open(self.cache or os.devnull, "a", encoding="utf-8") as file:
            file.write(json.dumps(answer) + "\n")
        self.answers[key] = answer

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

    def cached(self, answer: dict) -> dict:
        """A line of the cache, if `ask` can have written it; else UserError."""
        key, text, tokens = map(answer.get, ("key", "text", "tokens"))
        good = isinstance(key, str) and isinstance(text, str) and type(tokens) is int and 0 <= tokens <= self.BYTES
        if not good or "finish" not in answer or text != text.encode(errors="replace").decode():
            raise UserError(f"{self.cache} holds what is no answer of a server: delete it, and all is asked anew")
        return answer

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


def retry_after(header: str | None, otherwise: float) -> float:
    """Seconds to wait, at most 60, by a Retry-After header: a number or a date."""
    try:
        seconds = float(header) if header.isdecimal() else parsedate_to_datetime(header).timestamp() - time.time()
    except (AttributeError, TypeError, ValueError, OverflowError):
        return otherwise
    return min(60.0, max(0.0, seconds))
