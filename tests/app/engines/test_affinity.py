"""Prompts that begin alike share links, and what is remembered is bounded."""

from hypothesis import given
from hypothesis import strategies as st

from app.engines.affinity import Affinity, links
from app.types import Call, Message

MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}),
    max_size=6,
)


def shared(a: tuple[bytes, ...], b: tuple[bytes, ...]) -> int:
    return sum(x == y for x, y in zip(a, b, strict=False))


@given(MESSAGES, MESSAGES, MESSAGES)
def test_as_many_links_as_leading_messages_are_shared(
    begin: list[Message], a: list[Message], b: list[Message]
) -> None:
    one, two = links(Call("m", (*begin, *a))), links(Call("m", (*begin, *b)))
    assert len(one) == len(begin) + len(a)
    alike = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        alike += 1
    assert shared(one, two) == len(begin) + alike


def test_the_order_of_a_message_s_keys_is_nothing() -> None:
    one = links(Call("m", ({"role": "user", "content": "x"},)))
    assert one == links(Call("m", ({"content": "x", "role": "user"},)))


def test_a_bare_prompt_shares_whole_blocks() -> None:
    text = "abcdefgh" * 100
    assert shared(links(Call("m", prompt=text)), links(Call("m", prompt=text + "more"))) == 3
    assert links(Call("m", prompt="short")) == ()
    ids = tuple(range(200))
    assert shared(links(Call("m", prompt=ids)), links(Call("m", prompt=(*ids[:150], 7)))) == 2
    assert shared(links(Call("m", prompt=ids)), links(Call("m", prompt=(7, *ids)))) == 0


def test_odd_content_has_links() -> None:
    odd = (
        {
            "role": "user",
            "content": "\ud800",
            "parts": {
                1,
            },
        },
        {"role": "tool", "content": None},
    )
    assert len(links(Call("m", odd))) == 2
    assert len(links(Call("m", prompt="\ud800" * 300))) == 1


def test_long_prompts_have_no_more_links_than_tell_them_apart() -> None:
    assert len(links(Call("m", ({"role": "user", "content": "x"},) * 500))) == 128
    assert len(links(Call("m", prompt="x" * 100_000))) == 128


def test_the_longest_known_beginning_comes_first() -> None:
    affinity = Affinity()
    affinity.read((b"1", b"2"), "a", ["a", "b"])
    affinity.read((b"1", b"3"), "b", ["a", "b"])
    assert list(affinity.of_prompt((b"1", b"2", b"9"))) == [("a",), ("a", "b")]
    assert list(affinity.of_prompt((b"9",))) == []


def test_servers_that_are_gone_are_forgotten_as_others_come() -> None:
    affinity = Affinity()
    affinity.read((b"1",), "a", ["a"])
    affinity.read((b"1",), "b", ["b"])
    assert list(affinity.of_prompt((b"1",))) == [("b",)]


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    affinity = Affinity(10)
    for at in range(100):
        affinity.wrote(str(at), "a")
        affinity.read((b"all", str(at).encode()), "a", ["a"])
    assert len(affinity) == 20
    assert affinity.of_answer("99") == "a"
    assert affinity.of_answer("1") is None
    assert list(affinity.of_prompt((b"all",)))  # used all the time
    assert not list(affinity.of_prompt((b"1",)))


def test_what_was_just_read_again_is_not_the_oldest() -> None:
    affinity = Affinity(3)
    for text in (b"1", b"2", b"3", b"1", b"4"):
        affinity.read((text,), "a", ["a"])
    assert [bool(list(affinity.of_prompt((text,)))) for text in (b"1", b"2")] == [True, False]


def test_an_answer_without_an_id_is_not_remembered() -> None:
    affinity = Affinity()
    affinity.wrote("", "a")
    assert affinity.of_answer("") is None
