"""Other OpenAI-compatible servers: how they are asked, counted, and how little is promised."""

from __future__ import annotations

import asyncio
import unicodedata
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.catalog import Kind, ModelCard
from app.engines.embedded.tokenizer import Tokenizer, load_tokenizer
from app.engines.upstream import KINDS, Upstream
from app.errors import BadRequest, EngineError, EngineUnavailable, EngineUnsupported
from app.types import Call, Decoding, Usage
from tests.app.engines.remote.toy import ToyOrigin, collected, event, usage
from tests.app.engines.scripted import card

KIND_NAMES = tuple(KINDS)
NATIVE = Decoding(native=True)
STREAM = [
    event({"id": "chatcmpl-1", "choices": [{"index": 0, "finish_reason": "stop"}]}),
    event({"id": "chatcmpl-1", "choices": [], "usage": usage(3, 1)}),
    event("[DONE]"),
]


def server(kind: Kind = "openai", **keys: Any) -> tuple[Upstream, ToyOrigin]:
    keys = {"context": 1000, "served": "theirs", **keys}
    found: ModelCard = card("m", "http://a:8000", engine="openai", kind=kind, **keys)
    one, origin = Upstream(found, "http://a:8000", None), ToyOrigin()
    one._origin = origin  # type: ignore[assignment]
    return one, origin


def chat(*contents: Any, **fields: Any) -> Call:
    messages = tuple({"role": "user", "content": content} for content in contents or ("hi",))
    return Call("m", messages, **{"decoding": NATIVE, **fields})


async def sent(asked: Call, kind: Kind = "openai") -> Any:
    one, origin = server(kind)
    whole = [b'{"choices": [{"finish_reason": "stop"}]}']
    origin.plays = deque([whole if asked.whole else STREAM])
    await collected(one.generate(asked))
    (request,) = origin.asked
    assert not origin.open
    return request


@pytest.mark.parametrize("kind", KIND_NAMES)
async def test_the_clients_body_goes_to_their_endpoint(kind: Kind) -> None:
    body = {"model": "ours", "messages": ["as they are"], "temperature": 0.5, "stream": False}
    request = await sent(chat(body=body), kind)
    assert request.path == "/v1/chat/completions" and request.headers == {}
    options = {"stream_options": {"include_usage": True}}
    assert request.body == {**body, "model": "theirs", "stream": True, **options}
    whole = await sent(chat(body={**body, "stream": True}, whole=True), kind)
    assert whole.body == {**body, "model": "theirs", "stream": False}
    text = await sent(Call("m", prompt="a", decoding=NATIVE, body={"prompt": "a"}), kind)
    assert text.path == "/v1/completions"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("openai", "max_completion_tokens"),
        ("llamacpp", "max_tokens"),
        ("sglang", "max_tokens"),
        ("ollama", "max_tokens"),
    ],
)
async def test_the_limit_goes_under_the_name_that_they_know(kind: Kind, name: str) -> None:
    names = {"max_tokens", "max_completion_tokens"}

    async def limits(**body: Any) -> dict[str, Any]:
        found = (await sent(chat(body=body, max_tokens=7), kind)).body
        return {key: found[key] for key in names & found.keys() if found[key] is not None}

    assert await limits() == {name: 7}
    assert await limits(max_tokens=None) == {name: 7}
    for theirs in names:  # what the client chose is what it gets
        assert await limits(**{theirs: 90}) == {theirs: 7}
    assert await limits(max_tokens=90, max_completion_tokens=80) == dict.fromkeys(names, 7)
    text = Call("m", prompt="a", decoding=NATIVE, max_tokens=7)
    assert (await sent(text, kind)).body["max_tokens"] == 7
    assert not names & (await sent(chat(), kind)).body.keys()


@pytest.mark.parametrize("field", ["top_k", "min_p", "repetition_penalty", "ignore_eos"])
async def test_what_openai_does_not_know_is_refused_by_its_name(field: str) -> None:
    asked = chat(body={field: 1})
    with pytest.raises(EngineUnsupported, match=f"^{field}: ") as raised:
        await sent(asked)
    assert raised.value.param == field
    assert (await sent(asked, "sglang")).body[field] == 1
    assert field not in (await sent(chat(body={field: None}))).body


@pytest.mark.parametrize("field", ["custom_logit_processor", "bootstrap_host", "rid"])
async def test_what_reaches_into_a_server_is_refused(field: str) -> None:
    one, _ = server("sglang")
    asked = chat(body={field: "x"}, extra={field: "x"})
    with pytest.raises(BadRequest, match=field):
        await one.count(asked)
    with pytest.raises(BadRequest, match=field):
        await sent(asked, "sglang")


async def test_nothing_is_done_token_by_token() -> None:
    with pytest.raises(EngineUnsupported, match="token by token") as raised:
        await sent(chat(decoding=Decoding(entropy=True)))
    assert raised.value.param == "policy"


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_capabilities_by_kind(kind: Kind) -> None:
    one, _ = server(kind)
    able = one.capabilities("m")
    assert (able.family, able.context, able.native) == ("f", 1000, True)
    assert (able.entropy, able.stop_on_entropy) == (None, False)
    # Who bills must not be asked twice, and has billed all that was allowed when we hang up.
    assert one.idempotent == (kind != "openai")
    assert able.overrun == (1000 if kind == "openai" else 64)


@pytest.mark.parametrize("kind", KIND_NAMES)
async def test_a_probe_is_one_short_chat_and_a_pulse_costs_nothing(kind: Kind) -> None:
    one, origin = server(kind)
    assert not one.load("m").healthy
    origin.answers = {
        "/v1/chat/completions": {"choices": [{}]},
        KINDS[kind].check: "fine",
    }
    await one.probe()
    (asked,) = origin.asked
    assert asked.body["model"] == "theirs" and asked.body[KINDS[kind].limit] == 16
    assert one.load("m").healthy
    assert (await one.pulse()).healthy
    assert origin.asked[-1].body is None and origin.paths()[-1] != "/v1/chat/completions"


@pytest.mark.parametrize("answer", [{}, [], {"choices": []}, None, "x"])
async def test_a_probe_without_an_answer_fails(answer: Any) -> None:
    one, origin = server()
    origin.answers = {"/v1/chat/completions": answer}
    with pytest.raises(EngineError, match="without choices"):
        await one.probe()
    origin.answers = {"/v1/chat/completions": BadRequest("no such model")}
    with pytest.raises(EngineUnavailable, match="no such model"):
        await one.probe()


async def counted(asked: Call, kind: Kind = "openai") -> int:
    one, origin = server(kind)
    count = await one.count(asked)
    assert origin.asked == []
    return count


async def test_llama_cpp_counts_by_itself() -> None:
    one, origin = server("llamacpp")
    origin.answers = {"/apply-template": {"prompt": "<s>hi"}, "/tokenize": {"tokens": [1, 2, 3]}}
    assert await one.count(chat()) == 3
    assert origin.asked[0].body == {"messages": [{"role": "user", "content": "hi"}]}
    assert origin.asked[1].body["content"] == "<s>hi" and origin.asked[1].body["parse_special"]
    # The template has no tools: with them an upper bound must do.
    assert await counted(chat(extra={"tools": [{}]}), "llamacpp") > 64


@pytest.mark.parametrize("path", ["/apply-template", "/tokenize"])
@pytest.mark.parametrize("answer", [None, [], {}, {"prompt": None, "tokens": 5}])
async def test_a_llama_cpp_that_does_not_count_is_an_error_of_the_engine(
    path: str, answer: Any
) -> None:
    one, origin = server("llamacpp")
    good = {"/apply-template": {"prompt": "<s>hi"}, "/tokenize": {"tokens": [1, 2, 3]}}
    origin.answers = {**good, path: answer}
    with pytest.raises(EngineError, match="does not count"):
        await one.count(chat())


async def test_all_that_a_model_reads_is_in_the_bound() -> None:
    """Whatever part of the request grows, the bound grows with it."""
    long = "x" * 1000
    plain = await counted(chat())
    call_ = {"id": "1", "type": "function", "function": {"name": "f", "arguments": long}}
    grown = [
        chat(long),
        chat([{"type": "text", "text": long}]),
        chat([{"type": "refusal", "refusal": long}]),
        chat([{"type": "image_url", "image_url": {"url": "http://x"}}]),
        # What is no text does not become one by having a text beside it.
        chat([{"type": "image_url", "text": "x", "image_url": {"url": "http://x"}}]),
        chat(*["x"] * 70),
        chat(extra={"tools": [{"type": "function", "function": {"name": long}}]}),
        chat(extra={"functions": [{"name": long}]}),
        Call("m", ({"role": "assistant", "content": None, "tool_calls": [call_]},)),
        Call("m", ({"role": "user", "content": "hi", "name": long},)),
        Call("m", prompt=long),
        Call("m", prompt=(1,) * 1100),
    ]
    for asked in grown:
        assert await counted(asked) >= 1000 > plain, asked


async def test_text_that_some_tokenizers_normalize_is_counted_as_what_it_becomes() -> None:
    for text in ("\ufdfa", "\ufb2c", "\U0001d160", "\u0390", "ﷺ" * 10):
        longest = max(
            len(unicodedata.normalize(form, text).encode())
            for form in ("NFC", "NFD", "NFKC", "NFKD")
        )
        assert await counted(Call("m", prompt=text)) >= longest


@pytest.mark.parametrize(("text", "pieces"), [("\n", 3), ("a", 3), ("é", 4)])
async def test_a_tokenizer_that_puts_a_space_and_a_begin_before_it_is_bounded_too(
    text: str, pieces: int
) -> None:
    """Llama 2: <s>, a space, then the character's bytes."""
    assert await counted(Call("m", prompt=text)) >= pieces


@pytest.fixture(scope="module")
def tokenizer(smollm2_gguf: Path) -> Tokenizer:
    return load_tokenizer(smollm2_gguf)


words = st.text(max_size=40) | st.sampled_from(["\n\n", "\u200d", "<|im_end|>", "٣", "ﷺ", "𝅘𝅥𝅮"])
roles = st.sampled_from(["user", "assistant", "system"])


@pytest.mark.model
@settings(max_examples=150)
@given(st.lists(st.tuples(roles, words), min_size=1, max_size=6))
def test_no_chat_is_longer_than_its_bound(
    tokenizer: Tokenizer, chats: list[tuple[str, str]]
) -> None:
    """By a real tokenizer and template, its default system prompt included."""
    messages = tuple({"role": role, "content": content} for role, content in chats)
    bound = asyncio.run(counted(Call("m", messages)))
    assert len(tokenizer.chat(messages)) <= bound
    text = "".join(content for _, content in chats)
    assert len(tokenizer.encode(text)) <= asyncio.run(counted(Call("m", prompt=text)))


async def test_usage_is_what_the_server_says() -> None:
    one, origin = server()
    origin.plays = deque([STREAM])
    chunks = await collected(one.generate(chat()))
    assert sum((chunk.usage for chunk in chunks), Usage()) == Usage(3, 0, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_predict", 10**6), ("options", {"num_predict": 10**6}), ("service_tier", "priority"),
     ("web_search_options", {}), ("prediction", {"type": "content", "content": "x"})],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
async def test_no_field_writes_more_than_is_paid_for(kind: Kind, field: str, value: Any) -> None:
    one, origin = server(kind)
    asked = chat("hi", body={"messages": [], field: value}, decoding=Decoding(native=True))
    with pytest.raises(EngineUnsupported) as caught:
        await collected(one.generate(asked))
    assert not origin.asked
    assert caught.value.param == field


async def test_options_of_a_stream_go_along() -> None:
    body = {"stream": True, "stream_options": {"include_obfuscation": False}}
    request = await sent(chat(body=body))
    options = {"include_obfuscation": False, "include_usage": True}
    assert request.body["stream_options"] == options


async def test_nothing_is_stored_at_another_s_under_our_account() -> None:
    with pytest.raises(EngineUnsupported) as refusal:
        await sent(chat(body={"store": True}))
    assert refusal.value.param == "store"
    await sent(chat(body={"store": False}))
