"""Prompts become ids once a request, whoever asks; tokens get their names."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.engines.remote.rendering import Renderer, Renderings, check_foreign
from app.errors import BadRequest, EngineError, EngineUnavailable, EngineUnsupported
from app.types import Tokens
from tests.app.engines.remote.toy import END, PIECES, ToyOrigin, call

MESSAGES = ({"role": "user", "content": "hi"},)


def tokenized(body: dict[str, Any]) -> dict[str, Any]:
    if "messages" in body:
        return {"tokens": [9, 9, 9]}
    return {"tokens": [1] * body["add_special_tokens"] + [len(w) for w in body["prompt"].split()]}


def renderer(renderings: Renderings | None = None, **answers: Any) -> Any:
    origin = ToyOrigin(answers={"/tokenize": tokenized, **answers})
    return SimpleNamespace(
        it=Renderer(origin, "served", renderings or Renderings()),  # type: ignore[arg-type]
        origin=origin,
    )


def chat(**fields: Any) -> Any:
    return call(prompt=None, messages=MESSAGES, **fields)


async def test_a_chat_is_rendered_with_the_fields_of_the_template() -> None:
    one = renderer()
    tools = [{"type": "function"}]
    assert await one.it.prompt(chat(extra={"tools": tools, "user": "x"})) == [9, 9, 9]
    (asked,) = one.origin.asked
    assert asked.body == {"model": "served", "messages": list(MESSAGES), "tools": tools}


async def test_a_text_gets_what_begins_a_prompt_and_what_was_said_does_not() -> None:
    one = renderer()
    assert await one.it.prompt(call(prompt="a bcd")) == [1, 1, 3]
    assert await one.it.prompt(call(prompt="a bcd", said="ef g")) == [1, 1, 3, 2, 1]


@pytest.mark.parametrize("names", [None, ["<|a|>", "b", "c"]])
async def test_who_asks_for_tokens_alone_is_answered_by_the_servers_own_tokenizer(
    names: list[str] | None,
) -> None:
    one = renderer(**{"/tokenize": {"tokens": [9, 8, 7], "token_strs": names}})
    one.it.has_render = True  # which would refuse the tools of a server without a parser for them
    body = {"model": "ours", "messages": list(MESSAGES), "tools": [{"type": "function"}]}
    found = await one.it.tokens(chat(body=body), names is not None)
    assert found == Tokens((9, 8, 7), None if names is None else tuple(names))
    (asked,) = one.origin.asked
    assert (one.origin.paths(), asked.body) == (
        ["/tokenize"],
        {**body, "model": "served", "return_token_strs": names is not None},
    )


@pytest.mark.parametrize("names", [None, "ab", ["a"]])
async def test_a_server_that_does_not_name_its_tokens_is_at_fault(names: object) -> None:
    one = renderer(**{"/tokenize": {"tokens": [9, 8], "token_strs": names}})
    with pytest.raises(EngineError, match="name its tokens"):
        await one.it.tokens(call(prompt="a b"), True)


async def test_ids_are_ids() -> None:
    one = renderer()
    assert await one.it.prompt(call(prompt=(4, 2))) == [4, 2]
    assert one.origin.asked == []


async def test_each_request_is_rendered_once_whoever_of_the_family_asks() -> None:
    shared, asked = Renderings(), chat()
    small, large = renderer(shared), renderer(shared)
    for _ in range(2):
        for who in (small, large):
            assert await who.it.prompt(asked.to("other").after((1, 2))) == [9, 9, 9]
    assert len(small.origin.asked) + len(large.origin.asked) == 1


async def test_two_requests_that_look_alike_are_two() -> None:
    one = renderer()
    for _ in range(2):
        await one.it.prompt(call(prompt=None, messages=(dict(MESSAGES[0]),)))
    assert len(one.origin.asked) == 2


class Slow:
    """An answer that comes when it is told to."""

    def __init__(self, one: Any) -> None:
        self.asked, self.go, self.failure = 0, asyncio.Event(), None
        one.origin.json = self

    async def __call__(self, path: str, body: Any) -> Any:
        self.asked += 1
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return {"tokens": [7]}


async def test_who_asks_at_the_same_time_waits_for_the_same_answer() -> None:
    one = renderer()
    slow, asked = Slow(one), chat()
    waiting = [asyncio.ensure_future(one.it.prompt(asked)) for _ in range(5)]
    await asyncio.sleep(0)
    slow.go.set()
    assert await asyncio.gather(*waiting) == [[7]] * 5
    assert slow.asked == 1


@pytest.mark.parametrize("leaver", [0, 1])
async def test_who_gives_up_does_not_take_it_from_the_others(leaver: int) -> None:
    one = renderer()
    slow, asked = Slow(one), chat()
    waiting = [asyncio.ensure_future(one.it.prompt(asked)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[leaver].cancel()
    await asyncio.sleep(0)
    slow.go.set()
    assert await waiting[1 - leaver] == [7]
    assert waiting[leaver].cancelled() and slow.asked == 1


async def test_what_nobody_waits_for_any_more_is_given_up_and_asked_anew() -> None:
    one = renderer()
    slow, asked = Slow(one), chat()
    waiting = asyncio.ensure_future(one.it.prompt(asked))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    slow.go.set()
    assert await one.it.prompt(asked) == [7]
    assert slow.asked == 2


async def test_a_failure_that_nobody_waits_for_is_no_warning() -> None:
    one = renderer()
    slow = Slow(one)
    slow.failure = EngineUnavailable("down")
    waiting = asyncio.ensure_future(one.it.prompt(chat()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    slow.go.set()
    for _ in range(5):
        await asyncio.sleep(0)
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    del waiting
    one.it._renderings._kept.clear()
    assert told == []


async def test_a_failure_is_told_to_all_and_not_kept() -> None:
    one = renderer()
    slow, asked = Slow(one), chat()
    slow.failure = EngineUnavailable("down")
    waiting = [asyncio.ensure_future(one.it.prompt(asked)) for _ in range(2)]
    await asyncio.sleep(0)
    slow.go.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in found] == ["down", "down"]
    slow.failure = None
    assert await one.it.prompt(asked) == [7]
    assert slow.asked == 2


async def test_only_the_latest_renderings_are_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr("app.engines.remote.rendering._KEPT", 2)
    one = renderer()
    asked = [call(prompt=f"prompt {i}") for i in range(3)]
    for each in (*asked, asked[1], asked[2], asked[0]):
        await one.it.prompt(each)
    assert len(one.origin.asked) == 4


async def test_with_the_render_endpoint_the_whole_body_says_how() -> None:
    answers = {"/v1/chat/completions/render": {"token_ids": [5, 6]}}
    one = renderer(**answers)
    one.it.has_render = True
    body = {"model": "ours", "stream": True, "stream_options": {}, "reasoning_effort": "low"}
    extra = {"documents": [{"text": "x"}], "reasoning_effort": "low"}
    assert await one.it.prompt(chat(body=body, extra=extra)) == [5, 6]
    assert one.origin.asked[0].body == {
        "model": "served",
        "messages": list(MESSAGES),
        "stream": False,
        "reasoning_effort": "low",
        "documents": [{"text": "x"}],
    }


async def test_documents_need_the_render_endpoint() -> None:
    with pytest.raises(EngineUnsupported, match="documents"):
        await renderer().it.prompt(chat(extra={"documents": [{}]}))


@pytest.mark.parametrize("answer", [None, [], {}, {"tokens": None}, {"tokens": ["1"]}])
async def test_an_answer_without_ids_is_an_error_of_the_engine(answer: Any) -> None:
    with pytest.raises(EngineError, match="no token ids"):
        await renderer(**{"/tokenize": answer}).it.prompt(chat())


async def test_an_empty_prompt_is_refused_by_its_field() -> None:
    one = renderer(**{"/tokenize": {"tokens": []}})
    for asked, param in ((chat(), "messages"), (call(prompt=" "), "prompt")):
        with pytest.raises(BadRequest, match="empty") as raised:
            await one.it.prompt(asked)
        assert raised.value.param == param


@pytest.mark.parametrize("answer", [None, [], {}, {"prompt": 5}, "text"])
async def test_an_answer_without_text_is_an_error_of_the_engine(answer: Any) -> None:
    with pytest.raises(EngineError, match="detokenize"):
        await renderer(**{"/detokenize": answer}).it.decode([1])


async def test_names_are_asked_for_once_all_new_ones_together() -> None:
    one = renderer()
    one.it.separator = (END, "<|end|>")
    first = await one.it.names([0, 2, 0])
    assert {id: first[id] for id in (0, 2)} == {0: b"a", 2: b" the"}
    second = await one.it.names([2, 3])
    assert second[3] == PIECES[3]
    assert one.origin.paths() == ["/detokenize"] * 2
    assert one.origin.asked[1].body["tokens"] == [END, 3]  # the others are known


async def test_names_without_a_separator_are_asked_for_one_by_one() -> None:
    one = renderer()
    names = await one.it.names([0, 2])
    assert (names[0], names[2]) == (b"a", b" the")
    assert len(one.origin.asked) == 2


async def test_the_separator_itself_has_a_name_too() -> None:
    one = renderer()
    one.it.separator = (END, "<|end|>")
    names = await one.it.names([0, END, 10])
    assert (names[0], names[END], names[10]) == (b"a", b"<|end|>", b"")


async def test_names_are_shared_in_the_family() -> None:
    shared = Renderings()
    await renderer(shared).it.names([0])
    other = renderer(shared)
    assert (await other.it.names([0]))[0] == b"a"
    assert other.origin.asked == []


FOREIGN = (
    *("kv_transfer_params", "ec_transfer_params", "prompt_embeds", "request_id"),
    *("custom_logit_processor", "rid", "session_params", "bootstrap_host"),
)


@pytest.mark.parametrize("field", FOREIGN)
@pytest.mark.parametrize("where", ["body", "extra"])
def test_fields_by_which_a_client_could_reach_into_a_server_are_refused(
    field: str, where: str
) -> None:
    for fields in ({field: {"do": 1}}, {"vllm_xargs": {field: "x"}}):
        with pytest.raises(BadRequest, match=f"^{field}: ") as raised:
            check_foreign(call(**{where: fields}))
        assert raised.value.param == field
    check_foreign(call(**{where: {field: None, "vllm_xargs": {"other": 1}}}))
    check_foreign(call(**{where: {"vllm_xargs": "no object"}}))
