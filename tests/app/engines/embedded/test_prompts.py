"""A prompt is rendered once for all calls of an answer, and off the event loop where it is long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from app.engines.embedded.prompts import Prompts
from app.errors import BadRequest
from app.types import Call, Message

HELLO: tuple[Message, ...] = ({"role": "user", "content": "hello"},)
CALL = Call("m", HELLO)


class Letters:
    """A token for each character; remembers what it has rendered, and on which thread."""

    def __init__(self) -> None:
        self.rendered: list[object] = []
        self.threads: list[threading.Thread] = []

    def encode(self, text: str) -> list[int]:
        self.rendered.append(text)
        self.threads.append(threading.current_thread())
        return list(map(ord, text))

    def continued(self, text: str) -> list[int]:
        return list(map(ord, text.upper()))

    def chat(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        return self.encode(str(messages[0]["content"]) + len(tools) * "t")


async def test_count_and_hand_overs_render_no_second_time() -> None:
    letters = Letters()
    prompts = Prompts(letters, longest=100)
    for call in (CALL, CALL.to("other"), CALL.after((65,))):
        assert await prompts.ids(call) == list(map(ord, "hello"))
    assert letters.rendered == ["hello"]


async def test_what_another_family_said_is_read_after_the_prompt() -> None:
    letters = Letters()
    prompts = Prompts(letters, longest=100)
    for said in ("a", "ab"):
        call = replace(CALL, said=said, written=(1,))
        assert await prompts.ids(call) == list(map(ord, "hello" + said.upper()))
    assert letters.rendered == ["hello"]


async def test_others_have_their_turn_between_the_prompts_of_one_request() -> None:
    prompts, turns = Prompts(Letters(), longest=100), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for text in "abcdefgh":
        await prompts.ids(Call("m", prompt=text * 2))
    assert turns >= 8
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_equal_messages_of_another_request_are_rendered_anew() -> None:
    """Kept by identity: nothing of one request is ever compared with another's."""
    letters = Letters()
    prompts = Prompts(letters, longest=100)
    for _ in range(2):
        await prompts.ids(replace(CALL, messages=({"role": "user", "content": "hello"},)))
    assert letters.rendered == ["hello", "hello"]


async def test_few_renderings_are_kept_and_none_that_will_be_refused() -> None:
    letters = Letters()
    prompts = Prompts(letters, longest=3)
    calls = [replace(CALL, prompt=text) for text in ("abc", "abcd")]
    for call in [*calls, *calls]:
        await prompts.ids(call)
    assert letters.rendered == ["abc", "abcd", "abcd"]
    for n in range(100):
        await prompts.ids(replace(CALL, prompt=f"{n:03}"))
    await prompts.ids(calls[0])
    assert letters.rendered[-1] == "abc"


async def test_token_ids_are_taken_as_they_are() -> None:
    letters = Letters()
    assert await Prompts(letters, longest=3).ids(replace(CALL, prompt=(1, 2))) == (1, 2)
    assert letters.rendered == []


@pytest.mark.parametrize(
    "call",
    [
        replace(CALL, prompt="x" * 10_000),
        replace(CALL, messages=({"role": "user", "content": "x" * 10_000},)),
        replace(
            CALL,
            messages=({"role": "user", "content": [{"type": "text", "text": "x" * 10_000}]},),
        ),
    ],
)
async def test_only_what_is_long_leaves_the_event_loop(call: Call) -> None:
    letters = Letters()
    prompts = Prompts(letters, longest=100)
    await prompts.ids(CALL)
    await prompts.ids(call)
    here = threading.current_thread()
    assert [thread is here for thread in letters.threads] == [True, False]


@pytest.mark.parametrize("odd", ["text", 7, {"content": 7}, {"content": [7, {"text": 7}]}, {}])
async def test_messages_of_odd_shapes_reach_the_tokenizer(odd: Message) -> None:
    """Which names what is wrong with them."""

    class Refusing(Letters):
        def chat(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
            raise BadRequest("odd")

    with pytest.raises(BadRequest):
        await Prompts(Refusing(), longest=100).ids(replace(CALL, messages=(odd,)))


async def test_the_event_loop_turns_while_another_thread_encodes() -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(Letters):
        def encode(self, text: str) -> list[int]:
            began.set()
            assert go_on.wait(5)
            return super().encode(text)

    reading = asyncio.ensure_future(
        Prompts(Slow(), longest=10**5).ids(replace(CALL, prompt="x" * 10_000))
    )
    while not began.is_set():
        await asyncio.sleep(0.001)
    go_on.set()
    assert len(await reading) == 10_000
