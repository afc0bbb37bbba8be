"""The words every room shares: an Engine turns a Call into Chunks."""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self, TypeAlias

from app.reasons import Alternative as Alternative
from app.reasons import Bounds as Bounds
from app.reasons import Decision as Decision
from app.reasons import PlanKind as PlanKind
from app.reasons import Promise as Promise
from app.reasons import Shortened as Shortened

Message: TypeAlias = Mapping[str, Any]
"""One message of a chat, as OpenAI's JSON has it."""

Prompt: TypeAlias = str | tuple[int, ...]
"""Of a bare completion: text, or token ids."""

Finish: TypeAlias = Literal["stop", "length", "entropy"]
"""Why a call ended. `entropy`: the engine stopped because `Decoding.stop` asked it to."""

Fidelity: TypeAlias = Literal["exact", "approximate"]

Took: TypeAlias = tuple[float | None, float, float]
"""Seconds of an answer to the first text of its stream, and to its end: at least, and at most."""

Tried: TypeAlias = Literal["ok", "failed", "refused", "closed"]
"""How a call went on one server. `refused`: by what the client is to blame for, or a full queue;
`closed`: by us, before its end."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Entropy and logprobs are of the distribution before it."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # the token at position i depends on (seed, i) and the logits only
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the token's own and the k likeliest


@dataclass(frozen=True, slots=True)
class EntropyStop:
    """Stop by yourself when the rolling mean of the entropy crosses a level.

    Then the call finishes with `entropy`. The token at which it crosses is reported before, by an
    engine that has drawn it; one that stops sooner says the `mean` with its finish chunk.
    """

    level: float  # bits
    rising: bool  # True: stop at mean >= level; False: at mean <= level
    window: int = 5  # tokens of this call; the mean is taken over full windows only
    after: int = 0  # tokens of this call, the crossing one included, before it may stop


LengthRule: TypeAlias = Literal["fixed", "heuristic", "confidence", "adaedl", "head"]
"""What ends a draft: its length; Hugging Face's count of it, two more after a draft that was kept
whole and one less after another; a guess less likely than a level by the draft model's own word;
the entropy of a guess (AdaEDL); the acceptance head's word (SpecDec++)."""

AcceptanceRule: TypeAlias = Literal["exact", "lenient", "typical"]
"""Which guesses stay: the answer is distributed as the model's own; or accept by p / epsilon
(DistillSpec); or what is typical of the model's distribution (Medusa)."""

LEAST_LENIENCE = 0.001  # of epsilon: with less, whatever is guessed stays


@dataclass(frozen=True, slots=True)
class Speculation:
    """How tokens are guessed ahead, and which guesses stay once the model has read them."""

    draft: str = ""  # the model of the family that guesses; empty: none, or the server's own
    lookup: bool = False  # guess by n-grams of prompt and answer too; they cost nothing
    rule: LengthRule = "fixed"
    longest: int = 8  # tokens guessed for one pass of the model, at most
    level: float | None = None  # of the rule; None: its own
    acceptance: AcceptanceRule = "exact"
    lenience: float = 1.0  # epsilon of `lenient`, LEAST_LENIENCE to 1; 1 is exact
    adaptive: bool = True  # guess fewer, or nothing, while that is measured to be faster


@dataclass(frozen=True, slots=True)
class KVPrediction:
    """Keys and values of the prompt, predicted instead of computed: earlier, and approximate."""

    predictor: str  # one of those that Capabilities names
    last: int = 1  # tokens at the prompt's end that are computed all the same, at least 1
    first: int = 0  # and at its beginning
    relevant: float = 0.0  # of the others this share too: those that the end asks about
    conversation: str = ""  # only calls that say the same may go on from it; "": none


@dataclass(frozen=True, slots=True)
class Decoding:
    """What a policy asks of an engine's token loop; an engine refuses what it cannot do."""

    entropy: bool = False  # report the entropy of each token's distribution
    stop: EntropyStop | None = None
    native: bool = False  # answer in the engine's own words: chunks are `raw`
    speculation: Speculation | None = None
    kv: KVPrediction | None = None  # None: all of the prompt is computed
    scores: bool = False  # write nothing, and tell the log-probabilities of the prompt's own tokens
    edited: str | None = None  # approximate: what follows an edit of a prompt that was read before
    # is moved, not computed; of the conversation of this name, or of an exact answer. None: never


@dataclass(frozen=True, slots=True)
class Goals:
    """Targets that travel with a call."""

    deadline: float | None = None  # time.monotonic() at which the answer must be whole
    first_token: float | None = None  # and by which it should begin: a wish, not a bound
    quality: float | None = (
        None  # least measured quality, 0 to 1 of the best way's; for the planner
    )


_STRUCTURE = (
    *("tools", "functions", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
_NO_CHOICE = (None, "none", "auto")


class Watch(Protocol):
    """Is told how one call fares, by whoever serves it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What its servers are told with it: its place in a trace."""

    def waited(self, seconds: float) -> None:
        """It has waited so long for a place."""

    def tried(self, server: str, outcome: Tried, error: str = "") -> None:
        """A server has done with it; `server` is host:port."""


@dataclass(frozen=True, slots=True)
class Call:
    """One generation asked of one engine. One HTTP request may cost several calls."""

    model: str
    messages: tuple[Message, ...] = ()
    prompt: Prompt | None = None  # a bare completion; None: a chat of `messages`
    beside: tuple[Prompt, ...] = ()  # further prompts, each with as many choices as the first
    max_tokens: int | None = None  # most tokens to write now; None: to the context's end
    sampling: Sampling = Sampling()
    decoding: Decoding = Decoding()
    goals: Goals = Goals()
    written: tuple[int, ...] = ()  # token ids of the answer so far
    said: str = ""  # text of the answer before `written`, by models of another family
    embeds: bool = False  # nothing is written: each prompt becomes one vector
    choices: int = 1  # answers to write side by side, each of `max_tokens`; of all prompts
    whole: bool = False  # native: in one piece, not as a stream
    extra: Mapping[str, Any] = field(default_factory=dict)  # body fields that we do not know
    body: Mapping[str, Any] = field(default_factory=dict)  # as the client sent it, for `native`
    account: str = ""  # whose request it is, for fairness
    id: str = ""
    watch: Watch | None = field(default=None, compare=False, repr=False)

    @property
    def trace(self) -> Mapping[str, str]:
        """The headers by which a server knows whose trace this is part of."""
        return {} if self.watch is None else self.watch.headers

    @property
    def offers(self) -> bool:
        """Whether it offers tools."""
        return bool(self.extra.get("tools")) and self.extra.get("tool_choice") != "none"

    @property
    def structured(self) -> bool:
        """Whether it offers tools, or asks for an answer of a given form."""
        format, choice = self.extra.get("response_format"), self.extra.get("tool_choice")
        text = isinstance(format, Mapping) and format.get("type") == "text"
        formed = format is not None and not text
        return formed or choice not in _NO_CHOICE or any(map(self.extra.get, _STRUCTURE))

    def to(self, model: str) -> Self:
        """The same call asked of another model."""
        return self if model == self.model else replace(self, model=model)

    def after(self, token_ids: tuple[int, ...]) -> Self:
        """The same call, to be continued after these further tokens of its answer."""
        left = None if self.max_tokens is None else self.max_tokens - len(token_ids)
        return replace(self, written=self.written + token_ids, max_tokens=left)

    def apart(self) -> tuple[Self, ...]:
        """One call for each prompt, with its share of the choices."""
        if not self.beside:
            return (self,)
        prompts = (self.prompt, *self.beside)
        each = self.choices // len(prompts)
        return tuple(replace(self, prompt=p, beside=(), choices=each) for p in prompts)

    def decoded(self, decoding: Decoding) -> Self:
        return replace(self, decoding=decoding)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as a difference, like a chunk's text: usages add up."""

    prompt: int = 0  # read: the prompt, and what others had written (catch-up)
    cached: int = 0  # of these, taken from a prefix cache
    completion: int = 0  # written
    drafted: int = 0  # guessed ahead, and read by the model to verify them
    accepted: int = 0  # of these, written: they are among `completion`
    passes: int = 0  # of the model, where it speculated: each wrote what was accepted and one more
    predicted: int = 0  # read, their keys and values not computed but predicted: among `prompt`

    @property
    def wasted(self) -> int:
        """Tokens that were guessed for nothing."""
        return self.drafted - self.accepted

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.passes + other.passes,
            self.predicted + other.predicted,
        )


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One token the model might have written, and its log-probability (natural)."""

    id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token written."""

    id: int
    piece: bytes = b""  # its bytes, perhaps part of a character only
    logprob: float | None = None
    top: tuple[Candidate, ...] = ()
    entropy: tuple[float, float] | None = None
    """Bits, `[low, high]`; equal where it is exact. Where only the top k are seen, `low` is the
    tail estimate: the missing mass spread over tokens that are each as likely as the k-th."""


HAND_OVERS = ("switch", "steer", "failover")  # kinds of decisions: another model goes on


@dataclass(frozen=True, slots=True)
class Chunk:
    """A difference: what came since the last chunk.

    `text` is what may be shown after these tokens: bytes of an unfinished character and what may
    become a stop string are held back, as a function of all token ids of the answer alone, so it
    stays right when another model takes over. What was held back comes with the finish chunk,
    which carries no tokens; who hands the answer on drops that text, as the next call shows it.
    A call's first chunk may carry nothing but the prompt's usage, and how much of the prompt was
    cached may become known with the finish chunk only.

    Of a call there is one finish chunk, its last. An engine's and a policy's chunks all have
    `index` 0. An answer with several choices has, in any order, chunks of each under its `index`,
    and for each choice one finish chunk, after which nothing of that choice comes; the answer ends
    with the last of them. Choice c of prompt p has the index `p * choices of a prompt + c`.

    A native call makes all of its choices itself. Its chunks hold `raw` instead of text and tokens:
    whole server-sent events, or with the finish chunk the body of an answer in one piece. There is
    one finish chunk for all choices: of a stream it has every choice's last event and, after them,
    the event with the usage. (Cut by us it has no `raw`: then there is one for each choice.)

    A call that embeds ends with one finish chunk too: with all vectors, or native with the body.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    model: str = ""
    index: int = 0  # which choice
    usage: Usage = NO_USAGE
    finish: Finish | None = None
    reason: Literal["budget", "deadline", "cancelled"] | None = None  # why, beyond `finish`
    echo: bool = False  # text and tokens are of the prompt, shown to who wants to see it again
    stopped_by: str | int | None = None  # the stop string or id; None: the model's own end
    mean: float | None = None  # with finish `entropy`: where it crossed, in bits
    decision: Decision | None = None
    vectors: tuple[array[float], ...] = ()  # of a call that embeds: fp32, one for each prompt
    raw: bytes | None = None  # native: the engine's bytes, its events or its whole body
    considered: tuple[Alternative, ...] = ()  # by the policy, before these came
    shortened: Shortened | None = None  # with `considered`: what was read instead of the prompt


@dataclass(frozen=True, slots=True)
class Speculates:
    """What an engine can do of a Speculation with one model."""

    drafts: tuple[str, ...] = ()  # models that may guess for it, best first; of a server: ""
    lookup: bool = False
    rules: tuple[LengthRule, ...] = ()  # best first
    acceptance: tuple[AcceptanceRule, ...] = ("exact",)
    longest: int = 0  # tokens of one draft, at most
    sampled: bool = True  # whether at a temperature above 0 too


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do with one model."""

    family: str  # models of one family share a tokenizer
    context: int  # tokens, prompt and answer together
    entropy: Literal["exact", "bounds"] | None = None
    stop_on_entropy: bool = False
    native: bool = False  # relays the engine's own bytes
    overrun: int = 0  # tokens that may be written unseen when a stream is closed early
    speculation: Speculates | None = None  # None: does not speculate by request
    kv: Mapping[str, float] | None = None  # predictors, and the share of a prefill each takes
    embeds: bool = False  # whether it turns prompts into vectors
    edits: bool = False  # whether it moves what follows an edit of a prompt
    structured: bool = False  # whether tools and forms of answers last through a hand-over


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as a model reads it."""

    ids: tuple[int, ...]
    names: tuple[str, ...] | None = None  # as the vocabulary spells them, where asked for


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a model is."""

    healthy: bool = True
    running: int = 0  # calls
    waiting: int = 0  # calls
    kv_bytes: int = 0  # KV memory promised to what runs
    reading: float = 0.0  # seconds that a token of a prompt took of late; 0: not known


class Engine(Protocol):
    """Something that makes tokens.

    `generate` yields the prompt's usage with its first chunk, ends with one chunk that has
    `finish`, and gives back what it holds when it is closed. It raises before the first chunk:
    UnknownModel; BadRequest for what the model cannot take; EngineUnsupported for a Decoding it
    cannot do; Overloaded; and EngineError at any time.
    """

    def generate(self, call: Call) -> AsyncGenerator[Chunk]: ...

    async def count(self, call: Call) -> int:
        """Prompt tokens that this call reads: template applied, `written` included."""
        ...

    async def tokenize(self, call: Call, names: bool) -> Tokens:
        """The prompt of this call. Raises as `count`, and EngineUnsupported."""
        ...

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """The text of these ids. Raises UnknownModel, BadRequest, EngineError, and
        EngineUnsupported where the engine does not tell."""
        ...

    def capabilities(self, model: str) -> Capabilities: ...

    def load(self, model: str) -> Load: ...


class MeteredEngine(Engine, Protocol):
    """The engine a policy is handed: it pays for every call."""

    def allowance(self, model: str) -> int:
        """Completion tokens of `model` that the rest of the budget still buys; 0: unaffordable.

        As if what runs were settled now, and `model` had to read the prompt and all that was
        written, uncached, before it writes. sys.maxsize where nothing limits it.
        """
        ...
