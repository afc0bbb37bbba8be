"""Whether an answer is right, as far as something else than the model that wrote it can say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.catalog import Catalog
from app.confidence import SELF_CHECK, VERDICTS, approval, checking
from app.errors import BadRequest
from app.sandbox import Limits, run_python
from app.sandbox.matching import fits, matches, pattern_of, schema_of
from app.types import Call, Engine, Usage
from policies.answers.asking import as_read, asked, at_most, conversation, read
from policies.answers.extracting import extract

Kind = Literal["schema", "regex", "tests", "judge"]
_VERDICT = 2  # tokens: of some vocabularies the first one is a space
_UNTOLD = 0.5  # of a judge that says neither yes nor no
_NEEDS: Mapping[Kind, str] = {
    "schema": "schema",
    "regex": "pattern",
    "tests": "tests",
    "judge": "judge",
}


class Verifier(BaseModel):
    """What an answer must stand up to. `fit` it to the fleet before it is asked.

    `schema`: the answer is JSON that this schema describes. `regex`: the pattern is found in it.
    `tests`: its code runs, and these tests of it after it, confined (`app.sandbox`). `judge`: the
    chance that this model says Yes when it is asked whether the answer is right, not No.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(description="schema, regex, tests or judge")
    form: Annotated[Mapping[str, Any], BeforeValidator(schema_of)] | None = Field(
        None, alias="schema", description="JSON schema of the answer, at most 64 KiB"
    )
    pattern: Annotated[str, AfterValidator(pattern_of)] | None = Field(
        None, max_length=4096, description="regular expression that is searched for in the answer"
    )
    tests: str | None = Field(
        None, max_length=2**18, description="Python that runs after the answer's code"
    )
    judge: str | None = Field(None, description="model that says whether the answer is right")
    _limits: Limits | None = None

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        given = {"schema": self.form, "pattern": self.pattern, "tests": self.tests}
        given["judge"] = self.judge
        needed = _NEEDS[self.kind]
        for name, value in given.items():
            if (value is not None) != (name == needed):
                raise ValueError(f"a verifier of kind {self.kind} has `{needed}`, and only that")
        return self

    def fit(self, catalog: Catalog, policy: str) -> Self:
        """This verifier, for the models and the sandbox of this fleet.

        Raises BadRequest where code would be run and the operator does not allow it, and for a
        judge whose log-probabilities we do not see; UnknownModel for one that there is not.
        """
        fitted = self
        if self.judge is not None:
            card = catalog.model(self.judge)
            if card.engine == "openai":
                raise BadRequest(
                    f"policy {policy}: verifier: judge: {card.name} is another server's, whose"
                    " log-probabilities are not seen",
                    param="policy",
                )
            fitted = self.model_copy(update={"judge": card.name})
        if self.kind == "tests":
            if catalog.sandbox is None:
                raise BadRequest(
                    f"policy {policy}: verifier: tests: this gateway runs no code; its operator"
                    " allows it by a table [sandbox] in farthing.toml",
                    param="policy",
                )
            fitted = self.model_copy()
            fitted._limits = catalog.sandbox
        return fitted

    async def can(self) -> None:
        """See that it can be asked. Raises BadRequest for a schema that refers to what there is
        not, SandboxUnavailable where no code can be run; a judge's engine says itself."""
        if self.pattern is not None:
            await matches(self.pattern, "")
        elif self.form is not None:
            await self._described("", self.form)
        elif self.tests is not None:
            await run_python("", self._allowed())

    async def passes(self, text: str, call: Call, engine: Engine) -> float:
        """How surely this answer to `call` is right, in 0..1: 0 or 1 but for a judge.

        Raises as `can`, and as the engine where there is a judge.
        """
        if self.pattern is not None:
            return float(await matches(self.pattern, text))
        if self.form is not None:
            return float(await self._described(text, self.form))
        if self.tests is not None:
            return float(await self._tested(text, self.tests))
        return await self._judged(text, call, engine)

    def worst(self, prompt: int, completion: int) -> Mapping[str, Usage]:
        """The most that a judge reads and writes for one answer of `completion` tokens."""
        if self.judge is None:
            return {}
        reads = prompt + as_read(completion) + at_most(SELF_CHECK)
        return {self.judge: Usage(prompt=reads, completion=_VERDICT)}

    async def _described(self, text: str, form: Mapping[str, Any]) -> bool:
        try:
            return await fits(form, text)
        except ValueError as error:
            raise BadRequest(f"verifier: schema: {error}", param="policy") from error

    async def _tested(self, text: str, tests: str) -> bool:
        limits, code = self._allowed(), extract(text, "code")
        return code is not None and (await run_python(code, limits, tests)).passed

    def _allowed(self) -> Limits:
        if self._limits is None:
            raise BadRequest("verifier: tests: it runs no code", param="policy")
        return self._limits

    async def _judged(self, text: str, call: Call, engine: Engine) -> float:
        assert self.judge is not None  # it has what it needs
        said = checking(await conversation(call, engine), text)
        one = asked(call.to(self.judge), said, max_tokens=_VERDICT)
        one = replace(one, sampling=replace(one.sampling, logprobs=VERDICTS))
        for token in (await read(one, engine)).tokens:
            chance = approval(token)
            if chance is not None:
                return chance
            if token.piece.strip():
                break  # it says something else
        return _UNTOLD


async def ready(verifier: Verifier | None) -> None:
    """Before anything is spent on answers, where there is a verifier: raises as `Verifier.can`."""
    if verifier is not None:
        await verifier.can()
