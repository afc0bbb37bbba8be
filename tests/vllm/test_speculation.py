"""Speculation by request in a real vLLM: the same answers, sooner, and nothing that ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.catalog import read
from app.downloads import local_path
from app.engines.fleet import Fleet
from app.engines.remote.rendering import Renderings
from app.engines.vllm import VllmServer
from app.nets.acceptance_head import HEAD, AcceptanceHead
from app.settings import DEFAULT_CONFIG, Settings
from app.types import Call, Decoding, Sampling, Speculates, Speculation, Usage
from app.vllm_plugins import asks
from app.vllm_plugins.asks import Speculating
from app.vllm_plugins.room import room
from app.vllm_plugins.speculating import DOOR
from tests.app.engines.scripted import card
from tests.prompts import OWN
from tests.vllm.two_servers import ByHand
from tests.vllm_servers import MODEL, VLLMServer, exported, serving

pytestmark = [pytest.mark.vllm, pytest.mark.model]

TINY, LONGEST, LENGTH = "smollm2-tiny", 5, 64
# Each way to end a draft, and to accept exactly.
RULES: dict[str, dict[str, Any]] = {
    "the server's own": {},
    "fixed": {asks.SPEC_K: 3},
    "none": {asks.SPEC_K: 0},
    "head": {asks.SPEC_STOP: 0.7},
    "confidence": {asks.SPEC_CONFIDENCE: 0.4, asks.SPEC_LENIENCE: 1},
    "one": {asks.SPEC_K: 1, asks.SPEC_STOP: 0.0},
}


@dataclass
class Answer:
    """What came of one completion."""

    ids: list[int]
    drafted: int
    accepted: int
    passes: int


class Client(ByHand):
    """A client of one server."""

    def ask(self, prompt: list[int], xargs: dict[str, Any] | None = None, **more: Any) -> Answer:
        body = {
            "prompt": prompt,
            "temperature": 0,
            "max_tokens": LENGTH,
            "ignore_eos": True,
            **more,
        }
        given = {"vllm_xargs": xargs} if xargs else {}
        answer = self.post("/v1/completions", {**body, **given, "return_token_ids": True})
        told = (answer.get("metrics") or {}).get("speculative_decoding") or {}
        names = ("num_draft_tokens", "num_accepted_draft_tokens", "num_spec_steps")
        return Answer(answer["choices"][0]["token_ids"], *(told.get(name, 0) for name in names))

    def refused(self, body: dict[str, Any], path: str = "/v1/completions") -> str:
        answer = self.http.post(path, json={"model": self.name, **body})
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"]["message"])


def head() -> Path:
    """The acceptance head that we ship for the small model."""
    return local_path(read(DEFAULT_CONFIG).models[TINY], Settings().models_dir) / HEAD


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """The default model in fp32, with the small one as its draft."""
    own = ["--draft", str(exported("fp32", TINY)), "--draft-tokens", str(LONGEST)]
    own += ["--acceptance-head", str(head())]
    with serving("fp32", 0, tmp_path_factory.mktemp("vllm"), own=own) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: VLLMServer) -> Iterator[Client]:
    found = Client(server)
    yield found
    found.http.close()


@pytest.fixture(scope="module")
def plain(large: ByHand, client: Client) -> dict[str, list[int]]:
    """What the same model writes without speculation, on another server."""

    def ask(text: str) -> list[int]:
        body = {"prompt": client.prompt(text), "temperature": 0, "max_tokens": LENGTH}
        body |= {"ignore_eos": True, "return_token_ids": True}
        answer = large.post("/v1/completions", body)
        return list(answer["choices"][0]["token_ids"])

    return {text: ask(text) for text in OWN[:8]}


@pytest.mark.smoke
def test_the_worker_says_what_it_does(client: Client) -> None:
    state = Speculating.read(client.http.get(asks.SPECULATES_PATH).json())
    level = AcceptanceHead.load(head()).about.level
    assert state == Speculating(longest=LONGEST, sampled=True, level=level)


@pytest.mark.smoke
def test_greedy_answers_are_those_without_speculation(
    client: Client, plain: dict[str, list[int]]
) -> None:
    """By every rule at once, in one batch."""
    rules = [*RULES.values()]
    asked = list(enumerate(plain))
    with ThreadPoolExecutor(8) as pool:
        got = pool.map(
            lambda pair: client.ask(client.prompt(pair[1]), rules[pair[0] % len(rules)]), asked
        )
        assert [answer.ids for answer in got] == list(plain.values())


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_alone(client: Client, plain: dict[str, list[int]], rule: str) -> None:
    answers = [client.ask(client.prompt(text), RULES[rule]) for text in list(plain)[:4]]
    assert [answer.ids for answer in answers] == list(plain.values())[:4]
    drafted, passes = (sum(getattr(a, name) for a in answers) for name in ("drafted", "passes"))
    if rule == "none":
        assert (drafted, passes) == (0, 0)
        return
    least, most = {"fixed": (2.5, 3), "one": (1, 1), "the server's own": (4, 5)}.get(rule, (1, 4.8))
    assert least <= drafted / passes <= most
    for answer in answers:
        # The first token comes of the prompt's own pass; the last draft may reach past the end.
        beyond = 1 + answer.passes + answer.accepted - LENGTH
        assert 0 <= beyond <= LONGEST and 0 < answer.accepted < LENGTH


def test_the_head_drafts_less_for_nothing_than_a_fixed_length(
    client: Client, plain: dict[str, list[int]]
) -> None:
    def wasted(rule: str) -> tuple[float, float]:
        answers = [client.ask(client.prompt(text), RULES[rule]) for text in plain]
        lost = sum(answer.drafted - answer.accepted for answer in answers)
        written = sum(answer.accepted + answer.passes for answer in answers)
        return lost / written, written / sum(answer.passes for answer in answers)

    (fixed, _), (by_head, block) = wasted("the server's own"), wasted("head")
    assert by_head < 0.75 * fixed
    assert block > 1.2  # tokens for one pass of the model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_lenience_keeps_more_guesses(client: Client, temperature: float) -> None:
    def share(lenience: float) -> float:
        xargs = {asks.SPEC_LENIENCE: lenience}
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(
                    lambda text: client.ask(client.prompt(text), xargs, temperature=temperature),
                    OWN[:8],
                )
            )
        return sum(a.accepted for a in answers) / sum(a.drafted for a in answers)

    shares = [share(lenience) for lenience in (1.0, 0.3, 0.05)]
    assert shares[0] < shares[1] < shares[2]


def test_asks_of_one_leave_its_neighbours_alone(
    client: Client, plain: dict[str, list[int]]
) -> None:
    """Drawn, lenient and greedy rows of one batch."""
    others: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
        {"xargs": {asks.SPEC_LENIENCE: 0.1}},
    ]
    texts = list(plain)

    def ask(index: int) -> list[int]:
        more = others[index // 2 % 3] if index % 2 else {"xargs": {asks.SPEC_STOP: 0.5}}
        return client.ask(client.prompt(texts[index]), **more).ids

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(8)))
    assert got[::2] == list(plain.values())[::2]


@pytest.mark.smoke
def test_a_top_k_of_no_guesses_ends_nothing(client: Client, plain: dict[str, list[int]]) -> None:
    """A prompt's pass has none to verify: vLLM's own sampler dies of it."""
    text = next(iter(plain))
    drawn = client.ask(client.prompt(text), temperature=1.0, top_k=1)
    assert drawn.ids == plain[text]


def test_a_prompt_of_which_all_but_one_token_is_cached(client: Client) -> None:
    """vLLM would fill up its first step with guesses that nobody made."""
    prompt = (client.prompt(OWN[0]) * 9)[:65]  # two blocks and one
    first, again, none = (client.ask(prompt, x) for x in ({}, {}, {asks.SPEC_K: 0}))
    assert first.ids == again.ids == none.ids
    assert first.drafted == again.drafted and none.drafted == 0


@pytest.mark.parametrize(
    "wrong",
    [{asks.SPEC_K: -1}, {asks.SPEC_K: "3"}, {asks.SPEC_STOP: 1.5}, {asks.SPEC_LENIENCE: 0}],
    ids=str,
)
def test_malformed_asks_are_refused_at_the_door(client: Client, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    assert name in client.refused({"prompt": [1], "vllm_xargs": wrong})
    messages = [{"role": "user", "content": "Hi"}]
    chat = {"messages": messages, "vllm_xargs": wrong, "stream": True}
    assert name in client.refused(chat, "/v1/chat/completions")
    by_ids = {"token_ids": [1], "sampling_params": {"extra_args": wrong}}
    assert name in client.refused(by_ids, "/inference/v1/generate")


async def test_the_gateway_asks_for_it_and_counts_it(
    server: VLLMServer, client: Client, plain: dict[str, list[int]]
) -> None:
    fleet = Fleet.build(
        [card("m", server.url, served=server.name)],
        lambda of, url: VllmServer(of, url, None, Renderings()),
    )
    try:
        await fleet.start()
        told = fleet.capabilities("m").speculation
        assert told == Speculates(
            ("",), False, ("head", "confidence", "fixed"), ("exact", "lenient"), LONGEST, True
        )
        text = next(iter(plain))
        for asked in (Speculation(rule="head"), Speculation(longest=2), Speculation(longest=0)):
            call = Call(
                "m",
                prompt=tuple(client.prompt(text)),
                max_tokens=LENGTH,
                sampling=Sampling(temperature=0, ignore_eos=True),
                decoding=Decoding(speculation=asked),
            )
            chunks = [chunk async for chunk in fleet.generate(call)]
            assert [t.id for chunk in chunks for t in chunk.tokens] == plain[text]
            usage = sum((chunk.usage for chunk in chunks), Usage())
            assert usage.completion == LENGTH
            if not asked.longest:
                assert (usage.drafted, usage.accepted, usage.passes) == (0, 0, 0)
                continue
            assert 0 < usage.accepted < usage.drafted <= min(asked.longest, 5) * usage.passes
    finally:
        await fleet.aclose()


FAULTY = """
from app.vllm_plugins import draft_proposer, sampling_fault

sampling_fault.mended = lambda device: False


class Worker(draft_proposer.SpeculatingWorker):
    def init_device(self):
        super().init_device()
        drafter, steps = self.model_runner.drafter, iter(range(10**9))
        propose = drafter._propose

        def fail(*args, **keys):
            if next(steps) % 3 == 2:
                raise RuntimeError("as a test wants it")
            return propose(*args, **keys)

        drafter._propose = fail
"""


def test_a_proposer_that_fails_costs_no_answer(tmp_path: Path, plain: dict[str, list[int]]) -> None:
    """And where vLLM samples guesses wrongly, nothing is drawn by them."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    path = f"{room({'XDG_CACHE_HOME': str(tmp_path)})}:{tmp_path}"
    draft = {"method": "draft_model", "model": str(exported("fp32", TINY))}
    draft |= {"num_speculative_tokens": 4, "draft_sample_method": "probabilistic"}
    flags = ["--speculative-config", json.dumps(draft), "--worker-cls", "faulty.Worker"]
    flags += ["--per-request-spec-decode-metrics", "summary", "--middleware", DOOR]
    texts = list(plain)
    with serving("fp32", 0, tmp_path, flags, path=path) as found:
        client = Client(found)

        def ask(index: int) -> Answer:
            drawn = {"temperature": 1.0, "top_k": 1, "logprobs": 2} if index % 2 else {}
            return client.ask(client.prompt(texts[index]), **drawn)

        greedy = [client.ask(client.prompt(text)) for text in texts[:2]]
        assert [answer.ids for answer in greedy] == list(plain.values())[:2]
        assert all(answer.accepted for answer in greedy)
        alone = ask(1)  # a drawn token of one is the likeliest
        assert (alone.ids, alone.drafted) == (plain[texts[1]], 0)
        with ThreadPoolExecutor(8) as pool:
            assert [answer.ids for answer in pool.map(ask, range(8))] == list(plain.values())
        client.http.close()
    assert found.log.read_text("utf-8").count("drafting failed") == 1
    assert MODEL in found.name
