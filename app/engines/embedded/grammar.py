"""Which tokens may come next where an answer is to have a form: llguidance's masks."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from app.engines.embedded import trial
from app.engines.embedded.form import Form, form
from app.engines.embedded.trial import Fault
from app.errors import BadRequest, EngineUnsupported
from app.types import Call

Allowed: TypeAlias = npt.NDArray[np.bool_]  # [vocabulary]

_KEPT = 64  # grammars
_PLACE = re.compile(r"^at \d+\(\d+\): |\n *\d+ \| .*|<non-verbose/>", re.DOTALL)
# A mask takes 0.1 ms as a rule, and what hostile grammars make of it must not hold up the others
# that the model writes for: some 30 ms, and 20 MB, at worst.
_LIMITS = LLParserLimits(
    max_items_in_row=1000,
    step_max_items=10_000,
    max_lexer_states=20_000,
    max_grammar_size=20_000,
    verbose_errors=False,
)


class Constraint:
    """Where one answer stands in its grammar: a function of the answer's token ids alone.

    So a call that goes on with an answer that another model began takes `advance` over what was
    written, and is where that one was. Belongs to one thread.
    """

    def __init__(
        self, matcher: LLMatcher, ends: frozenset[int], field: str, ignore_ends: bool = False
    ) -> None:
        """`ends`: the ids that end an answer; the grammar says where they may stand.
        `field`: of the request, that asked for it; `ignore_ends`: they do not end this answer,
        and stand only where nothing else may."""
        self.field = field
        self._matcher = matcher
        self._ends = sorted(ends) if ignore_ends else []
        # What may follow these ids from here on: rows of one pass are asked for once each.
        self._known: dict[tuple[int, ...], Allowed] = {}

    @property
    def over(self) -> bool:
        """Whether nothing may follow but the end."""
        return self._matcher.is_stopped()

    @property
    def fault(self) -> str | None:
        """Why it cannot go on: the grammar takes too much work, or was broken."""
        return _brief(self._matcher.get_error()) if self._matcher.is_error() else None

    def advance(self, ids: Sequence[int]) -> bool:
        """These are the next ids. Returns whether the grammar takes them; else it is at fault."""
        for id in ids:
            self._known = {
                path[1:]: known for path, known in self._known.items() if path[:1] == (id,)
            }
        return self._matcher.consume_tokens(list(ids))

    def allowed(self, size: int, ahead: Sequence[int] = ()) -> Allowed:
        """Which ids may come next, after those `ahead`; bool [size], the model's vocabulary.

        None may after what the grammar refuses.
        """
        path = tuple(ahead)
        known = self._known.get(path)
        if known is None or len(known) != size:
            known = self._known[path] = self._after(path, size)
        return known

    def permits(self, ids: Sequence[int]) -> int:
        """How many of these, from the first on, the grammar takes."""
        return self._matcher.validate_tokens(list(ids))

    def _after(self, ahead: tuple[int, ...], size: int) -> Allowed:
        allowed = np.zeros(size, np.bool_)
        taken = self._matcher.try_consume_tokens(list(ahead))
        if taken == len(ahead):
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            known = np.unpackbits(bits, count=min(size, 8 * len(bits)), bitorder="little")
            allowed[: len(known)] = known
        if taken:
            self._matcher.rollback(taken)
        if self._ends and allowed.any():
            others = allowed.copy()
            others[self._ends] = False
            allowed = others if others.any() else allowed
        return allowed


class Vocabulary(Protocol):
    """What is needed of a tokenizer."""

    eos_ids: frozenset[int]

    def continued(self, text: str) -> list[int]: ...

    def guided(self) -> LLTokenizer: ...


class Grammars:
    """Compiles grammars for one tokenizer, and keeps them. Belongs to the event loop's thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._guided: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._turn = asyncio.Lock()  # one at a time: however many come, a core is left to others

    async def constraint(self, call: Call) -> Constraint | None:
        """Where the call's answer stands, after what was said and written; None: it is free.

        Raises BadRequest and EngineUnsupported naming the field for what cannot be done.
        """
        asked = form(call)
        if asked is None:
            return None
        matcher = (await self._compiled(asked)).deep_copy()
        field = asked.parts[0][0]
        constraint = Constraint(matcher, self._vocabulary.eos_ids, field, call.sampling.ignore_eos)
        before = self._vocabulary.continued(call.said) if call.said else []
        if not constraint.advance([*before, *call.written]):
            raise EngineUnsupported(
                "what is written of the answer is not what this request asks for",
                param=field,
            )
        return constraint

    async def _compiled(self, asked: Form) -> LLMatcher:
        # Who asks for what is known waits for nobody's trial.
        if asked.grammar not in self._kept:
            async with self._turn:
                if asked.grammar not in self._kept:
                    self._keep(asked.grammar, await self._tried(asked))
        self._kept.move_to_end(asked.grammar)
        return self._kept[asked.grammar]

    def _keep(self, grammar: str, matcher: LLMatcher) -> None:
        self._kept[grammar] = matcher
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    async def _tried(self, asked: Form) -> LLMatcher:
        """Raises BadRequest naming the field at fault."""
        found = await trial.fault(asked.grammar, [part for _, part in asked.parts])
        if found is not None:
            raise _refusal(asked, found)
        return await asyncio.to_thread(self._compile, asked)

    def _compile(self, asked: Form) -> LLMatcher:
        """Raises BadRequest naming the field at fault."""
        if self._guided is None:
            self._guided = self._vocabulary.guided()
        matcher = LLMatcher(self._guided, asked.grammar, log_level=0, limits=_LIMITS)
        used = matcher.deep_copy()
        used.compute_bitmask()  # some faults show only then
        if used.is_error():
            empty = used.stop_reason() == "NoExtensionBias"
            raise _refusal(
                asked, Fault(None, "no answer satisfies it" if empty else used.get_error())
            )
        return matcher


def _refusal(asked: Form, fault: Fault) -> BadRequest:
    """Names the field, or where no one part is to blame what they are parts of."""
    if fault.part is None and len(asked.parts) > 1:
        field = asked.parts[0][0].split(".")[0]
    else:
        field = asked.parts[fault.part or 0][0]
    return BadRequest(f"{field}: {_brief(fault.says)}", param=field)


def _brief(fault: str) -> str:
    """Without where it stands in a text that the client has not seen."""
    return " ".join(_PLACE.sub("", fault).split())[:300]
