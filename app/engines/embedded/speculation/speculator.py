"""Who guesses what for which sequence of a batch, and what is learned from the outcome."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.engines.embedded.sequence import RunningSequence
from app.engines.embedded.speculation.acceptance import Acceptance, Draft
from app.engines.embedded.speculation.goodput import (
    Brake,
    Chances,
    Pace,
    Prospect,
    StepCost,
    Switch,
)
from app.engines.embedded.speculation.guessing import DraftModel, Pen, guess, kind
from app.engines.embedded.speculation.lengths import Rule, make_rule
from app.engines.embedded.speculation.lookup import LONGEST_MATCH, Lookup, Match
from app.types import Speculation

LONGEST = 16
"""Tokens of one draft, at most."""

# Share of looked-up tokens that are accepted, by the tokens that matched before them (0, 1, ...),
# where what matched stood once before, was followed twice by the same, or by something else:
# measured on Spec-Bench with smollm2-135m, greedily. Where to begin; what is measured counts.
_LONG = (0.89,) * (LONGEST_MATCH - 7)
_MATCHES = (
    *(0.26, 0.34, 0.55, 0.64, 0.73, 0.74, 0.79, 0.85, *_LONG),
    *(0.26, 0.50, 0.65, 0.65, 0.73, 0.74, 0.83, 0.85, *_LONG),
    *(0.26, 0.16, 0.33, 0.47, 0.59, 0.72, 0.80, 0.86, *_LONG),
)
_CERTAIN = 2  # tokens of the shortest match that is used where nothing is weighed
# How much more than its cost a looked-up guess must promise: chances are estimates, and of those
# just above their cost more are too high than too low.
_MARGIN = 1.25
_DOUBTFUL = 0.5  # chance of a looked-up guess, under which a draft model that pays goes first
_NONE = Match(0, 0)
_IDLE = 256  # steps without a guess, after which one is made to see what it costs now
_STEADY = 8  # steps in one size of batch, before a draft model begins to read: it may be passing
_CATCH_UP = 64  # tokens that it reads in one step at most
_WITH_GUESS = 16  # and in the pass that makes a guess


@dataclass
class _Plan:
    """What is known of one sequence."""

    asked: Speculation
    acceptance: Acceptance
    lookup: Lookup | None
    matches: Chances
    rule: Rule
    model: DraftModel | None
    switch: Switch
    chances: Chances | None  # of the model's guesses
    overall: Chances  # of any guess of the model
    # By size of the batch, how much of the prompt's end the model reads; 0: it does not guess.
    windows: dict[int, int] = field(default_factory=dict)
    pen: Pen | None = None
    # Of the present draft:
    draft: Draft = field(default_factory=Draft)
    by_model: int = 0  # of its guesses the first so many are the model's
    match: Match = _NONE  # that the looked-up guesses follow
    survival: float = 1.0  # chance that all guesses so far are accepted
    spent: float = 0.0  # seconds of the draft model

    def begin(self) -> None:
        self.draft, self.by_model, self.match = Draft(), 0, _NONE
        self.survival, self.spent = 1.0, 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did, and how long it took."""

    sequences: int  # that wrote
    rows: int  # beyond one for each
    attended: int  # tokens before each row, all rows together
    written: int  # tokens
    verifying: float  # seconds of the model's pass
    seconds: float  # and of all, the guessing too


class Speculator:
    """Guesses for the sequences of one model. Belongs to the thread that drives it."""

    def __init__(
        self,
        cost: StepCost,
        drafts: Mapping[str, DraftModel] | None = None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`cost`: of the model's own passes, in seconds by the clock; `drafts`: the models that
        may guess for it."""
        self.clock = clock
        self.drafts = dict(drafts or {})
        self.cost = cost
        self._plans: dict[RunningSequence, _Plan] = {}
        self._matches = Chances(_MATCHES, 40.0)
        self._overall = {name: Chances((0.45,), 40.0) for name in self.drafts}
        self._pace = Pace()
        # By the size of the batch, which is 1, 2, 3 to 4, 5 to 8, ...: what a draft of a model
        # wins, in all sequences; and whether to guess at all.
        self._size, self._steady = 0, _STEADY  # and for how many steps it has been so
        self._wins: defaultdict[tuple[str, int], Prospect] = defaultdict(Prospect)
        self._sizes: defaultdict[int, Brake] = defaultdict(Brake)
        self._written = 0  # tokens, of all sequences
        self._idle = 0  # steps since the last guess

    def draft(self, asking: Sequence[RunningSequence], batch: int) -> dict[RunningSequence, Draft]:
        """Guesses for these sequences of a batch of so many, as far as they pay; perhaps none."""
        size = (batch - 1).bit_length()
        self._steady = self._steady + 1 if size == self._size else 0
        self._size = size
        plans = {sequence: self._plan(sequence) for sequence in asking}
        for plan in plans.values():
            plan.begin()
        if not self._sizes[self._size].wants(self._written):
            plans = {s: plan for s, plan in plans.items() if not plan.asked.adaptive}
        length = sum(len(sequence.tokens) for sequence in asking) * batch // max(len(asking), 1)
        pace = self._pace.tokens_a_second(batch, self.cost.seconds(batch, 0, length))
        for sequence, plan in plans.items():
            self._look_up(sequence, plan, pace)
        for model in self.drafts.values():
            self._guess(model, {s: p for s, p in plans.items() if p.model is model}, pace)
        for sequence, plan in plans.items():
            if plan.by_model:
                self._look_up(sequence, plan, pace)
        return {sequence: self._plans[sequence].draft for sequence in asking}

    def acceptance(self, sequence: RunningSequence) -> Acceptance:
        """The rule by which its guesses are judged."""
        return self._plans[sequence].acceptance

    def judged(self, sequence: RunningSequence, kept: Sequence[bool]) -> None:
        """The first guesses of its draft were judged so, and the sequence has grown by what was
        written; the rest was not looked at."""
        plan = self._plans[sequence]
        accepted = sum(kept)
        for place, good in enumerate(kept):
            if place >= plan.by_model:
                plan.matches.learn(plan.match.kind(place - plan.by_model), good)
            elif plan.pen is not None and plan.chances is not None:
                plan.chances.learn(kind(plan.pen, place), good)
                plan.overall.learn(0, good)
        if plan.pen is not None:
            plan.pen.settle(min(accepted, plan.by_model))
        if plan.by_model:
            plan.rule.learn(min(accepted, plan.by_model), plan.by_model)
        if plan.spent and plan.model is not None:
            # What the model won for this draft, less what could have been written meanwhile.
            took = plan.spent + plan.by_model * self.cost.row(len(sequence.tokens))
            won = min(accepted, plan.by_model) - took * self._pace.last
            plan.switch.learn(won, sequence.written)
            self._wins[plan.model.name, self._size].learn(won)

    def stepped(self, step: Step) -> None:
        """Learn what a step cost, and how many tokens it wrote."""
        self.cost.observe(step.sequences, step.rows, step.attended, step.verifying)
        each = step.attended * step.sequences // (step.sequences + step.rows)
        plain = self.cost.seconds(step.sequences, 0, each)
        self._pace.observe(step.sequences, step.written, step.seconds, plain)
        self._written += step.written
        self._idle = 0 if step.rows else self._idle + 1
        if step.rows:
            # What guessing won in this step, all that it took counted: it decides for the next.
            won = step.written / step.sequences - step.seconds / plain
            self._sizes[self._size].learn(won * step.sequences**0.5, self._written)

    def forget(self, sequence: RunningSequence) -> None:
        """The sequence is over: give back what is held for it."""
        plan = self._plans.pop(sequence, None)
        if plan is not None and plan.pen is not None and plan.model is not None:
            plan.pen.drop()
            # It may have been another's prompt that it began with; a prompt's end is nobody's.
            whole = plan.pen.start == 0
            plan.model.memory.release(plan.pen.cache, plan.pen.read, keep=whole)

    def _plan(self, sequence: RunningSequence) -> _Plan:
        plan = self._plans.get(sequence)
        if plan is None:
            asked = sequence.call.decoding.speculation or Speculation()
            model, expected = self.drafts.get(asked.draft), Prospect.HOPE
            if model is not None:
                expected = max(self._wins[model.name, self._size].mean, expected)
            plan = self._plans[sequence] = _Plan(
                asked=asked,
                acceptance=Acceptance(asked),
                lookup=Lookup() if asked.lookup else None,
                matches=self._matches.child(12.0),
                rule=make_rule(asked, min(asked.longest, LONGEST), _fitted(model)),
                model=model,
                switch=Switch(expected),
                chances=None if model is None else model.chances.child(12.0),
                overall=Chances((0.0,), 1.0)
                if model is None
                else self._overall[model.name].child(8.0),
            )
        return plan

    def _lets(self, sequence: RunningSequence, plan: _Plan, model: DraftModel) -> bool:
        """Whether the model guesses for the sequence in a batch of the present size, which may be
        another than the one that it began in."""
        if not plan.asked.adaptive:
            plan.windows[self._size] = Prospect.LONG
            return True
        if self._size not in plan.windows:
            if self._steady < _STEADY:
                return False
            behind = len(sequence.tokens) if plan.pen is None else len(plan.pen.pending)
            prospect = self._wins[model.name, self._size]
            plan.windows[self._size] = prospect.window(behind, model.reading * self._pace.last)
        return plan.windows[self._size] > 0 and plan.switch.wants(sequence.written)

    def _room(self, sequence: RunningSequence, plan: _Plan) -> int:
        """How many more guesses the draft may have: the model adds one token of its own."""
        left = sequence.capacity - len(sequence.tokens) - 1
        return min(plan.asked.longest, LONGEST, left) - len(plan.draft.ids)

    def _look_up(self, sequence: RunningSequence, plan: _Plan, pace: float) -> None:
        """Looked-up guesses: all of the draft, or what follows the model's."""
        room = self._room(sequence, plan)
        if plan.lookup is None or room < 1:
            return
        ahead = plan.draft.ids
        if not ahead:
            plan.lookup.extend(sequence.tokens)
        match = plan.lookup.match(sequence.tokens, ahead)
        if match is None:
            return
        if not plan.asked.adaptive:
            count = room if match.length >= _CERTAIN else 0
        else:
            least = _MARGIN * self.cost.row(len(sequence.tokens)) * pace
            if self._idle > _IDLE:
                least, room = 0.0, 1
            count = self._worth(plan, match, room, least)
        if count:
            plan.match = match
            ids = plan.lookup.guesses(sequence.tokens, match, count, ahead)
            plan.draft.choose(_likely(ids, sequence, ahead))

    def _worth(self, plan: _Plan, match: Match, room: int, least: float) -> int:
        """How many looked-up guesses are likely enough to stay; none where the draft model is
        expected to win more tokens than they would."""
        survival, count, won = plan.survival, 0, 0.0
        while count < room:
            survival *= plan.matches[match.kind(count)]
            if survival < least:
                break
            won += survival - least
            count += 1
        lets = plan.model is not None and plan.windows.get(self._size, 0) > 0
        if plan.by_model or not lets or not plan.switch.on:
            return count
        doubtful = plan.matches[match.kind(0)] < _DOUBTFUL
        return 0 if doubtful or won < plan.switch.mean else count

    def _guess(
        self, model: DraftModel, plans: Mapping[RunningSequence, _Plan], pace: float
    ) -> None:
        """The model's guesses for those without looked-up ones."""
        limits: dict[RunningSequence, int] = {}
        active: list[tuple[RunningSequence, _Plan, Pen]] = []
        for sequence, plan in plans.items():
            room = self._room(sequence, plan)
            if plan.draft.ids or room < 1:
                continue
            if not self._lets(sequence, plan, model):
                continue
            pen = self._pen(sequence, plan, model)
            if pen is None or pen.room < 1:
                continue
            if self._caught_up(model, pen):
                limits[sequence] = min(plan.rule.begin(), room, pen.room)
                active.append((sequence, plan, pen))
        started = list(active)
        while active:
            began = model.clock()
            told = any(plan.asked.adaptive or plan.asked.rule in _TOLD for _, plan, _ in active)
            guess(model, [pen for _, _, pen in active], told)
            each = (model.clock() - began) / len(active)
            going = []
            for sequence, plan, pen in active:
                plan.spent += each
                if self._goes_on(sequence, plan, pen, limits[sequence], each, pace):
                    going.append((sequence, plan, pen))
            active = going
        for sequence, plan, pen in started:
            self._take(plan, pen, model, self.cost.row(len(sequence.tokens)) * pace)

    def _goes_on(
        self,
        sequence: RunningSequence,
        plan: _Plan,
        pen: Pen,
        limit: int,
        cost: float,
        pace: float,
    ) -> bool:
        made = pen.guesses[-1]
        goes_on = plan.rule.goes_on(made)  # first: it counts what it sees
        if plan.chances is not None:
            plan.survival *= plan.chances[kind(pen, -1)]
        if len(pen.guesses) >= limit or sequence.ends_with(made.id) or not goes_on:
            return False
        hoped = plan.survival * plan.overall[0]
        dear = (cost + self.cost.row(len(sequence.tokens))) * pace
        return not plan.asked.adaptive or hoped > dear

    def _take(self, plan: _Plan, pen: Pen, model: DraftModel, least: float) -> None:
        """Put the guesses into the draft; those that are not likely enough are left out."""
        plan.draft.columns = model.columns
        count = len(pen.guesses)
        if pen.sampler.held is not None and not pen.drawn:
            count = pen.sampler.held.permits([made.id for made in pen.guesses])
        if plan.asked.adaptive and not pen.drawn and plan.chances is not None:
            # Not where guesses are drawn: whether one is judged must not depend on what it is.
            survival = [1.0]
            for place in range(count):
                survival.append(survival[-1] * plan.chances[kind(pen, place)])
            while count and survival[count] < least:
                count -= 1
            plan.survival = survival[count]
        for made, drawn_from in zip(pen.guesses[:count], pen.drawn_from, strict=False):
            if drawn_from is None:
                plan.draft.choose([made.id])
            else:
                plan.draft.draw(made.id, drawn_from, made.probability)
        plan.by_model = count

    def _pen(self, sequence: RunningSequence, plan: _Plan, model: DraftModel) -> Pen | None:
        """None where the draft model's memory has no place for the sequence."""
        if plan.pen is None:
            window = min(plan.windows[self._size], model.decoder.config.context // 2)
            start = max(0, len(sequence.tokens) - window)
            capacity = min(sequence.capacity - start, model.decoder.config.context)
            cache = model.memory.acquire(sequence.tokens[start:], capacity)
            if cache is None:
                return None
            sampling = sequence.call.sampling
            drawn = not sequence.sampler.greedy and sampling.seed is None
            headed = model.head is not None and model.head.sees == "before"
            pen = Pen(cache, sequence.sampler, drawn, start, sequence.tokens, headed=headed)
            plan.pen = pen
        plan.pen.begin()
        return plan.pen

    def _caught_up(self, model: DraftModel, pen: Pen) -> bool:
        """Read what the sequence has gained without it; what is much takes several steps, what is
        little is read with the first guess."""
        behind = len(pen.pending)
        if behind > _WITH_GUESS:
            model.read(pen, min(behind - 1, _CATCH_UP))
        return behind - 1 <= _CATCH_UP


_TOLD = ("confidence", "adaedl", "head")  # rules that go by what the draft model thinks


def _fitted(model: DraftModel | None) -> float | None:
    return None if model is None or model.head is None else model.head.about.level


def _likely(ids: list[int], sequence: RunningSequence, ahead: list[int]) -> list[int]:
    """Those up to the answer's end, and up to one that its form refuses behind those `ahead`."""
    held = sequence.sampler.held
    if held is not None:
        ids = ids[: max(held.permits([*ahead, *ids]) - len(ahead), 0)]
    for place, id in enumerate(ids):
        if sequence.ends_with(id):
            return ids[: place + 1]
    return ids
