"""A cheap draft guesses the next tokens, and the model that answers reads them in one pass."""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from app.catalog import Catalog, Price
from app.errors import BadRequest, EngineUnsupported, Overloaded, Unaffordable
from app.types import (
    LEAST_LENIENCE,
    AcceptanceRule,
    Call,
    Chunk,
    Decision,
    Decoding,
    Fidelity,
    LengthRule,
    MeteredEngine,
    Speculates,
    Speculation,
    Usage,
)
from policies.base import Policy

_MAY_COST = 0.1
"""Of what a budget buys of an answer: the part that guessing ahead may cost where it is short."""

_REFUSED = (BadRequest, Overloaded)
"""What a call raises that is not taken; in mid-answer, what is written stays the answer."""


def _name(value: Any) -> Any:
    return "" if value == "none" else value


@dataclass(frozen=True, slots=True)
class _Money:
    """How far a budget lets an answer be guessed ahead; all money in 1e-12 USD.

    A budget that is short pays for stretches: calls that end by themselves, each no longer than
    what it costs at worst leaves enough for plain decoding to write `keep` tokens in all.
    """

    price: Price
    longest: int  # tokens guessed for one pass
    prompt: int  # tokens
    wanted: int  # tokens of the answer
    keep: int  # of these, to be written surely
    whole: bool  # the answer cannot be handed on from call to call

    def stretch(self, allowance: int, written: int) -> int:
        """Tokens that the next call may write; 0: no such call; sys.maxsize: all the rest.

        `allowance`: as the Meter says it, after so many tokens of the answer.
        """
        if allowance == sys.maxsize:
            return sys.maxsize
        price, left = self.price, self.wanted - written
        read = (self.prompt + written) * price.input
        has = allowance * price.output - (0 if written else read)  # when it will have been read
        if left * price.written(self.longest) <= has:
            return sys.maxsize
        spare = has - max(self.keep - written, 0) * price.output - read
        # Each token may cost a draft in vain, and is read once more by the call that goes on.
        each = self.longest * price.guess + price.input
        number = spare // each if each else left
        if number <= self.longest or self.whole:
            return 0  # too little for a draft
        return number if number < left else sys.maxsize


@dataclass(slots=True)
class _Answer:
    """An answer that is being guessed ahead."""

    cut: Chunk  # how it ends if nothing more can be written
    written: list[int] = field(default_factory=list)
    ahead: bool = True  # guessing may go on
    over: bool = False


class Speculative(Policy):
    """Speculative decoding (Leviathan et al. 2023, Chen et al. 2023): the same answer, sooner.

    What ends a draft is the engine's rule, at best SpecDec++'s acceptance head (Huang et al. 2024,
    arXiv 2405.19715). With `acceptance` other than exact more guesses stay than the model would
    have written, as DistillSpec's lenience has it (Zhou et al. 2023, arXiv 2310.08461).

    An option that is not given is as the engine can best. An engine that guesses nothing ahead
    answers plainly, as `direct` has it, and the answer says so; an option that it cannot do is
    refused. Where the budget is short, guesses are made in stretches and plain decoding ends what
    they began, so that guesses which prove wrong do not eat up the answer.
    """

    target: str = Field("", description="model that answers where the client names none")
    draft: Annotated[str | None, BeforeValidator(_name)] = Field(
        None, description="model that guesses, or `none`; default: the engine's best"
    )
    lookup: bool = Field(
        True, description="guess what followed the same words before, in prompt and answer"
    )
    rule: LengthRule | None = Field(
        None,
        description="what ends a draft: fixed, heuristic, confidence, adaedl or head; default:"
        " the engine's best",
    )
    longest: int = Field(
        8,
        ge=1,
        le=16,
        description="tokens of a draft, at most (1 to 16); fewer where the engine says so",
    )
    level: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of the rule confidence, adaedl or head; default: its own",
    )
    acceptance: AcceptanceRule = Field(
        "exact", description="exact, lenient or typical: which guesses stay"
    )
    lenience: float = Field(
        1.0,
        ge=LEAST_LENIENCE,
        le=1,
        description="ε, at least 0.001: below 1 a guess stays as if the model had found it 1/ε"
        " times as likely",
    )
    adaptive: bool = Field(
        True, description="guess less, or nothing, while that is measured to be faster"
    )

    _price: Price = PrivateAttr(default=Price(input=0, output=0))

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.level is not None and self.rule is None:
            raise ValueError("level is of a rule: name `rule` too")
        if self.level is not None and self.rule in ("fixed", "heuristic"):
            raise ValueError(f"level: the rule {self.rule} has none")
        if self.lenience < 1 and self.acceptance == "typical":
            raise ValueError("lenience is of the acceptance `lenient`")
        if self.lenience < 1 and self.acceptance == "exact" and self._gives("acceptance"):
            raise ValueError("lenience below 1 is not exact")
        if self.draft == "" and not self.lookup:
            raise ValueError("draft is none and lookup is off, so nothing would guess")
        return self

    @property
    def fidelity(self) -> Fidelity:
        kept = self._acceptance == "exact" or (self._acceptance == "lenient" and self.lenience == 1)
        return "exact" if kept else "approximate"

    def fit(self, catalog: Catalog, model: str | None) -> Self:
        target = model or self.target
        if not target:
            raise BadRequest("policy speculative: `target` is missing", param="policy")
        card = catalog.model(target)
        draft = catalog.model(self.draft).name if self.draft else self.draft
        if draft == card.name:
            raise BadRequest(
                f"policy speculative: {draft} would guess for itself, and win nothing",
                param="policy",
            )
        fitted = self.model_copy(update={"target": card.name})
        if draft:
            fitted = fitted.model_copy(update={"draft": draft})
        fitted._price = card.price
        return fitted

    def worst_case(self, model: str, prompt: int, completion: int) -> Mapping[str, Usage]:
        drafted = self.longest * completion  # each token of the answer from a pass of its own
        return {self.target: Usage(prompt=prompt, completion=completion, drafted=drafted)}

    def relays(self, call: Call, engine: MeteredEngine) -> bool:
        native = engine.capabilities(self.target).native
        return native and self._guesses(call.to(self.target), engine) is None

    def run(self, call: Call, engine: MeteredEngine) -> AsyncGenerator[Chunk]:
        call = call.to(self.target)
        guesses = self._guesses(call, engine)
        if guesses is None:
            native = engine.capabilities(self.target).native
            return self._plain(call.decoded(Decoding(native=native)), engine, "plain")
        return self._ahead(call, engine, guesses)

    async def _ahead(
        self, call: Call, engine: MeteredEngine, guesses: Speculation
    ) -> AsyncGenerator[Chunk]:
        """The answer with guesses, and plainly from where the budget does not pay for them."""
        call = call.decoded(Decoding(speculation=guesses))
        answer = _Answer(cut=Chunk(model=self.target, finish="length", reason="budget"))
        money = await self._money(call, engine, guesses.longest)
        number = 1
        while answer.ahead:
            last = number
            number = money.stretch(engine.allowance(self.target), len(answer.written))
            if number < last:
                break  # guesses saved less than what reading them again may cost
            async with aclosing(self._stretch(call, engine, number, answer)) as chunks:
                async for chunk in chunks:
                    yield chunk
        if answer.over:
            return
        rest, began = call.after(tuple(answer.written)).decoded(Decoding()), False
        try:
            async with aclosing(self._plain(rest, engine, "steer")) as chunks:
                async for chunk in chunks:
                    began = began or bool(chunk.tokens)
                    yield chunk
        except (Unaffordable, *_REFUSED):
            if began or not answer.written:
                raise
            yield answer.cut

    async def _stretch(
        self, call: Call, engine: MeteredEngine, number: int, answer: _Answer
    ) -> AsyncGenerator[Chunk]:
        """The next tokens, guessed ahead. The call is let run to its end, as what a stream that is
        closed may have done unseen is to be paid for."""
        asked, end, began = call.after(tuple(answer.written)), Chunk(), len(answer.written)
        if number < sys.maxsize:
            asked = replace(asked, max_tokens=number)
        answer.ahead = False
        try:
            async with aclosing(engine.generate(asked)) as stream:
                async for chunk in stream:
                    answer.written += [token.id for token in chunk.tokens]
                    if chunk.finish is not None:
                        end = chunk
                    else:
                        yield chunk
        except Unaffordable:
            return  # guessing ahead; a plain token costs less
        except _REFUSED:
            # Amid the tokens of a call it is the answer itself that cannot be gone on with.
            if not answer.written or len(answer.written) > began:
                raise
            return
        if end.finish == "length" and (number < sys.maxsize or end.reason == "budget"):
            answer.cut = replace(end, reason="budget")  # what it holds the next call says
            answer.ahead = end.reason is None and len(answer.written) > began
        else:
            answer.over = True
            yield end

    async def _plain(
        self, call: Call, engine: MeteredEngine, why: Literal["plain", "steer"]
    ) -> AsyncGenerator[Chunk]:
        token = len(call.written)
        decided: Decision | None = Decision(kind=why, model=self.target, token=token)
        async with aclosing(engine.generate(call)) as stream:
            async for chunk in stream:
                yield replace(chunk, decision=decided)
                decided = None

    async def _money(self, call: Call, engine: MeteredEngine, longest: int) -> _Money:
        tokens, price = engine.allowance(self.target), self._price
        prompt = await engine.count(call)
        room = max(engine.capabilities(self.target).context - prompt, 1)
        wanted = room if call.max_tokens is None else min(call.max_tokens, room)
        plain = min(wanted, price.buys(tokens * price.output, prompt))
        # Not every engine knows in its next call which tokens are to be penalised.
        whole = bool(call.sampling.presence_penalty or call.sampling.frequency_penalty)
        return _Money(price, longest, prompt, wanted, math.ceil((1 - _MAY_COST) * plain), whole)

    def _guesses(self, call: Call, engine: MeteredEngine) -> Speculation | None:
        """What is asked of the engine; None: nothing, as it cannot, and nobody insisted.

        Raises EngineUnsupported for options that it cannot do.
        """
        able = engine.capabilities(self.target).speculation
        if able is None or (not able.sampled and call.sampling.temperature > 0):
            when = "" if able is None else " at a temperature above 0"
            self._insist(f"{self.target} guesses nothing ahead{when}")
            return None
        self._check(able)
        draft = next(iter(able.drafts), "") if self.draft is None else self.draft
        lookup = self.lookup and able.lookup
        # An engine whose own draft has no name is not asked for it by `none`.
        if not lookup and (self.draft == "" or draft not in able.drafts):
            self._insist(f"there is nothing that guesses for {self.target}")
            return None
        return Speculation(
            draft=draft,
            lookup=lookup,
            rule=self.rule or _best_rule(able, draft),
            longest=min(self.longest, able.longest),
            level=self.level,
            acceptance=self._acceptance,
            lenience=self.lenience,
            adaptive=self.adaptive,
        )

    def _check(self, able: Speculates) -> None:
        lookup = "on" if self.lookup and self._gives("lookup") else None
        offers = {
            "draft": (self.draft or None, able.drafts),
            "lookup": (lookup, ("on",) if able.lookup else ()),
            "rule": (self.rule, able.rules),
            "acceptance": (self._acceptance, able.acceptance),
        }
        for option, (wanted, offered) in offers.items():
            if wanted is not None and wanted not in offered:
                there = ", ".join(filter(None, offered)) or "none"
                raise EngineUnsupported(
                    f"policy speculative: {option}: {self.target} cannot do {wanted!r};"
                    f" there is: {there}",
                    param="policy",
                )

    def _insist(self, why: str) -> None:
        """Raises EngineUnsupported where an option was given that plain decoding does not keep."""
        given = {
            "draft": bool(self.draft),
            "lookup": self.lookup and self._gives("lookup"),
            "rule": self.rule is not None,
            "acceptance": self._acceptance != "exact",
        }
        option = next((option for option, wanted in given.items() if wanted), None)
        if option is not None:
            raise EngineUnsupported(f"policy speculative: {option}: {why}", param="policy")

    @property
    def _acceptance(self) -> AcceptanceRule:
        """Lenience below 1 says by itself that it is lenient."""
        return "lenient" if self.lenience < 1 else self.acceptance

    def _gives(self, option: str) -> bool:
        return option in self.model_fields_set


def _best_rule(able: Speculates, draft: str) -> LengthRule:
    """The first rule that goes with this draft: a head is of one draft, and n-grams need none."""
    if draft in able.drafts[:1] or not able.rules:
        return next(iter(able.rules), "fixed")
    others = [rule for rule in able.rules if rule != "head"]
    return "fixed" if not draft or not others else others[0]
