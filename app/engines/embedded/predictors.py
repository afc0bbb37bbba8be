"""Which KV predictors a model has, and which of them a call asks for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Protocol, TypeAlias

from app.catalog import ModelCard
from app.engines.embedded.auxiliary import AuxiliaryPredictor, check_print
from app.engines.embedded.model import Decoder
from app.engines.embedded.prediction import Predictor
from app.engines.embedded.weights import open_checkpoint
from app.engines.predictions import check
from app.errors import ConfigError
from app.nets.kv_predictor import KVPredictor
from app.types import Call

AnyPredictor: TypeAlias = Predictor | AuxiliaryPredictor

_BUNDLED = "bundled:"


class Loaded(Protocol):
    """A model as the engine has it."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def context(self) -> int: ...

    @property
    def decoder(self) -> Decoder: ...


def load(
    model: Loaded, fleet: Mapping[str, Loaded], paths: Mapping[str, Path]
) -> Mapping[str, AnyPredictor]:
    """By name, the predictors that the model's card names: `layers-20`, or the name of the
    auxiliary model, one of the `fleet`. Raises ConfigError."""
    found: dict[str, AnyPredictor] = {}
    for named in model.card.kv_predictors:
        path = _path(named)
        try:
            weights = KVPredictor.load(path)
            if weights.about.auxiliary:
                found[weights.about.auxiliary] = _told(weights, model, fleet, paths)
            else:
                found[f"layers-{weights.about.kept}"] = model.decoder.predictor(weights)
        except (OSError, ValueError) as error:
            where = f"[models.{model.card.name}]: kv_predictors: {path}"
            raise ConfigError(f"{where}: {error}") from error
    return dict(sorted(found.items(), key=lambda item: -item[1].share))  # the best come first


def _told(
    weights: KVPredictor, model: Loaded, fleet: Mapping[str, Loaded], paths: Mapping[str, Path]
) -> AuxiliaryPredictor:
    """Raises ValueError where its auxiliary is not served here, or is not the one it knows."""
    name, decoder = weights.about.auxiliary, model.decoder
    other = fleet.get(name)
    if other is None:
        raise ValueError(f"{name}, whose KV it is told, is no embedded model of the fleet")
    base = paths[other.card.base] if other.card.base else None
    check_print(weights, open_checkpoint(paths[name], base))
    if other.decoder.config.context < model.context:
        raise ValueError(
            f"{name} reads {other.decoder.config.context} tokens, and this model {model.context}:"
            " give it a context that is no longer"
        )
    return AuxiliaryPredictor(
        weights, decoder.config, decoder.precision, decoder.device, other.decoder
    )


def _path(named: str) -> Path:
    if named.startswith(_BUNDLED):
        shipped = resources.files("app") / "weights" / named.removeprefix(_BUNDLED)
        return Path(str(shipped))
    return Path(named).expanduser()


def chosen(call: Call, predictors: Mapping[str, AnyPredictor]) -> AnyPredictor | None:
    """The one that a call asks for. Raises EngineUnsupported where it is not to be had, and
    BadRequest for what makes no sense."""
    asked = call.decoding.kv
    if asked is None:
        return None
    check(call, asked, predictors)
    return predictors[asked.predictor]
