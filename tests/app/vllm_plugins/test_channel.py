"""Datagrams from engine to API server: nothing waits, nothing raises."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.vllm_plugins import channel
from app.vllm_plugins.channel import Placed, Receiver, Seen, Sender


def seen(token: int, call: str = "c") -> Seen:
    return Seen(call, token, 1.5, None)


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # a short one; a socket's path has a limit
        yield str(Path(folder) / "made" / "socket")


@pytest.fixture
def receiver(path: str) -> Iterator[Receiver]:
    receiver = Receiver(path)
    yield receiver
    receiver.close()


def close(sender: Sender) -> None:
    sender.close()


@pytest.fixture
def sender(path: str) -> Iterator[Sender]:
    sender = Sender(path)
    yield sender
    close(sender)


def test_a_step_arrives_whole(sender: Sender, receiver: Receiver) -> None:
    step = [Seen("a", 0, 0.1, None), Placed("c", 40, 2), Seen("b", 7, 2.5, 2.25)]
    sender.send(step)
    assert list(receiver.drain()) == step
    assert list(receiver.drain()) == []


def test_a_large_step_takes_several_datagrams(sender: Sender, receiver: Receiver) -> None:
    step = [seen(token, "c" * 100) for token in range(1000)]
    sender.send(step)
    assert list(receiver.drain()) == step


def test_the_socket_is_its_owner_s_alone(path: str, receiver: Receiver) -> None:
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert Path(path).parent.stat().st_mode & 0o777 == 0o700


def test_what_an_earlier_server_left_is_replaced(path: str) -> None:
    first, second = Receiver(path), Receiver(path)
    sender = Sender(path)
    sender.send([seen(0)])
    assert (list(first.drain()), list(second.drain())) == ([], [seen(0)])
    first._socket.close()
    close(sender)
    second.close()
    assert not os.path.exists(path)


def test_without_a_reader_it_is_dropped(path: str, sender: Sender) -> None:
    sender.send([seen(0)])
    Receiver(path).close()
    sender.send([seen(1)])
    receiver = Receiver(path)
    sender.send([seen(2)])
    assert list(receiver.drain()) == [seen(2)]
    receiver.close()


def test_what_a_slow_reader_has_no_place_for_comes_later(
    sender: Sender, receiver: Receiver
) -> None:
    steps = [[seen(token)] for token in range(600)]  # more than any kernel queues
    for step in steps[:-1]:
        sender.send(step)
    early = list(receiver.drain())
    assert 0 < len(early) < 599
    sender.send(steps[-1])
    assert early + list(receiver.drain()) == [seen(token) for token in range(600)]


def test_what_waits_is_bounded(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_KEPT", 20)
    for token in range(1000):
        sender.send([seen(token)])
    early = list(receiver.drain())
    sender.send([seen(1000)])
    assert list(receiver.drain()) == [seen(token) for token in range(981, 1001)]
    assert early == [seen(token) for token in range(len(early))]


@pytest.mark.parametrize("junk", [b"", b"{", b"7", b"[[1]]", b'[["c", "x", 1, null]]', b"\xff"])
def test_what_is_not_ours_is_passed_over(path: str, receiver: Receiver, junk: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.sendto(junk, path)
        other.sendto(b'[["c", 0, 1.5, null]]', path)
    assert list(receiver.drain()) == [seen(0)]


def test_a_flood_does_not_hold_the_reader(
    path: str, receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_READS", 2)
    for token in range(5):
        sender.send([seen(token)])
    assert list(receiver.drain()) == [seen(0), seen(1)]
