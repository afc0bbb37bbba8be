"""The terminal chat, against a gateway that plays a script."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from rich.console import Console

from app.palette import colour
from app.terminal import Answer, Chat, ChatFailed, amount, clean, connect, events

SMALL, LARGE = "tiny-int8", "tiny"
Bodies = list[dict[str, Any]]


def delta(text: str, model: str, switched: bool = False) -> dict[str, Any]:
    ours: dict[str, Any] = {"model": model, "entropy": 1.5}
    if switched:
        ours["switch"] = {"kind": "switch", "token": 1, "model": model}
    return {"choices": [{"delta": {"content": text}}], "farthing": ours}


def test_only_hand_overs_are_switches() -> None:
    answer = Answer()
    for kind in ("plain", "switch", "predict", "steer"):
        answer.take({"farthing": {"switch": {"kind": kind}}})
    answer.take({"farthing": {}})
    assert answer.switches == 2


def finish(how: str = "stop", **details: str) -> dict[str, Any]:
    choice: dict[str, Any] = {"delta": {}, "finish_reason": how}
    if details:
        choice["finish_details"] = details
    switch = {"model": LARGE, "token": 1, "entropy": 2.6, "threshold": 2.5}
    ours = {"policy": "economy", "models": {SMALL: 1, LARGE: 2}, "switches": [switch]}
    return {"choices": [choice], "farthing": ours}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 3, "cost": 0.00000025}}
ANSWER = [
    delta("One", SMALL),
    delta(" two", LARGE, switched=True),
    delta(" three.", LARGE),
    finish(),
    USAGE,
]


def sse(*said: dict[str, Any], done: bool = True) -> str:
    lines = [f"data: {json.dumps(event)}\n\n" for event in said]
    return "".join([": a comment\n\n", *lines, "data: [DONE]\n\n" * done])


class Gateway:
    """Answers each chat request with the next of its answers, and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": SMALL}, {"id": "economy"}]})
        assert request.url.path == "/v1/chat/completions"
        self.asked.append(request)
        return self.answers.pop(0)

    @property
    def bodies(self) -> Bodies:
        return [json.loads(request.content) for request in self.asked]


def streamed(*said: dict[str, Any], done: bool = True) -> httpx.Response:
    return httpx.Response(200, text=sse(*said, done=done))


def talk(
    gateway: Callable[[httpx.Request], httpx.Response],
    *lines: str,
    colours: bool = False,
    **options: Any,
) -> tuple[str, str]:
    """What stood on the screen after these lines: the answers, and the notes on them."""
    left = iter(lines)

    def read() -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    kind: dict[str, Any] = {"width": 200}
    if colours:
        kind |= {"force_terminal": True, "color_system": "standard"}
    console, notes = (Console(file=io.StringIO(), **kind) for _ in range(2))
    with connect("gateway.test", httpx.MockTransport(gateway)) as http:
        Chat(http, console, notes, read, **options).run()
    return console.file.getvalue(), notes.file.getvalue()  # type: ignore[attr-defined]


def test_an_answer_comes_with_its_models_switches_and_cost() -> None:
    gateway = Gateway(streamed(*ANSWER))
    answer, notes = talk(gateway, "count", budget=Decimal("0.00001"), policy="entropy_switch;w=3")
    assert answer == "One two three.\n"
    assert "■ tiny-int8 1  ■ tiny 2  1 switch  $0.00000025 of $0.00001 (2.5%)" in notes
    (request,) = gateway.asked
    assert request.headers["x-debug"] == "1"
    assert request.headers["x-budget-usd"] == "0.00001"
    assert request.headers["x-policy"] == "entropy_switch;w=3"
    assert gateway.bodies == [
        {
            "model": "economy",
            "messages": [{"role": "user", "content": "count"}],
            "temperature": 0.2,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_each_model_writes_in_its_own_colour_and_the_legend_agrees() -> None:
    answer, notes = talk(Gateway(streamed(*ANSWER)), "count", "/help", colours=True)
    cyan, yellow, off = "\x1b[36m", "\x1b[33m", "\x1b[0m"
    assert f"{cyan}One{off}{yellow} two{off}{yellow} three.{off}" in answer
    assert f"{cyan}■ tiny-int8 1" in notes
    assert f"{cyan}written by tiny-int8{off}" in notes
    assert f"{yellow}written by tiny{off}" in notes


def test_a_model_s_colour_is_by_its_place_in_the_fleet_as_on_the_page() -> None:
    listed = [{"id": name, "farthing": {"kind": "model"}} for name in (LARGE, "other", SMALL)]
    gateway = Gateway(streamed(*ANSWER))

    def told(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            preset = {"id": "economy", "farthing": {"kind": "preset"}}
            return httpx.Response(200, json={"data": [*listed, preset]})
        return gateway(request)

    answer, _ = talk(told, "count", colours=True)
    fleet = {LARGE: 0, "other": 1, SMALL: 2}
    assert [colour(name, fleet).terminal for name in (LARGE, SMALL)] == ["cyan", "magenta"]
    cyan, magenta = "\x1b[36m", "\x1b[35m"
    assert f"{magenta}One" in answer and f"{cyan} two" in answer


def test_what_was_decided_around_an_answer_is_told_in_the_page_s_words() -> None:
    select = {"kind": "select", "model": LARGE, "token": 0, "detail": "4 of 7 gave this answer"}
    first = {"choices": [{"delta": {}}], "farthing": {"model": LARGE, "switch": select}}
    _, notes = talk(Gateway(streamed(first, *ANSWER)), "count")
    assert f"the best of several answers by {LARGE}: 4 of 7 gave this answer\n" in notes
    assert "1 switch" in notes


def test_in_a_pipe_there_are_no_colours() -> None:
    answer, notes = talk(Gateway(streamed(*ANSWER)), "count", "/help")
    assert "\x1b" not in answer + notes


def test_the_conversation_goes_on_until_it_is_cleared() -> None:
    gateway = Gateway(*(streamed(*ANSWER) for _ in range(3)))
    talk(gateway, "a", "b", "/clear", "c")
    first = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "One two three."}]
    said = [body["messages"] for body in gateway.bodies]
    assert said[1] == [*first, {"role": "user", "content": "b"}]
    assert said[2] == [{"role": "user", "content": "c"}]


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    hostile = "[bold]x[/bold]\x1b[2J\x1b]0;title\x07\x9b31m\u202eend\r\ttab\n\ud800"
    answer, _ = talk(Gateway(streamed(delta(hostile, SMALL), finish())), "count")
    assert answer.startswith("[bold]x[/bold][2J]0;title31mend tab\n")
    assert "end\ttab" in clean(hostile)


def test_white_space_is_kept() -> None:
    pieces = ["a", " ", "\n\n", "  b ", "\n", "x" * 500, " :smile: "]
    said = [delta(piece, SMALL) for piece in pieces]
    assert talk(Gateway(streamed(*said, finish())), "count")[0] == "".join(pieces) + "\n"


def test_the_budget_s_cut_is_said() -> None:
    cut = streamed(delta("One", SMALL), finish("length", reason="budget"), USAGE)
    assert "stopped by budget" in talk(Gateway(cut), "count")[1]


def test_a_refusal_is_said_and_the_chat_goes_on() -> None:
    error = {"error": {"message": "The budget does not pay for a prompt of 30 tokens"}}
    gateway = Gateway(
        httpx.Response(402, json=error),
        httpx.Response(502, text="<html>"),
        httpx.Response(500, json=["odd"]),
        streamed(*ANSWER),
    )
    answer, notes = talk(gateway, "a", "b", "c", "d")
    assert "does not pay for a prompt of 30 tokens" in notes
    assert "the gateway answered 502 Bad Gateway" in notes
    assert "did not say why" in notes
    assert answer == "One two three.\n"
    assert [len(body["messages"]) for body in gateway.bodies] == [1, 1, 1, 1]


@pytest.mark.parametrize("odd", ["data: {", "data: [1]"])
def test_a_stream_that_is_none_is_said(odd: str) -> None:
    assert "the stream holds" in talk(Gateway(httpx.Response(200, text=odd)), "a")[1]


def test_an_error_in_mid_stream_leaves_what_was_said() -> None:
    error = {"error": {"message": "the engine failed"}}
    gateway = Gateway(streamed(delta("One", SMALL), error), streamed(*ANSWER))
    answer, notes = talk(gateway, "a", "b")
    assert answer == "One\nOne two three.\n"
    assert "the engine failed" in notes
    assert gateway.bodies[1]["messages"][1] == {"role": "assistant", "content": "One"}


def test_an_answer_that_breaks_off_is_said() -> None:
    assert "broke off" in talk(Gateway(streamed(delta("One", SMALL), done=False)), "a")[1]


class Interrupted(httpx.SyncByteStream):
    """An answer during which the reader presses Ctrl-C."""

    closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield sse(delta("One", SMALL), delta(" two", LARGE, switched=True), done=False).encode()
        raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


def test_ctrl_c_stops_the_answer_and_not_the_chat() -> None:
    stream = Interrupted()
    gateway = Gateway(httpx.Response(200, stream=stream), streamed(*ANSWER))
    answer, notes = talk(gateway, "a", "^C", "b")
    assert stream.closed
    assert answer == "One two\nOne two three.\n"
    assert "■ tiny-int8  ■ tiny  1 switch  stopped by you" in notes
    assert "/quit or Ctrl-D leaves" in notes


def test_commands_change_what_is_asked() -> None:
    gateway = Gateway(*(streamed(*ANSWER) for _ in range(2)))
    lines = (f"/model {SMALL}", "/budget 1e-5", "/policy direct", "a")
    off = ("/budget off", "/policy off", "/model", "b", "/quit", "never read")
    _, notes = talk(gateway, *lines, *off)
    first, second = gateway.asked
    assert (first.headers["x-budget-usd"], first.headers["x-policy"]) == ("0.00001", "direct")
    assert not {"x-budget-usd", "x-policy"} & set(second.headers)
    assert {body["model"] for body in gateway.bodies} == {SMALL}
    assert f"asking {SMALL}; there are: {SMALL}, economy" in notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/model gpt-5", "there is no gpt-5; there are: tiny-int8, economy"),
        ("/budget -1", "a budget is an amount of USD"),
        ("/budget nan", "a budget is an amount of USD"),
        ("/budget 1e400", "a budget is an amount of USD"),
        ("/budget", "a budget is an amount of USD"),
        ("/policy entropÿ", "plain ASCII"),
        ("/dance", "there is no /dance"),
    ],
)
def test_a_wrong_command_is_said(line: str, message: str) -> None:
    assert message in talk(Gateway(), line)[1]


def test_no_gateway_ends_the_chat_with_what_to_do() -> None:
    def refused(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ChatFailed, match="no gateway answers at .*start one with `farthing serve`"):
        talk(refused)


@pytest.mark.parametrize("text", ["<html>", "{}", '{"data": [1]}'])
def test_another_server_ends_the_chat(text: str) -> None:
    with pytest.raises(ChatFailed, match="is not a gateway"):
        talk(lambda request: httpx.Response(200, text=text))
    with pytest.raises(ChatFailed, match="answered 404 Not Found"):
        talk(lambda request: httpx.Response(404, text="nothing"))


def test_a_gateway_that_goes_away_is_said() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": SMALL}]})
        raise httpx.ReadError("")

    assert "broke off: ReadError" in talk(gone, "a")[1]


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("localhost:8080", "http://localhost:8080/v1/"),
        ("https://gateway.test/v1/", "https://gateway.test/v1/"),
        ("http://gateway.test/", "http://gateway.test/v1/"),
    ],
)
def test_an_address_is_taken_with_or_without_v1(url: str, base: str) -> None:
    with connect(url) as http:
        assert str(http.base_url) == base


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ChatFailed, match="is not an address"):
        connect("http://gateway:port")


def test_events_end_with_done() -> None:
    assert list(events(iter(sse(USAGE).splitlines() + ["data: {"])))[0]["choices"] == []


def test_an_answer_s_cost_stays_decimal() -> None:
    answer = Answer()
    for event in events(iter(sse(USAGE).splitlines())):
        answer.take(event)
    assert answer.cost == Decimal("0.00000025")


def test_an_amount_is_decimal() -> None:
    assert amount("1e-5") == Decimal("0.00001")


def test_a_key_is_sent_with_every_request_and_refused_if_it_cannot_be_sent() -> None:
    sent: list[str | None] = []

    def gateway(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("authorization"))
        return httpx.Response(200, json={})

    for key in (None, "sk-farthing-x"):
        with connect("gateway.test", httpx.MockTransport(gateway), key=key) as http:
            http.get("models")
    assert sent == [None, "Bearer sk-farthing-x"]
    with pytest.raises(ChatFailed, match="plain ASCII"):
        connect("gateway.test", key="schlüssel\n")
