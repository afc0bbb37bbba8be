"""A vLLM server of one model, in a thread of its own, that does as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.vllm_plugins import asks
from tests.servers import free_port
from tests.upstreams import formats, script, vocabulary
from tests.upstreams.formats import Event, Generation, Refused
from tests.upstreams.steps import ClientLeft, Line, Pause, Step, document, events

GENERATES = ("/v1/completions", "/v1/chat/completions")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer."""

    name: str
    # Of a stream's events, or of a body alone in a list.
    shape: Callable[[list[Any]], list[Any]] = lambda contents: contents
    steps: Callable[[list[Step]], list[Step]] = lambda steps: steps
    reused: bool = False  # only where the connection has served before

    def __repr__(self) -> str:
        return self.name


@dataclass
class Request:
    path: str
    body: Any
    headers: dict[str, str]
    connection: int  # how many requests it had served before


@dataclass
class _Plan:
    fault: Fault
    paths: Sequence[str]
    skip: int
    times: int


@dataclass
class Upstream:
    """`start`, then use it from any thread; `stop`, `kill` and `start` as often as wished."""

    model: str = "small"  # whose script it follows
    served: str = ""  # its name here; empty: the script's
    plugin: bool = False
    speculation: asks.Speculating | None = None  # by request, as our worker does it
    prediction: asks.Predicting | None = None  # of prompts by request, as our connector does it
    scale_out: bool = True
    key: str | None = None
    pace: float = 0.0  # seconds a token
    overruns: bool = False  # writes on beyond max_tokens
    waiting: int = 0  # calls in its queue, as it says
    deltas: Sequence[Event] | None = None
    further: Event = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    open: int = 0  # answers under way
    sent: int = 0  # answers that were sent to their end
    _plans: list[_Plan] = field(default_factory=list)
    _blocks: set[tuple[int, ...]] = field(default_factory=set)
    _lines: set[Line] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._up = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._up.wait(10)

    def stop(self) -> None:
        """Nobody listens any more; open connections end in order."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def kill(self) -> None:
        """As if the machine had lost the process: open connections are reset."""

        def reset() -> None:
            for line in self._lines:
                line.reset()
            self._ended.set()

        self._loop.call_soon_threadsafe(reset)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def breaks(
        self, fault: Fault, *, skip: int = 0, times: int = 1, paths: Sequence[str] = GENERATES
    ) -> None:
        """Let it happen to the next answers, after `skip` good ones."""
        self._plans.append(_Plan(fault, paths, skip, times))

    def heal(self) -> None:
        self._plans.clear()

    def calls(self) -> list[Request]:
        """The requests for an answer, probes included."""
        return [request for request in self.requests if request.path in GENERATES]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self._up.set()
        await self._ended.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer, lambda: self.pace)
        self._lines.add(line)
        try:
            while (request := await _read(line)) is not None:
                self.requests.append(request)
                if not await self._answer(line, request):
                    break
                line.served += 1
        except (ClientLeft, ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # the server ends, and so does this; asyncio would log it as an error
        finally:
            self._lines.discard(line)
            writer.close()

    async def _answer(self, line: Line, request: Request) -> bool:
        generates = request.path in GENERATES
        self.open += generates
        try:
            fault = self._fault(request)
            goes_on = await line.do(self._steps(request, fault))
            self.sent += generates
            return goes_on
        finally:
            self.open -= generates

    def _fault(self, request: Request) -> Fault:
        for plan in self._plans:
            if request.path not in plan.paths or plan.times < 1:
                continue
            if plan.fault.reused and not request.connection:
                continue
            if plan.skip:
                plan.skip -= 1
                continue
            plan.times -= 1
            return plan.fault
        return Fault("none")

    def _steps(self, request: Request, fault: Fault) -> list[Step]:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return document({"error": "Unauthorized"}, 401)
        try:
            if request.path not in GENERATES:
                return fault.steps(self._small(request))
            asked = self._asked(request)
            if asked[0].whole:
                body = formats.whole_together(asked)
                slowly = Pause(self.pace * len(script.ANSWER))
                steps = document(*fault.shape([body]))
                return [slowly, *fault.steps(steps)]
            return fault.steps(events(fault.shape(formats.stream_together(asked))))
        except Refused as error:
            late = error.late and request.body.get("stream")
            return events([error.body]) if late else document(error.body, error.status)

    def _asked(self, request: Request) -> list[Generation]:
        """One for each prompt."""
        body = request.body
        self._check_model(body)
        chat = request.path == "/v1/chat/completions"
        if self.overruns:
            body = {**body, "max_tokens": 1000, "max_completion_tokens": None}
        asked = [self._rendered(body)] if chat else _prompts(body["prompt"])
        return [self._generation(request, body, prompt, chat) for prompt in asked]

    def _generation(
        self, request: Request, body: Event, prompt: list[int], chat: bool
    ) -> Generation:
        if (complaint := script.complaint(prompt)) is not None:
            self.complaints.append(complaint)
        heard = asks.SPECULATION if self.speculation else ()
        return Generation(
            model=self.model,
            body=body,
            prompt=prompt,
            chat=chat,
            request_id=request.headers.get("x-request-id", ""),
            plugin=self.plugin,
            asked=(*heard, *(asks.PREDICTION if self.prediction else ())),
            cached=0 if body.get("cache_salt") else self._cached(prompt),
            deltas=self.deltas if chat else None,
            further=self.further,
        )

    def _cached(self, prompt: list[int]) -> int:
        """Tokens of whole blocks that were read before; they are known from now on."""
        blocks = [tuple(prompt[:end]) for end in range(16, len(prompt), 16)]
        found = sum(block in self._blocks for block in blocks) * 16
        self._blocks.update(blocks)
        return found

    def _small(self, request: Request) -> list[Step]:
        body = request.body or {}
        if (known := self._known().get(request.path)) is not None:
            return document(known)
        self._check_model(body)
        if request.path == "/tokenize":
            chat = "messages" in body
            ids = self._rendered(body) if chat else vocabulary.encode(body["prompt"])
            return document({"count": len(ids), "max_model_len": script.CONTEXT, "tokens": ids})
        if request.path == "/detokenize":
            return document({"prompt": vocabulary.decode(body["tokens"])})
        if request.path == "/v1/chat/completions/render":
            if not self.scale_out:
                raise Refused(403, "This endpoint needs --enable-scale-out")
            return document({"token_ids": self._rendered(body), "model": self.model})
        if request.path == "/v1/embeddings":
            return document(_vectors(_prompts(body["input"])))
        raise Refused(404, "Not Found")

    def _known(self) -> Event:
        """What is answered whatever is asked, by path."""
        name = self.served or self.model
        label = f'{{engine="0",model_name="{self.model}"}}'
        drafts = f"vllm:spec_decode_num_drafts{label} 0.0\n" if self.speculation else ""
        card = {"id": name, "object": "model", "max_model_len": script.CONTEXT}
        return {
            "/v1/models": {"object": "list", "data": [card]},
            "/version": {"version": "0.32.0"},
            "/health": "",
            "/metrics": f"vllm:num_requests_running{label} {self.open:.1f}\n"
            f"vllm:num_requests_waiting{label} {self.waiting:.1f}\n{drafts}",
            asks.SPECULATES_PATH: self.speculation and self.speculation.to_json(),
            asks.PREDICTS_PATH: self.prediction and self.prediction.to_json(),
        }

    def _check_model(self, body: Event) -> None:
        if body.get("model") != (self.served or self.model):
            raise Refused(404, f"The model `{body.get('model')}` does not exist.", "model")

    def _rendered(self, body: Event) -> list[int]:
        if not isinstance(body.get("messages"), list):
            raise Refused(400, "1 validation error: messages", "body.messages")
        return vocabulary.chat(body["messages"], body.get("tools"))


def _prompts(given: Any) -> list[list[int]]:
    """The ids of each prompt, of one or several, in text or ids."""
    many = isinstance(given, list) and given and not isinstance(given[0], int)
    return [
        vocabulary.encode(one) if isinstance(one, str) else one
        for one in (given if many else [given])
    ]


def _vectors(prompts: Sequence[Sequence[int]]) -> Event:
    data = [
        {"object": "embedding", "index": index, "embedding": [float(len(prompt)), 1.0]}
        for index, prompt in enumerate(prompts)
    ]
    read = sum(map(len, prompts))
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "data": data, "model": "vectors", "usage": usage}


async def _read(line: Line) -> Request | None:
    """The next request on this connection; None where there is none."""
    try:
        head = (await line.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    fields = (field.partition(":") for field in head[1:] if field)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    data = await line.reader.readexactly(int(headers.get("content-length", "0")))
    return Request(head[0].split()[1], json.loads(data) if data else None, headers, line.served)


def wait_for(condition: Callable[[], Any], seconds: float = 30.0, what: object = "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come to pass: {what}"
        time.sleep(0.005)
