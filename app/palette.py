"""The colours and words in which the terminal and the page tell who wrote what, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.reasons import Kind
from app.types import HAND_OVERS


@dataclass(frozen=True)
class Colour:
    """A model's: its name in a terminal, and as a page has it in light and dark."""

    terminal: str
    light: str  # 4.5 : 1 on white, as text
    dark: str  # and on the page's dark ground


COLOURS = (
    Colour("cyan", "#0e7490", "#22d3ee"),
    Colour("yellow", "#a16207", "#facc15"),
    Colour("magenta", "#a21caf", "#e879f9"),
    Colour("green", "#15803d", "#4ade80"),
    Colour("blue", "#1d4ed8", "#8ab4ff"),
    Colour("red", "#b91c1c", "#fca5a5"),
)

WORDS: Mapping[str, str] = {
    "written_by": "written by {model}",
    "switch": "{count} switch",
    "switches": "{count} switches",
    "stopped_by": "stopped by {reason}",
    "broke_off": "broke off",
    "no_budget": "no budget",
    "an_answer": "{usd} an answer",
    "of_budget": "{cost} of {budget} ({share})",
    "own_policy": "policy: the model’s own",
}

DECISIONS: Mapping[Kind, str] = {
    "switch": "{model} goes on",
    "steer": "{model} goes on, for want of money",
    "failover": "{model} goes on, as the other one failed",
    "plain": "nothing was guessed ahead, predicted or left out",
    "predict": "the prompt’s keys and values were predicted",
    "repair": "what was predicted of the prompt has been computed",
    "whole": "{model} answers alone",
    "keep": "{model}’s answer is kept",
    "escalate": "not sure enough: {model} answers",
    "select": "the best of several answers by {model}",
    "refine": "the best version by {model}",
    "compress": "some of the prompt was left out for {model}",
    "precision": "{model} answers at the present load",
    "plan": "{model} was chosen for this request",
    "route": "{model} answers a request like this",
}


def colour(model: str, fleet: Mapping[str, int]) -> Colour:
    """That of a model, by its place in the fleet: the same wherever the fleet is shown.

    A model that `fleet` does not hold comes after all that it does.
    """
    return COLOURS[fleet.get(model, len(fleet)) % len(COLOURS)]


def stylesheet() -> str:
    """The colours as custom properties of CSS, `--m0` to `--m5`, in light and dark."""

    def rules(shade: str) -> str:
        return "".join(f"--m{at}:{getattr(one, shade)};" for at, one in enumerate(COLOURS))

    dark = rules("dark")
    return (
        f":root{{{rules('light')}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
        + "".join(f".m{at}{{--m:var(--m{at})}}\n" for at in range(len(COLOURS)))
    )


def told() -> dict[str, object]:
    """All that a page has to know, as JSON."""
    return {
        "colours": len(COLOURS),
        "words": dict(WORDS),
        "decisions": dict(DECISIONS),
        "handOvers": list(HAND_OVERS),
    }
