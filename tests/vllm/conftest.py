"""Two real vLLM servers for the session, started when a test first wants them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.vllm.two_servers import ByHand, catalog
from tests.vllm.two_servers import serving as serving_gateway
from tests.vllm_servers import VLLMServer, serving

FLAGS = ("--max-logprobs", "-1", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
# Prompts of more tokens are read in pieces.
PIECES = ("--max-num-batched-tokens", "256", "--max-num-seqs", "16")


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VLLMServer, ...]]:
    """The small server and the large one, started at once: each has a core of its own."""
    logs = tmp_path_factory.mktemp("vllm")
    servers = serving("int8", 0, logs, FLAGS), serving("fp32", 1, logs, (*FLAGS, *PIECES))
    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            started = tuple(pool.map(stack.enter_context, servers))
        yield started


@pytest.fixture(scope="session")
def small_server(both: tuple[VLLMServer, ...]) -> VLLMServer:
    """The default model in int8."""
    return both[0]


@pytest.fixture(scope="session")
def large_server(both: tuple[VLLMServer, ...]) -> VLLMServer:
    """The default model in fp32."""
    return both[1]


@pytest.fixture(scope="session")
def gateway(
    small_server: VLLMServer, large_server: VLLMServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of a gateway over the two."""
    folder = tmp_path_factory.mktemp("gateway")
    with serving_gateway(catalog(small_server, large_server), folder) as http:
        yield http


@pytest.fixture(scope="session")
def small(small_server: VLLMServer) -> Iterator[ByHand]:
    """The small server, asked without the gateway."""
    by_hand = ByHand(small_server)
    yield by_hand
    by_hand.http.close()


@pytest.fixture(scope="session")
def large(large_server: VLLMServer) -> Iterator[ByHand]:
    """The large server, asked without the gateway."""
    by_hand = ByHand(large_server)
    yield by_hand
    by_hand.http.close()
