"""A fleet of scripted vLLM servers that do all that a gateway asks of such, and its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app import catalog
from app.vllm_plugins import asks
from tests.policies.measured import measured
from tests.upstreams.faults import FAULTS
from tests.upstreams.server import Upstream, wait_for

PRICES = {"small": "input = 1, cached_input = 0.1, output = 2"}
PRICES |= dict.fromkeys(("frail", "slow"), PRICES["small"])
DEAR = "input = 10, cached_input = 1, output = 20, drafted = 3, predicted = 4"
# Accelerator-seconds a million tokens, of the models that say them.
GPU = "gpu_seconds = { input = 4, cached_input = 1, output = 300, predicted = 2 }"
SAYS_GPU = ("large", "foreseen")
PRESETS = {
    "economy": 'policy = "entropy_switch"\nsmall = "small"\nlarge = "large"\nraise_at = 2.5\n'
    "lower_at = 1.0\nwindow = 1\nd_min = 10\nexpected_tokens = 53",
    "sturdy": 'policy = "entropy_switch"\nsmall = "frail"\nlarge = "large"\nraise_at = 2.5\n'
    "lower_at = 1.0\nwindow = 1\nd_min = 10\nexpected_tokens = 53",
    "swift": 'policy = "speculative"\ntarget = "guessed"\nlongest = 4',
    "foresight": 'policy = "kv_prediction"\ntarget = "foreseen"\nleast = 16\nlast = 4\nfirst = 1',
    "ladder": 'policy = "cascade"\nmodels = ["small", "large"]\nthreshold = 0.6',
    "several": 'policy = "best_of_n"\nmodel = "large"\nn = 3\nchoose = "logprob"',
    "polished": 'policy = "refine"\nmodel = "small"\nrounds = 1\ncheck = "logprob"',
    "brisk": 'policy = "precision"\nmodels = ["large", "small"]',
    "brief": 'policy = "compress"\ntarget = "large"\nscorer = "small"\nleast = 12\nratio = 0.7',
}


class Fleet:
    """The servers, by the name of the model; `file` describes them."""

    def __init__(self, folder: Path) -> None:
        guesses = asks.Speculating(longest=4, sampled=True)
        predicts = asks.Predicting({"layers-20": 0.5})
        self.by_model = {
            "small": [Upstream("small", plugin=True)],
            "large": [Upstream("large"), Upstream("large")],
            "guessed": [Upstream("large", "guessed", speculation=guesses)],
            "foreseen": [Upstream("large", "foreseen", prediction=predicts)],
            "frail": [Upstream("small", "frail", plugin=True)],
            "slow": [Upstream("small", "slow", pace=0.01)],
            "vectors": [Upstream("small", "vectors")],
            "hosted": [Upstream("large", "hosted")],
        }
        self.file = folder / "fleet.toml"
        self.file.write_text("\n".join([*map(self._card, self.by_model), *_presets()]))
        self._survey(folder / "profile.json")

    def _survey(self, profile: Path) -> None:
        """What was measured of some of its ways to answer."""
        found = measured(catalog.read(self.file), large=1.0, economy=0.8, small=0.5).profile
        assert found is not None
        profile.write_text(found.model_dump_json())
        with self.file.open("a") as file:
            file.write(f'\n[planner]\nprofile = "{profile}"\n')

    def fails(self, often: int) -> None:
        """`frail` breaks off every fifth answer or so, and a server of `large` falls away at times:
        there another one takes over, before the first byte."""
        for skip in range(3, 5 * often, 5):
            self.by_model["frail"][0].breaks(FAULTS["reset in mid-answer"], skip=skip)
        for skip in range(5, 9 * often, 9):
            self.by_model["large"][0].breaks(FAULTS["status 503"], skip=skip)

    def works_on(self, seed: int) -> bool:
        """Whether a server has got a request with this seed."""
        requests = [request for upstream in self.everyone for request in upstream.requests]
        return any((request.body or {}).get("seed") == seed for request in requests)

    @property
    def everyone(self) -> list[Upstream]:
        return [upstream for upstreams in self.by_model.values() for upstream in upstreams]

    def known_to(self, workers: int) -> bool:
        """Whether so many processes have looked at every server."""
        return all(
            sum(request.path == "/v1/models" for request in upstream.requests) >= workers
            for upstream in self.everyone
        )

    def quiet(self) -> None:
        """No server works any more."""
        wait_for(lambda: not any(u.open for u in self.everyone), what="servers are idle")

    def _card(self, name: str) -> str:
        urls = ", ".join(f'"{upstream.url}"' for upstream in self.by_model[name])
        lines = [f"[models.{name}]", f"urls = [{urls}]", 'family = "stand-in"']
        lines.append('engine = "openai"\ncontext = 4096' if name == "hosted" else 'engine = "vllm"')
        lines.append(f"price = {{ {PRICES.get(name, DEAR)} }}")
        lines += [GPU] if name in SAYS_GPU else []
        lines += ['embeds = "only"'] if name == "vectors" else []
        return "\n".join([*lines, ""])


def _presets() -> list[str]:
    return [f"[presets.{name}]\n{keys}\n" for name, keys in PRESETS.items()]


@contextmanager
def running(folder: Path) -> Iterator[Fleet]:
    """A fleet that serves."""
    fleet = Fleet(folder)
    for upstream in fleet.everyone:
        upstream.start()
    try:
        yield fleet
    finally:
        for upstream in fleet.everyone:
            upstream.stop()
