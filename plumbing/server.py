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
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from plumbing import processes
from plumbing.errors import UserError
from plumbing.files import as_jsonl, read_jsonl

CONNECT = 10  # seconds until a connection must stand
BYTES = 2**24  # of a reply
TRIES, FIRST_TRIES = 10, 4  # to get through to a server; one that has never answered has perhaps another address


class Completion(NamedTuple):
    """What a language model wrote, and why it ended."""

    text: str
    finish: str  # "stop"; "length": it was cut at its length limit; "none": no answer could be had


Answer = dict  # of a text, its finish, tokens (written) and prompt_tokens (read; 0: the server does not say)
LINE = {"key": str, "text": str, "finish": str, "tokens": int, "prompt_tokens": int}  # an answer in the cache


class Fault(NamedTuple):
    """Why a request brought no answer, and what follows."""

    reason: str
    tries: int = 1  # of this text in all
    then: str = "end"  # after these: "end" the run; "none": no answer; "control": none, if another text gets its answer
    wait: float = 0.0  # seconds that the server asks to wait


# ---- The request -----------------------------------------------------------------------------------------------------


def post(url: str, body: dict, key: str, timeout: float, tls: ssl.SSLContext | None) -> tuple[int, Message, bytes]:
    """One POST → status, headers, content; OSError or HTTPException if none came. It uses no proxy, and follows no
    redirect: that would take the key along."""
    scheme, place, path, _, _ = urlsplit(url)
    if scheme == "https":
        connection = http.client.HTTPSConnection(place, timeout=CONNECT, context=tls)
    else:
        connection = http.client.HTTPConnection(place, timeout=CONNECT)
    headers = {"Content-Type": "application/json", "User-Agent": "lmcot", "Connection": "close"}
    if key:
        headers["Authorization"] = f"Bearer {key}"

    connection.connect()
    connection.sock.settimeout(None)
    # The timer hangs up. A time-out of the socket would not: a server may send byte after byte.
    timer = threading.Timer(timeout, socket.socket.shutdown, (connection.sock, socket.SHUT_RDWR))
    timer.start()
    try:
        connection.request("POST", path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read(BYTES)
    finally:
        timer.cancel()
        connection.close()


# ---- What came back --------------------------------------------------------------------------------------------------

STOPPED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}  # values of finish_reason, in lower case
CUT = {"length", "max_tokens", "model_length"}
REFUSED = {"content_filter", "refusal", "safety"}
TOO_LONG = (r"context.{0,10}(length|size|window)|(prompt|input|request).{0,20} too (long|large)|reduce the length|"
            r"\btokens\b.{0,60}(exceed|must be)|exceed.{0,60}\btokens\b")  # fmt: skip
FILTERED = "content.?(filter|management|policy)|responsible.?ai|moderation|flagged|safety"
RULES = (  # what begins with a status and says so → tries of its text in all, what then, and advice
    ("3", 1, "end", "it redirects; if that place may have your key, give it as the address"),
    (rf"413|(200|400|422|500).*({TOO_LONG})", 1, "end", "a prompt is too long for it, so lower --max-input-tokens"),
    (rf"(200|400|403|422).*({FILTERED})", 1, "none", ""),
    ("401|403", 1, "end", "is LMCOT_API_KEY set, and right?"),
    ("400|422", 1, "control", ""),
    ("200", 3, "control", ""),  # an error without a status
    (".*insufficient_quota", 1, "end", ""),
    ("500", TRIES, "control", ""),  # some servers crash on one prompt
    ("408|409|429|5", TRIES, "end", ""),
    ("", 1, "end", ""),
)


def read_reply(status: int, headers: Message, content: bytes) -> Answer | Fault:
    """What a server replied."""
    reply, said = None, content.decode(errors="replace")
    with suppress(ValueError, RecursionError):
        reply = json.loads(said)
        said = json.dumps(reply, ensure_ascii=False)
    error = reply.get("error") if isinstance(reply, dict) else None
    if status == 200 and not error:
        return read_completion(reply, said)
    if status == 200 and isinstance(error, dict) and re.fullmatch(r"[3-5]\d\d", str(error.get("code"))):
        status = int(error["code"])  # some servers put the status into the error

    said = f"{status} {headers['Location'] or ''} {said}"
    _, tries, then, advice = next(rule for rule in RULES if re.match(rule[0], said, re.IGNORECASE | re.DOTALL))
    reason = f"{advice} (status {said})" if advice else f"status {said}"
    return Fault(reason, tries, then, retry_after(headers["Retry-After"]))


def read_error(error: Exception, url: str, tries: int) -> Fault:
    """Why no reply came. What may pass gets `tries`; FIRST_TRIES: the server has never answered."""
    reason = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault(reason)
    speaks_otherwise = isinstance(error, ssl.SSLError | http.client.HTTPException | ConnectionResetError)
    if tries == FIRST_TRIES and (speaks_otherwise or "handshake" in reason):
        reason += f" (perhaps {'http' if url.startswith('https') else 'https'}:// is right)"
    return Fault(reason, tries)


def read_completion(reply: Any, said: str) -> Answer | Fault:
    """What a reply with status 200 holds."""
    if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list):
        return Fault(f"no chat completion came, but {said or 'nothing'}", TRIES, "control")
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


TOO_LARGE = re.compile("too (large|big|high)|at most|exceed|less than|<=", re.I)


def adapted(body: dict, refusal: str) -> dict:
    """A request as a server wants it that refused a field in a 400: without it. The limit first gets its other name."""
    body = dict(body)
    for field in re.findall(r"\b(?:max_tokens|max_completion_tokens|temperature)\b", refusal):
        if field in body and (field == "temperature" or not TOO_LARGE.search(refusal)):
            value = body.pop(field)
            if field == "max_tokens":
                body["max_completion_tokens"] = value
            break
    return body


def retry_after(header: str | None) -> float:
    """Seconds to wait, at most 60, by a Retry-After header, a number or a date; 0 if it says nothing."""
    try:
        seconds = float(header) if header.isdecimal() else parsedate_to_datetime(header).timestamp() - time.time()
    except (AttributeError, TypeError, ValueError, OverflowError):
        return 0.0
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

    def __init__(self, base_url: str, model: str, max_input_tokens: int = 1024, concurrency: int = 8,
                 cache: Path | None = None, extra: dict | None = None, timeout: float = 600):  # fmt: skip
        self.url, self.name, self.cache = base_url.rstrip("/") + "/chat/completions", model, cache
        rank, self.processes = processes.rank_and_size()
        self.own_cache = cache and cache.with_stem(f"{cache.stem}{rank or ''}")  # under torchrun each writes its own
        self.max_input_tokens, self.batch_size = max_input_tokens, concurrency
        self.extra, self.timeout = extra or {}, timeout
        self._key = os.environ.get("LMCOT_API_KEY", "").strip()
        self.tls = ssl.create_default_context() if base_url.startswith("https") else None  # it takes a while
        address = r"https?://(\[[\da-fA-F:.]+\]|[\w-]{1,63}(\.[\w-]{1,63})*\.?)(:\d+)?(/[\w./%~-]*)?"
        if not re.fullmatch(address, base_url, re.A) or re.search("[^!-~]", self._key):
            raise UserError("a server's address is like http://host:8000/v1, and its key one word in LMCOT_API_KEY")

        self.bytes_per_token = 3.0  # on the safe side, until `begin` measures it
        self.expected = 0  # answers of the whole run, as `begin` is told
        self.answers: dict[str, Answer] = {}  # by the hash of the request
        self.control: dict | None = None  # a request that the server has answered
        self.refusals: tuple[str, ...] = ()  # what it said to fields that it will not have
        self.told: set[str] = set()  # what the user knows already
        self.at_once = concurrency  # requests; fewer after time-outs
        self.lock, self.stopped = threading.Lock(), threading.Event()
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
        key, self.control = self.request(text, max_new_tokens)
        answer = self.answers[key]
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
        requests = []
        for prompt in prompts:
            for _ in range(samples):
                requests.append(self.request(prompt, max_new_tokens, temperature))

        bodies = dict(requests)
        mine = processes.share(list(bodies))
        self.ask_all({key: bodies[key] for key in mine})
        self.answers |= processes.gather([(key, self.answers[key]) for key in mine])
        for key in bodies:
            answer = self.answers[key]
            self.tokens_written += answer["tokens"]
            self.unfinished += answer["finish"] == "length"
            self.unanswered += answer["finish"] == "none"
        return [Completion(self.answers[key]["text"], self.answers[key]["finish"]) for key, _ in requests]

    def request(self, prompt: str, max_new_tokens: int, temperature: float = 0.0) -> tuple[str, dict]:
        """Its key in the cache, another one for each sample, and its body."""
        sample = None
        if temperature > 0:
            sample = (self.seed, self.sampled[prompt])
            self.sampled[prompt] += 1
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.name, "messages": messages, "max_tokens": max_new_tokens, "temperature": temperature}
        body |= self.extra
        return hashlib.sha256(json.dumps([self.url, body, sample]).encode()).hexdigest(), body

    # ---- Tries and pace

    def ask_all(self, bodies: dict[str, dict]) -> None:
        """Asks what is not known yet. After Ctrl-C or an error no request is begun; what is under way is still kept."""
        todo = deque(key for key in bodies if key not in self.answers)
        total = max(self.expected, len(self.answers) + len(todo))  # of the whole run: the bar shows the time it needs
        bar = tqdm(total=total, initial=len(self.answers), desc="M_L", unit="text", leave=False)
        under_way: dict[Future, str] = {}
        self.stopped.clear()
        with bar, ThreadPoolExecutor(self.batch_size) as pool:
            try:
                while todo or under_way:
                    while todo and len(under_way) < self.at_once:
                        key = todo.popleft()
                        under_way[pool.submit(self.ask, key, bodies[key])] = key
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        key = under_way.pop(future)
                        if future.result():
                            bar.update(self.processes)  # the others are as fast
                        else:
                            todo.append(key)
            except BaseException:
                self.stopped.set()
                if self.cache:
                    bar.write(f"stopping: answers under way are still kept, for {self.timeout:g} s at most", sys.stderr)
                raise

    def ask(self, key: str, body: dict) -> bool:
        """One text, however many tries it takes, into `answers` and the cache. False: it must be asked anew."""
        answer = self.persist(body)
        if answer:
            self.keep(key, answer)
        return answer is not None

    def persist(self, body: dict) -> Answer | None:
        """Tries until there is an answer or no hope; UserError if the server fails all. None: it must be asked anew."""
        asked, tried, seconds, refusals = body, Counter(), 0.0, self.refusals
        for refusal in refusals:
            body = adapted(body, refusal)
        while True:
            found = None if self.stopped.wait(seconds) else self.attempt(body)
            if found is None:
                return None
            if isinstance(found, Answer):
                self.refusals = refusals  # only what helped
                self.control = self.control or asked
                return found
            if re.match("status (400|422)", found.reason) and adapted(body, found.reason) != body:
                body = adapted(body, found.reason)
                refusals, seconds = (*refusals, found.reason), 0.0
                continue

            tried[found.tries] += 1  # each kind has its own: overload does not use up those of broken answers
            times = tried.total()
            if tried[found.tries] == found.tries:
                break
            if times > 1:
                self.tell(f"a text failed twice and is asked again: {found.reason}")
            seconds = max(found.wait, min(60, 2**times / 4) * random.uniform(0.5, 1.5))  # longer, and not all at once

        reason = f"{found.reason} (tried {times} times)" if times > 1 else found.reason
        if found.then == "control" and self.control not in (None, asked):
            if self.persist(self.control) is None:  # its UserError ends the run: the fault lies not in the text
                return None
        elif found.then != "none":
            self.stopped.set()
            raise UserError(f"{self.url}, model {self.name}: {reason}")
        self.tell(f"some texts get no answer: {reason}")
        return Answer(text="", finish="none", tokens=0, prompt_tokens=0)

    def attempt(self, body: dict) -> Answer | Fault | None:
        """One request. None: it was too slow beside others, so fewer go out at once, and it must be asked anew."""
        at_once, begun = self.at_once, time.monotonic()
        tries = TRIES if self.control else FIRST_TRIES
        try:
            found = read_reply(*post(self.url, body, self._key, self.timeout, self.tls))
        except (OSError, http.client.HTTPException) as error:
            found = read_error(error, self.url, tries)
        if time.monotonic() - begun >= self.timeout:  # whatever was read by then, or went wrong
            reason = f"no answer within {self.timeout:g} seconds (--server-timeout)"
            if self.control and at_once > 1:
                self.at_once = min(self.at_once, at_once // 2)  # all that time out together halve it once
                self.tell(f"{reason}, so it now gets only {self.at_once} requests at once")
                return None
            found = Fault(reason, tries)

        # Some servers send back what they got: the key does not stay in what they say.
        if isinstance(found, Fault):
            return found._replace(reason=self.without_key(" ".join(found.reason.split()))[:400])
        if "temperature" not in body:
            self.tell("it will have no temperature, so answers are sampled as it likes")
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
                if {name: type(value) for name, value in line.items()} != LINE:
                    raise UserError(f"{file} holds what is no answer of a server: delete it, and all is asked anew")
                self.answers[line["key"]] = line
