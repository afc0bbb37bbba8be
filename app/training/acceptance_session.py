"""A whole training of an acceptance head in one folder: texts, samples, steps, head and report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.draft_folder import DraftFolder, fingerprint
from app.nets.acceptance_head import HEAD, AcceptanceHead
from app.training.acceptance import HeadRecipe, HeadRun, calibrated
from app.training.acceptance_report import chosen_level, report
from app.training.acceptance_samples import Pair, Samples
from app.training.answers import Interrupted, Watch, Writer
from app.training.draft import check_state
from app.training.inputs import Texts, joined, read_texts
from app.training.net import Net, read_net
from app.training.saving import replace_file
from app.training.session import About as Inputs
from app.training.session import check_widths, frozen

_WARMTH = (0.3, 1.0, 1.0)  # temperatures at which the target writes, each as often
# What `train draft` drew with one seed, this draws otherwise: a draft knows what it learned.
_USE = 5
_AT_ONCE = 32  # texts whose samples are in one file
_TUNED = 2  # of so many held-out texts one is for temperature, offset and level, not the report
_DRAFTS = 16  # of a text that is not learned
_SHORT = 2  # guesses of a draft that is
HELD = {"held-sampled": 1.0, "held-greedy": 0.0}  # temperatures
_Made = Callable[[Tensor, int, torch.Generator], Samples]
ANSWERS = "answers"  # the file of the inputs, where the target's answers were given


class HeadSession:
    """Trains in `folder`, whose `inputs` are there; called again, goes on where it was."""

    def __init__(
        self,
        folder: Path,
        recipe: HeadRecipe,
        draft: tuple[str, Checkpoint],
        target: tuple[str, Checkpoint],
        watch: Watch,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Raises ValueError where the inputs are another target's, or the pair does not fit."""
        self.folder, self.recipe, self.watch = folder, recipe, watch
        self._inputs = Inputs.read(folder / "inputs")
        if fingerprint(target[1]) != self._inputs.shared:
            made = f"{folder / 'inputs'}: was made for {self._inputs.target}"
            raise ValueError(f"{made}, which is not {target[1].source.path}")
        check_widths(draft[1], target[1])
        self._device, self._dtype = device, dtype
        self._about = recipe.about(draft[1].config.hidden, draft[0], target[0])
        self._ends = frozenset(self._inputs.ends)
        source = draft[1].source
        drafting = source.drafting if isinstance(source, DraftFolder) else None
        nets = [frozen(read_net(each[1]), device, dtype) for each in (draft, target)]
        drafting = None if drafting is None else drafting.to(device)
        self._pair = Pair(nets[0], nets[1], drafting, self._ends)
        self._draft_said = f"{draft[1].config} {_digest_of(nets[0])}"

    def train(self) -> Path:
        """The head's file, `report.json` beside it. Raises Interrupted, OSError, ValueError."""
        state, said = self.folder / "head_state.safetensors", self._digest()
        if state.exists():
            check_state(state, said)  # before anything else is written
        learned, tuning, held = self._samples()
        head = AcceptanceHead(self._about).to(self._device)
        run = HeadRun(head, learned, self.recipe)
        if state.exists():
            run.restore(state, said)
            self.watch.say(f"going on at step {run.step} of {run.steps}")
        while run.step < run.steps:
            loss = run.advance()
            self.watch.progress("training", run.step, run.steps)
            if run.step % self.recipe.every == 0:
                self.watch.say(f"step {run.step}: loss {loss:.4f}")
            if self.watch.stopping or run.step % self.recipe.every == 0:
                run.save(state, said)
            if self.watch.stopping:
                raise Interrupted(f"stopped at step {run.step}; the same command goes on from here")
        run.save(state, said)
        return self._finish(head, tuning, held, len(learned))

    def _finish(
        self, head: AcceptanceHead, tuning: Samples, held: Mapping[str, Samples], learned: int
    ) -> Path:
        recipe = self.recipe
        head.about = calibrated(head, tuning)
        level = chosen_level(head, tuning, recipe.longest, recipe.cost)
        head.about = dataclasses.replace(head.about, level=level)
        path = self.folder / HEAD
        head.save(path)
        # What is reported is what was saved, rounding and all.
        saved = AcceptanceHead.load(path).to(self._device)
        found: dict[str, Any] = {
            "recipe": recipe.to_dict(),
            "about": dataclasses.asdict(saved.about),
            "samples": learned,
            "held_out": report(saved, tuning, held, recipe.longest, recipe.cost),
        }
        content = json.dumps(found, indent=2) + "\n"
        replace_file(self.folder / "report.json", content.encode())
        return path

    def _samples(self) -> tuple[Samples, Samples, dict[str, Samples]]:
        """Those to learn; of the held-out texts, those to calibrate by and those to report on."""
        found = {name: self._held(name, warmth) for name, warmth in HELD.items()}
        tuning = Samples.joined([each.at(each.text % _TUNED == 0) for each in found.values()])
        held = {name: samples.at(samples.text % _TUNED > 0) for name, samples in found.items()}
        if not len(tuning) or not all(len(samples) for samples in held.values()):
            raise ValueError(
                f"{self.folder / 'inputs'}: too few held-out texts with answers: by every second"
                " one the head is calibrated, and on the others it is judged"
            )
        answers = self._answers()
        seeded = torch.Generator().manual_seed(self.recipe.seed)
        order = torch.randperm(len(answers), generator=seeded)[: self.recipe.texts].tolist()
        learned = self._kept("learned", answers, order, self._learned)
        return learned, tuning, held

    def _learned(self, ids: Tensor, prompt: int, seeded: torch.Generator) -> Samples:
        if self.recipe.made == "mixed":
            return self._pair.mixed(ids, prompt, self.recipe.mixing, seeded)
        starts = torch.arange(prompt, len(ids), _SHORT, device=ids.device)
        greedy = torch.arange(len(starts), device=ids.device) % 2 == 1
        return self._pair.rounds(ids, starts, _SHORT, greedy, seeded)

    def _drafts(self, greedy: bool) -> _Made:
        """Makes whole drafts at places drawn."""

        def made(ids: Tensor, prompt: int, seeded: torch.Generator) -> Samples:
            starts = prompt + torch.randperm(len(ids) - prompt, generator=seeded)[:_DRAFTS]
            flags = torch.full_like(starts, greedy, dtype=torch.bool)
            device, longest = ids.device, self.recipe.longest
            return self._pair.rounds(ids, starts.to(device), longest, flags.to(device), seeded)

        return made

    def _held(self, name: str, warmth: float) -> Samples:
        folder = self.folder / "inputs"
        path = folder / f"{name}.safetensors"
        if path.exists():
            texts, _ = read_texts(path)
        else:
            shown, _ = read_texts(folder / "held.safetensors")
            texts = self._writer(
                name, shown, torch.full((len(shown),), warmth), 1, self.recipe.answer
            )
        return self._kept(name, texts, range(len(texts)), self._drafts(warmth == 0))

    def _answers(self) -> Texts:
        path = self.folder / "inputs" / f"{ANSWERS}.safetensors"
        if path.exists():
            return read_texts(path)[0]
        prompts, _ = read_texts(self.folder / "inputs" / "prompts.safetensors")
        if not len(prompts):
            raise ValueError(f"{self.folder / 'inputs'}: no prompts to learn on")
        seeded = torch.Generator().manual_seed(self.recipe.seed)
        rows = prompts.rows()
        asked = Texts.of([rows[i] for i in prompts.draw(self.recipe.texts, seeded)], prompts.names)
        warmth = torch.tensor(_WARMTH)[torch.randint(3, (len(asked),), generator=seeded)]
        return self._writer("target", asked, warmth, _USE, self.recipe.answer)

    @property
    def _writer(self) -> Writer:
        texts, target = self.folder / "texts", self._pair.target
        return Writer(texts, target, self.recipe.seed, self._ends, self.watch)

    def _kept(self, name: str, texts: Texts, chosen: range | list[int], made: _Made) -> Samples:
        """The samples of these texts, in files, so that they are made once."""
        folder = self.folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        starts, prompts = texts.starts.tolist(), texts.prompts.tolist()
        chosen = [i for i in chosen if starts[i + 1] - starts[i] > prompts[i]]
        if not chosen:
            raise ValueError(f"{self.folder}: no text of {name} has an answer")
        parts = []
        for at in range(0, len(chosen), _AT_ONCE):
            path = folder / f"{name}-{at // _AT_ONCE:04}.safetensors"
            some = chosen[at : at + _AT_ONCE]
            said = {"said": self._said(name, texts.digest, some)}
            part = Samples.read(path, said)
            if part is None:
                if self.watch.stopping:
                    raise Interrupted("stopped while samples were made; the same command goes on")
                self.watch.progress(f"reading: {name}", at, len(chosen))
                part = Samples.joined([self._of(texts, index, made) for index in some])
                part.save(path, said)
            parts.append(part)
        self.watch.progress(f"reading: {name}", len(chosen), len(chosen))
        return Samples.joined(parts)

    def _of(self, texts: Texts, index: int, made: _Made) -> Samples:
        prompt = int(texts.prompts[index])
        ids = texts.text(index)[: prompt + self.recipe.answer].to(self._device)
        seeded = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + index)
        samples = made(ids, prompt, seeded)
        return dataclasses.replace(samples, text=torch.full((len(samples),), index))

    def _said(self, name: str, digest: str, chosen: list[int]) -> str:
        """What a file of samples depends on."""
        recipe = self.recipe
        how = [recipe.seed, recipe.answer, str(self._dtype), self._draft_said]
        how += [recipe.made, recipe.mixing] if name == "learned" else [recipe.longest]
        return hashlib.sha256(json.dumps([how, digest, chosen]).encode()).hexdigest()

    def _digest(self) -> str:
        """Tells this run from others with the same folder."""
        inputs, about = vars(self._inputs), dataclasses.asdict(self._about)
        said = [self.recipe.to_dict(), inputs, about, str(self._dtype), self._draft_said]
        digest = hashlib.sha256(json.dumps(said).encode())
        for path in sorted((self.folder / "inputs").glob("*.safetensors")):
            digest.update(path.read_bytes())
        return digest.hexdigest()


def reuse(source: Path, folder: Path) -> None:
    """Make a folder's inputs of the texts that another training's target wrote.

    Raises FileNotFoundError and ValueError where `source` is no finished training's folder.
    """
    Inputs.read(source / "inputs")
    found = {}
    for name, wrote in ((ANSWERS, "target"), *((name, name) for name in HELD)):
        given = source / "inputs" / f"{name}.safetensors"
        paths = sorted((source / "texts").glob(f"{wrote}-[0-9]*.safetensors"))
        if given.exists():
            paths = [given]
        if not paths:
            raise FileNotFoundError(f"{source}: has no texts that its target wrote ({wrote})")
        found[name] = joined([read_texts(path)[0] for path in paths])
    inputs = folder / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    for name, texts in found.items():
        texts.save(inputs / f"{name}.safetensors")
    replace_file(inputs / "about.json", (source / "inputs" / "about.json").read_bytes())


def _digest_of(net: Net) -> str:
    """Of some of its weights: a draft that was trained anew has other samples."""
    digest = hashlib.sha256()
    for parameter in net.parameters():
        rows = parameter.detach().reshape(len(parameter), -1)[:: max(1, len(parameter) // 8)]
        digest.update(rows.float().cpu().numpy().tobytes())
    return digest.hexdigest()
