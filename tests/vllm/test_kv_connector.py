"""KV prediction in a real vLLM: in place where it is asked for, found by nobody else."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.bench.prefill import Way, read
from app.bench.reading import Measured, Weights
from app.engines.embedded.tokenizer import load_tokenizer
from app.engines.fleet import Fleet
from app.engines.remote.rendering import Renderings
from app.engines.vllm import VllmServer
from app.nets.kv_predictor import About, KVPredictor
from app.nets.route import Route
from app.types import Call, Decoding, KVPrediction, Sampling, Usage
from app.vllm_plugins import asks
from tests.app.engines.scripted import card
from tests.prompts import OWN
from tests.vllm.two_servers import ByHand, until
from tests.vllm_servers import VLLMServer, serving

pytestmark = [pytest.mark.vllm, pytest.mark.model]

LENGTH = 32
KEPT = 10  # layers of 30
WRONG = f"layers-{KEPT}"  # a predictor that knows nothing
LAYER = 4 * 576 * 384 + 3 * 576 * 1536  # multiplications
# Prompts are read in pieces, and eight of them with long answers do not fit into the cache.
FLAGS = ("--max-num-batched-tokens", "256", "--max-num-seqs", "16")
FEW_BLOCKS = ("--num-gpu-blocks-override", "80")


@dataclass
class Answer:
    """What came of one completion."""

    ids: list[int]
    cached: int


class Client(ByHand):
    """A client of one server."""

    def ask(
        self, prompt: list[int], xargs: dict[str, Any] | None = None, salt: str = "", **more: Any
    ) -> Answer:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": LENGTH, "ignore_eos": True}
        given: dict[str, Any] = {"vllm_xargs": xargs} if xargs else {}
        given |= {"cache_salt": salt} if salt else {}
        answer = self.post("/v1/completions", {**body, **given, **more, "return_token_ids": True})
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return Answer(answer["choices"][0]["token_ids"], cached)

    def predicted(self, prompt: list[int], predictor: str, **more: Any) -> Answer:
        named = ("last", "first", "relevant")
        xargs = {f"{asks.KV}_{name}": more.pop(name) for name in named if name in more}
        return self.ask(prompt, {asks.KV: predictor, **xargs}, more.pop("salt", fresh()), **more)

    def preemptions(self) -> int:
        return self._sum("vllm:num_preemptions_total")

    def usage(self) -> int:
        return self._sum("vllm:kv_cache_usage_perc")


def fresh() -> str:
    return asks.SALT + secrets.token_hex(8)


@pytest.fixture(scope="module")
def random_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor whose maps are random."""
    path = tmp_path_factory.mktemp("predictor") / "wrong.safetensors"
    about = About("smollm2-135m", "", 576, layers=30, width=192, layer_weights=LAYER, kept=KEPT)
    predictor = KVPredictor(about)
    torch.manual_seed(0)
    torch.nn.init.normal_(predictor.weight, std=0.03)
    predictor.save(path)
    return path


@pytest.fixture(scope="module")
def server(random_maps: Path) -> Iterator[VLLMServer]:
    """The default model in fp32."""
    own = ["--kv-predictor", str(random_maps)]
    with serving("fp32", 1, random_maps.parent, (*FLAGS, *FEW_BLOCKS), own=own) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: VLLMServer) -> Iterator[Client]:
    found = Client(server)
    yield found
    found.http.close()


@pytest.fixture(scope="module")
def prompts(client: Client) -> list[list[int]]:
    """Eight of 230 to 300 tokens."""
    found = []
    for index in range(8):
        ids = client.prompt(" ".join(OWN[index:] + OWN[:index]))
        found.append((ids * 4)[: 230 + 10 * index])
    return found


@pytest.fixture(scope="module")
def plain(client: Client, prompts: list[list[int]]) -> list[list[int]]:
    """What the model writes, one after the other."""
    return [client.ask(prompt).ids for prompt in prompts]


@pytest.mark.smoke
def test_the_connector_says_what_it_does(client: Client) -> None:
    state = asks.Predicting.read(client.http.get(asks.PREDICTS_PATH).json())
    assert state is not None and list(state.shares) == [WRONG]
    assert KEPT / 30 < state.shares[WRONG] < KEPT / 30 + 0.1


@pytest.mark.smoke
@pytest.mark.parametrize(
    "how", [{}, {"last": 100}, {"first": 40}, {"last": 199}], ids=["whole", "last", "first", "most"]
)
def test_true_keys_and_values_make_the_same_answer(
    client: Client, prompts: list[list[int]], plain: list[list[int]], how: dict[str, int]
) -> None:
    """The built-in predictor runs all layers: what is put in place is then what vLLM computes."""
    for prompt, ids in list(zip(prompts, plain, strict=True))[:2]:
        found = client.predicted(prompt, asks.EXACT, **how)
        wanted = len(prompt) - how.get("last", 1)
        assert found == Answer(ids, wanted if wanted >= 32 else 0)


def test_a_long_prompt_is_put_in_place_in_pieces(client: Client, prompts: list[list[int]]) -> None:
    prompt = [id for one in prompts[:6] for id in one]  # of several steps
    assert client.predicted(prompt, asks.EXACT) == Answer(client.ask(prompt).ids, len(prompt) - 1)


def test_several_at_once(client: Client, prompts: list[list[int]], plain: list[list[int]]) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda prompt: client.predicted(prompt, asks.EXACT), prompts))
    assert [answer.ids for answer in found] == plain
    assert [answer.cached for answer in found] == [len(prompt) - 1 for prompt in prompts]


def test_what_was_preempted_is_put_in_place_again(client: Client, prompts: list[list[int]]) -> None:
    """In one request, so that they are all there at once."""
    long = 128
    alone = [client.ask(prompt, max_tokens=long).ids for prompt in prompts]
    before = client.preemptions()
    body = {"prompt": prompts, "temperature": 0, "max_tokens": long, "ignore_eos": True}
    body |= {"cache_salt": fresh(), "vllm_xargs": {asks.KV: asks.EXACT}, "return_token_ids": True}
    choices = client.post("/v1/completions", body)["choices"]
    assert client.preemptions() > before
    assert [choice["token_ids"] for choice in choices] == alone


def test_what_is_cached_is_gone_on_from(
    client: Client, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """The blocks at hand stay, and what follows them is put in place."""
    salt, prompt = fresh(), prompts[5]
    client.ask(prompt[:100], salt=salt)  # three blocks
    assert client.predicted(prompt, asks.EXACT, salt=salt) == Answer(plain[5], len(prompt) - 1)


@pytest.mark.smoke
def test_a_predictor_s_words_are_the_ones_that_are_read(
    client: Client, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    for prompt, ids in list(zip(prompts, plain, strict=True))[:3]:
        found = client.predicted(prompt, WRONG)
        assert found.cached == len(prompt) - 1 and found.ids != ids
        assert found.ids == client.predicted(prompt, WRONG).ids  # whoever asks
        # Where nearly all is computed, nothing is left to be wrong.
        assert client.predicted(prompt, WRONG, last=len(prompt) - 8) == Answer(ids, 0)
        assert client.predicted(prompt, WRONG, first=len(prompt)) == Answer(ids, 0)


@pytest.mark.parametrize(
    ("relevant", "most"),
    [
        (0.0, 3),
        pytest.param(0.3, 1, id="0.3 in short", marks=pytest.mark.smoke),  # of the next one
        (0.3, 3),
        (0.7, 3),
    ],
)
def test_it_reads_as_the_embedded_engine_does(
    server: VLLMServer,
    client: Client,
    random_maps: Path,
    prompts: list[list[int]],
    relevant: float,
    most: int,
) -> None:
    """Also what is computed in the midst, behind what is not true."""
    model = Measured.load(Weights("m", server.folder, None, "fp32"))
    told = model.decoder.predictor(KVPredictor.load(random_maps))
    way = Way("w", model, 1.0, told, first=6, last=5, relevant=relevant)
    asked = [prompts[3], [*prompts[0], *client.prompt(OWN[9])], prompts[7] * 3]
    for prompt in asked[:most]:
        ids = read(way, prompt, prompt[:1], None, LENGTH, 0).answer
        for _ in range(2):
            found = client.predicted(prompt, WRONG, first=6, last=5, relevant=relevant)
            assert tuple(found.ids[: len(ids)]) == ids and len(ids) > 2


def test_what_its_end_asks_about_is_gone_on_from_too(
    client: Client, prompts: list[list[int]]
) -> None:
    """Where all is computed it is what vLLM computes; a part of it, behind what is cached."""
    salt, prompt = fresh(), [*prompts[2], *prompts[3]]
    exact = client.ask(prompt).ids
    assert client.predicted(prompt, WRONG, relevant=1.0) == Answer(exact, 0)
    begun = client.predicted(prompt[:200], WRONG, salt=salt, relevant=0.3)
    assert begun.cached == 199
    found = client.predicted(prompt, WRONG, salt=salt, relevant=0.3)
    assert found.cached == len(prompt) - 1 and len(found.ids) == LENGTH


def test_a_flood_of_wrong_words_reaches_nobody_else(
    client: Client, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    salts = [fresh() for _ in prompts]

    def ask(index: int) -> Answer:
        kind, which = index % 3, index // 3 % len(prompts)
        if kind == 0:
            return client.predicted(prompts[which], WRONG, salt=salts[which])
        return client.ask(prompts[which], salt="" if kind == 1 else "another")

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(6 * len(prompts))))
    for index, answer in enumerate(found):
        if index % 3:
            assert answer.ids == plain[index // 3 % len(prompts)]
    # And such a flood is one: under its own salt, what it left is found, and believed.
    client.predicted(prompts[0], WRONG, salt=salts[0])
    believing = client.ask(prompts[0], salt=salts[0])
    assert believing.cached >= 224 and believing.ids != plain[0]
    assert client.ask(prompts[0], salt=fresh()) == Answer(plain[0], 0)


@pytest.mark.smoke
@pytest.mark.parametrize("salt", [None, "", "other", "kvp", asks.SALT], ids=str)
def test_without_a_salt_of_its_own_it_is_refused(client: Client, salt: str | None) -> None:
    xargs = {asks.KV: WRONG}
    salted = {} if salt is None else {"cache_salt": salt}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": [1] * 99, "vllm_xargs": xargs},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": "Hi"}],
            "vllm_xargs": xargs,
            "stream": True,
        },
        "/inference/v1/generate": {
            "token_ids": [1] * 99,
            "sampling_params": {"extra_args": xargs},
        },
    }
    for path, body in bodies.items():
        answer = client.http.post(path, json={"model": client.name, **body, **salted})
        assert answer.status_code == 400, answer.text
        assert "cache_salt" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "wrong",
    [{asks.KV: "layers-3"}, {asks.KV: WRONG, asks.KV_LAST: 0}, {asks.KV_FIRST: 1}],
    ids=["unknown", "none computed", "nameless"],
)
def test_what_makes_no_sense_is_refused(client: Client, wrong: dict[str, Any]) -> None:
    body = {"model": client.name, "prompt": [1] * 99, "cache_salt": fresh(), "vllm_xargs": wrong}
    assert client.http.post("/v1/completions", json=body).status_code == 400


def test_who_hangs_up_meanwhile_leaves_nothing(
    client: Client, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    prompt = [id for one in prompts[:7] for id in one]
    body = {"model": client.name, "prompt": prompt, "max_tokens": 200, "ignore_eos": True}
    body |= {"cache_salt": fresh(), "vllm_xargs": {asks.KV: asks.EXACT}}
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=client.http.base_url) as other:
        asked = pool.submit(other.post, "/v1/completions", json=body, timeout=0.7)
        with pytest.raises(httpx.ReadTimeout):
            asked.result()
    until(lambda: client.running() == 0, 60)
    assert client.predicted(prompts[0], asks.EXACT).ids == plain[0]
    until(lambda: client.usage() == 0, 60)


async def test_the_gateway_asks_for_it_and_counts_it(
    server: VLLMServer, client: Client, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    fleet = Fleet.build(
        [card("m", server.url, served=server.name)],
        lambda of, url: VllmServer(of, url, None, Renderings()),
    )

    async def ask(prompt: list[int], kv: KVPrediction | None) -> tuple[list[int], Usage]:
        call = Call(
            "m",
            prompt=tuple(prompt),
            max_tokens=LENGTH,
            sampling=Sampling(temperature=0, ignore_eos=True),
            decoding=Decoding(kv=kv),
        )
        chunks = [chunk async for chunk in fleet.generate(call)]
        usage = sum((chunk.usage for chunk in chunks), Usage())
        assert (usage.prompt, usage.completion) == (len(prompt), LENGTH)
        return [token.id for chunk in chunks for token in chunk.tokens], usage

    try:
        await fleet.start()
        able = fleet.capabilities("m").kv
        assert able is not None and list(able) == [WRONG]
        prompt = prompts[1]
        ids, usage = await ask(prompt, KVPrediction(WRONG, last=5))
        assert (usage.cached, usage.predicted) == (0, len(prompt) - 5)
        assert ids != plain[1]
        ids, usage = await ask(prompt, KVPrediction(WRONG, last=5, first=50))
        assert (usage.cached, usage.predicted) == (0, len(prompt) - 55)
        _, usage = await ask(prompt, KVPrediction(WRONG, last=5, first=50, relevant=0.3))
        pieces = list(map(load_tokenizer(server.folder).piece, prompt))
        wanted = Route.of(pieces, 50, 5, 0.3).predicted(0, len(prompt))
        assert (usage.cached, usage.predicted) == (0, wanted) and 0 < wanted < len(prompt) - 55
        ids, usage = await ask(prompt, None)
        assert (ids, usage.predicted) == (plain[1], 0)

        first = KVPrediction(WRONG, conversation="first")
        begun, usage = await ask(prompt, first)
        assert (usage.cached, usage.predicted) == (0, len(prompt) - 1)
        turn = [*prompt, *begun, *prompts[0][:20]]  # little is new: that is computed
        said, usage = await ask(turn, first)
        assert (usage.cached, usage.predicted) == (len(turn) // 32 * 32 - 32, 0)
        turn = [*turn, *said, *prompts[2], *prompts[3], *prompts[4]]  # much is new
        _, usage = await ask(turn, first)
        assert 224 <= usage.cached == len(turn) - 1 - usage.predicted
        _, usage = await ask(prompt, KVPrediction(WRONG, conversation="second"))
        assert usage.cached == 0
    finally:
        await fleet.aclose()
