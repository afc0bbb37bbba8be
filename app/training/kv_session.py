"""A whole training of KV predictors in one folder: sums, maps, tuning, predictors and a report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.engines.embedded.auxiliary import auxiliary_print
from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.draft_folder import fingerprint
from app.nets.kv_predictor import KVPredictor
from app.training.answers import Interrupted, Watch
from app.training.draft import check_state
from app.training.inputs import Texts, read_texts
from app.training.kv_cases import Case, cases
from app.training.kv_closed_form import SavedSums, Sums
from app.training.kv_examples import Pair, Template, examples
from app.training.kv_fits import AuxiliaryFits, Fits, LayerFits
from app.training.kv_recipe import KVRecipe
from app.training.kv_states import by_layer, packed
from app.training.kv_tuning import Tuning, losses
from app.training.net import Net, read_net
from app.training.saving import replace_file
from app.training.session import About as Inputs
from app.training.session import frozen

_HELD = 32  # held-out texts and examples that a predictor is judged on


class KVSession:
    """Trains in `folder`, whose `inputs` are there; called again, goes on where it was."""

    def __init__(
        self,
        folder: Path,
        recipe: KVRecipe,
        base: tuple[str, Checkpoint],
        auxiliary: tuple[str, Checkpoint] | None,
        watch: Watch,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`auxiliary`: the one that the recipe names; it stays as it is (the paper trains it with
        the maps; ours is a trained draft). Raises ValueError where the inputs are another base's,
        or base and auxiliary are not what the recipe needs."""
        self.folder, self.recipe, self.watch = folder, recipe, watch
        self._inputs = Inputs.read(folder / "inputs")
        self._shared = fingerprint(base[1])
        if self._shared != self._inputs.shared:
            made = f"{folder / 'inputs'}: was made for {self._inputs.target}"
            raise ValueError(f"{made}, which is not {base[1].source.path}")
        if max(recipe.kept, default=0) >= base[1].config.layers:
            raise ValueError(f"kept: the base has {base[1].config.layers} layers, not more")
        if recipe.auxiliary != ("" if auxiliary is None else auxiliary[0]):
            raise ValueError(f"auxiliary: the recipe names {recipe.auxiliary or 'none'}")
        self._device = device
        self._net = frozen(read_net(base[1]), device, dtype)
        named = base[0], self._shared
        self._auxiliary: Net | None = None
        self._fits: Fits
        if auxiliary is None:
            self._fits = LayerFits(named, self._net, recipe.kept, recipe.units)
        else:
            self._auxiliary = frozen(read_net(auxiliary[1]), device, dtype)
            other = auxiliary[0], auxiliary_print(auxiliary[1])
            self._fits = AuxiliaryFits(named, self._net, other, self._auxiliary)

    def train(self) -> list[Path]:
        """The predictors' files, `report.json` beside them. Raises Interrupted, OSError,
        ValueError."""
        learned = self._summed("learned", list(self._texts("prompts")), self.recipe.tokens)
        held = self._summed("held", list(self._texts("held"))[:_HELD], None)
        report: dict[str, Any] = {"recipe": self.recipe.to_dict(), "predictors": {}}
        held_cases = self._cases("held", _HELD)
        learned_cases = self._cases("prompts", self.recipe.examples) if self.recipe.steps else {}
        paths = []
        for name in self._fits.abouts:
            predictor = self._fitted(name, learned)
            found: dict[str, Any] = {"tokens": self._fits.tokens(name, learned)}
            judged = held_cases[predictor.about.kept]
            found["closed_form"] = self._judged(name, predictor, held, judged)
            if self.recipe.steps:
                self._tune(name, predictor, learned_cases[predictor.about.kept])
                found["tuned"] = self._judged(name, predictor, held, judged)
            path = self.folder / f"kv_predictor-{_short(name)}.safetensors"
            predictor.save(path)
            found["share"] = predictor.about.share
            report["predictors"][path.name] = found
            paths.append(path)
        content = json.dumps(report, indent=2) + "\n"
        replace_file(self.folder / "report.json", content.encode())
        return paths

    def _texts(self, name: str) -> Iterator[Tensor]:
        """Chats to sum over, in an order drawn by the seed."""
        texts, _ = read_texts(self.folder / "inputs" / f"{name}.safetensors")
        seeded = torch.Generator().manual_seed(self.recipe.seed)
        # Of each file alike, as far as it goes; no text twice.
        drawn = texts.draw(4 * len(texts), seeded) if name == "prompts" else range(len(texts))
        order = list(dict.fromkeys(drawn))
        opening, closing = torch.tensor(self._inputs.opening), torch.tensor(self._inputs.closing)
        chosen = (texts.prompt(index) for index in order)
        return iter(packed(chosen, opening, closing, self.recipe.longest))

    def _summed(self, name: str, texts: Sequence[Tensor], most: int | None) -> dict[str, Sums]:
        """Sums over these texts, until there are `most` tokens."""
        sums = self._fits.sums()
        saved = SavedSums(self.folder / f"{name}_sums.safetensors", self._said(name, texts), sums)
        lengths = torch.tensor([len(text) for text in texts]).cumsum(0)
        count = len(texts) if most is None else int((lengths < most).sum()) + 1
        for at in range(saved.texts, min(count, len(texts))):
            self.watch.progress(f"reading: {name}", at, min(count, len(texts)))
            self._fits.add(sums, texts[at].to(self._device))
            saved.texts = at + 1
            if self.watch.stopping or saved.texts % self.recipe.every == 0:
                saved.save()
            if self.watch.stopping:
                raise Interrupted(f"stopped at text {at + 1}; the same command goes on from here")
        saved.save()
        self.watch.progress(f"reading: {name}", min(count, len(texts)), min(count, len(texts)))
        return sums

    def _fitted(self, name: str, sums: Mapping[str, Sums]) -> KVPredictor:
        predictor = KVPredictor(self._fits.abouts[name])
        maps = self._fits.maps(name, sums, self.recipe.ridge)
        with torch.no_grad():
            predictor.weight.copy_(maps[..., :-1])
            predictor.bias.copy_(maps[..., -1])
            if self.recipe.units:  # what it adds begins at nothing, and can grow
                seeded = torch.Generator().manual_seed(self.recipe.seed)
                drawn = torch.randn(predictor.inner.shape, generator=seeded)
                predictor.inner.copy_(drawn / predictor.inner.shape[1] ** 0.5)
        return predictor.to(self._device)

    def _judged(
        self, name: str, predictor: KVPredictor, held: Mapping[str, Sums], cases: Sequence[Case]
    ) -> dict[str, Any]:
        """How much of the held-out KV's spread is explained, by layer (of the linear maps), and
        what the base makes of held-out examples behind predicted prompts."""
        about = predictor.about
        found: dict[str, Any] = {}
        if not about.units:
            maps = torch.cat([predictor.weight, predictor.bias[..., None]], -1).detach().cpu()
            found["explained"] = by_layer(self._fits.explained(name, held, maps), about.kept)
        with torch.inference_mode():
            each = [losses(self._net, predictor, case) for case in cases]
        if each:
            found["nats"] = sum(float(one.entropy) for one in each) / len(each)
            found["divergence"] = sum(float(one.divergence) for one in each) / len(each)
            found["agreement"] = sum(float(one.agreed) for one in each) / len(each)
        return found

    def _cases(self, name: str, count: int) -> dict[int, list[Case]]:
        """Examples of these texts, by how many of the base's layers are kept."""
        recipe = self.recipe
        opening, closing = torch.tensor(self._inputs.opening), torch.tensor(self._inputs.closing)
        template = Template(opening, closing)
        chats = list(self._texts(name))
        answered = self._answered() if name == "prompts" else []
        pairs = examples(chats, answered, template, recipe.answer, count, recipe.seed)
        if name == "prompts" and not pairs:
            raise ValueError(f"{self.folder / 'inputs'}: no text is long enough to tune by")
        kept = sorted({about.kept for about in self._fits.abouts.values()})
        found: dict[int, list[Case]] = {each: [] for each in kept}
        for at, (prompt, behind) in enumerate(pairs):
            self.watch.progress(f"examples: {name}", at, len(pairs))
            if self.watch.stopping:
                raise Interrupted("stopped before tuning; the same command goes on from here")
            pair = prompt.to(self._device), behind.to(self._device)
            true = recipe.consistency > 0
            made = cases(self._net, pair, kept, self._auxiliary, recipe.first, true)
            for each, case in made.items():
                found[each].append(case)
        self.watch.progress(f"examples: {name}", len(pairs), len(pairs))
        return found

    def _tune(self, name: str, predictor: KVPredictor, cases: Sequence[Case]) -> None:
        run = Tuning(self._net, predictor, cases, self.recipe)
        state = self.folder / f"tuning-{_short(name)}.safetensors"
        said = self._said(name, ())
        if state.exists():
            check_state(state, said)
            run.restore(state, said)
        while run.step < self.recipe.steps:
            found = run.advance()
            self.watch.progress(f"tuning: {name}", run.step, self.recipe.steps)
            if run.step % self.recipe.every == 0:
                self.watch.say(f"{name}, step {run.step}: loss {found:.4f}")
            if self.watch.stopping or run.step % self.recipe.every == 0:
                run.save(state, said)
            if self.watch.stopping:
                raise Interrupted(f"stopped at step {run.step}; the same command goes on from here")
        run.save(state, said)

    def _answered(self) -> list[Pair]:
        """The prompts' reference answers, where they have some."""
        texts: Texts = read_texts(self.folder / "inputs" / "fixed.safetensors")[0]
        found = []
        for index in range(len(texts)):
            prompt, text = texts.prompt(index), texts.text(index)
            found.append((prompt, text[len(prompt) :]))
        return found

    def _said(self, name: str, texts: Sequence[Tensor]) -> str:
        """All that decides what is summed, or tuned, under this name."""
        recipe = self.recipe
        if texts:  # what only tuning looks at does not make sums others
            recipe = dataclasses.replace(
                KVRecipe(), kept=recipe.kept, longest=recipe.longest, auxiliary=recipe.auxiliary
            )
        digest = hashlib.sha256(f"{name} {recipe} {self._shared}{self._fits.said}".encode())
        for text in texts:
            digest.update(text.int().numpy().tobytes())
        return digest.hexdigest()


def _short(name: str) -> str:
    """What a predictor's files are called by."""
    return name.removeprefix("kept-")
