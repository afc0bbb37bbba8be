"""A whole training in one folder: texts, steps, saved states, a log, and the draft at its end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.engines.embedded.checkpoint import Checkpoint
from app.engines.embedded.draft_folder import fingerprint
from app.training.answers import Interrupted, Watch, Writer
from app.training.draft import Known, Material, Row, Run, check_state, nothing_known
from app.training.held_out import estimate, guesses
from app.training.inputs import Texts, read_texts
from app.training.net import Net, read_net
from app.training.recipe import Recipe
from app.training.remembered import remember
from app.training.result import most_written, stored, write_draft
from app.training.saving import replace_file

_WARMTH = (0.0, 0.6, 1.0)  # temperatures at which the target writes, each as often
_INVENTED = 128  # tokens of the longest prompt that it invents


@dataclass(frozen=True)
class About:
    """What the inputs' folder says beside the texts."""

    target: str  # what the target is called
    shared: str  # the fingerprint of its embedding and head
    base: str  # the model whose embedding and head the draft shares: mostly the target
    base_shared: str
    ends: tuple[int, ...]
    opening: tuple[int, ...]  # of a chat, before what the user says
    closing: tuple[int, ...]  # between that and the answer

    @classmethod
    def read(cls, folder: Path) -> About:
        """Raises FileNotFoundError, ValueError."""
        path = folder / "about.json"
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            lists = (tuple(said[name]) for name in ("ends", "opening", "closing"))
            names = (said[name] for name in ("target", "shared", "base", "base_shared"))
            return cls(*names, *lists)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: does not describe a training's inputs: {error}") from error


class Session:
    """Trains in `folder`, whose `inputs` are there; called again, goes on where it was."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        target: Checkpoint,
        start: Checkpoint,
        watch: Watch,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`start` is the model whose layers the draft begins with, often the target itself.

        Raises ValueError where the inputs are another target's or start's.
        """
        self.folder, self.recipe, self.watch = folder, recipe, watch
        self.about = About.read(folder / "inputs")
        self._check(target, self.about.target, self.about.shared)
        self._check(start, self.about.base, self.about.base_shared)
        check_widths(start, target)
        self._start, self._device = start, device
        self._target = frozen(read_net(target), device, dtype)
        self._draft = read_net(start, recipe.chosen(start.config.layers))
        if start is target:
            self._draft.embedding, self._draft.head = self._target.embedding, self._target.head
        else:
            self._draft.embedding = self._draft.embedding.to(device, dtype)
            self._draft.head = self._draft.head.to(device, dtype)
        for name in ("norm", "frequencies"):
            setattr(self._draft, name, getattr(self._draft, name).to(device))
        self._draft.to(device)
        self._ends = frozenset(self.about.ends)
        texts = folder / "texts"
        self._writer = Writer(texts, self._target, recipe.seed, self._ends, watch)

    def _check(self, model: Checkpoint, name: str, shared: str) -> None:
        if fingerprint(model) != shared:
            made = f"{self.folder / 'inputs'}: was made for {name}"
            raise ValueError(f"{made}, which is not {model.source.path}")

    def train(self) -> Path:
        """The finished draft's folder. Raises Interrupted, OSError, ValueError."""
        state, said = self.folder / "state.safetensors", self._digest()
        if state.exists():
            check_state(state, said)  # before anything else is written
        material, held = self._material()
        run = Run(self._draft, self._target, material, self.recipe)
        if state.exists():
            run.restore(state, said)
            self.watch.say(f"going on at step {run.step}, {run.tokens:,} tokens")
        log = _Log(self.folder / "log.jsonl", run.step)
        while not run.done:
            if run.step % self.recipe.every == 0 and not log.looked(run.step):
                log.add({"step": run.step, "tokens": run.tokens, **self._look(held)})
            log.add(run.advance())
            self.watch.progress("training", run.tokens, self.recipe.tokens)
            if self.watch.stopping or run.step % self.recipe.every == 0:
                log.flush()
                run.save(state, said)
            if self.watch.stopping:
                raise Interrupted(f"stopped at step {run.step}; the same command goes on from here")
        if not log.looked(run.step):
            log.add({"step": run.step, "tokens": run.tokens, **self._look(held)})
        log.flush()
        run.save(state, said)
        return self._finish(held, material)

    def _finish(self, held: Mapping[str, Sequence[Row]], material: Material) -> Path:
        """Round the layers to what is stored, look once more, and write them."""
        stored(self._draft)
        drafting = self._drafting(material)
        found: dict[str, Any] = {}
        for name, rows in held.items():
            for head, ids in (("full", None), ("trimmed", drafting)):
                if head == "trimmed" and drafting is None:
                    continue
                sums = guesses(self._draft, self._target, rows, drafting=ids)
                column = 2 if name == "greedy" else 1
                found[f"{name}_{head}"] = asdict(estimate(sums, column))
        training = {"recipe": self.recipe.to_dict(), "held_out": found, "torch": torch.__version__}
        folder = self.folder / "draft"
        write_draft(folder, self._draft, self._start, self.about.base, drafting, training)
        return folder

    def _most_written(self, prompts: Texts, texts: Texts | None, count: int) -> Tensor:
        read = [prompts] if texts is None else [prompts, texts]
        return most_written(read, count, len(self._draft.head))

    def _drafting(self, material: Material) -> Tensor | None:
        """The ids of the trimmed head: those that are most often in what was read."""
        count = min(self.recipe.drafting, len(self._draft.head))
        if count == 0:
            return None
        ids = self._most_written(material.prompts, material.texts, count)
        # An answer that could not end would be drafted in vain.
        ids = torch.cat([ids, torch.tensor(sorted(self._ends))])
        drafting: Tensor = torch.unique(ids)
        return drafting.to(self._device)

    def _look(self, held: Mapping[str, Sequence[Row]]) -> dict[str, float]:
        said = {}
        for name, rows in held.items():
            sums = guesses(self._draft, self._target, rows)
            said[f"acceptance_{name}"] = float(sums[:, 1].sum() / sums[:, 0].sum())
            said[f"same_{name}"] = float(sums[:, 2].sum() / sums[:, 0].sum())
        return said

    def _material(self) -> tuple[Material, dict[str, list[Row]]]:
        recipe = self.recipe
        prompts, _ = read_texts(self.folder / "inputs" / "prompts.safetensors")
        shown, _ = read_texts(self.folder / "inputs" / "held.safetensors")
        if not len(prompts) or not len(shown):
            raise ValueError(f"{self.folder / 'inputs'}: no prompts to learn on, or none held out")
        held = {}
        for name, heat in (("greedy", 0.0), ("sampled", 1.0)):
            warmths = torch.full((len(shown),), heat)
            written = self._written(f"held-{name}", shown, warmths, 1)
            held[name] = _rows(written, self._known(f"held-{name}", written))
        fixed = recipe.source == "fixed"
        prompts = prompts if fixed else self._enlarged(prompts)
        texts: Texts | None = None
        if recipe.source in ("target", "mixed"):
            seeded = torch.Generator().manual_seed(recipe.seed)
            rows = prompts.rows()
            asked = Texts.of([rows[i] for i in prompts.draw(recipe.texts, seeded)], prompts.names)
            warmth = torch.tensor(_WARMTH)[torch.randint(3, (len(asked),), generator=seeded)]
            texts = self._written("target", asked, warmth, 3)
        if fixed:
            texts, _ = read_texts(self.folder / "inputs" / "fixed.safetensors")
            if not len(texts):
                raise ValueError("source fixed: the prompts' files hold no reference answers")
        known = (
            nothing_known if texts is None else self._known("fixed" if fixed else "target", texts)
        )
        opening = len(self.about.opening)
        common = None
        if 0 < recipe.columns < len(self._draft.head):
            common = self._most_written(prompts, texts, recipe.columns // 2)
        return Material(prompts, texts, self._ends, max(1, opening), known, common), held

    def _known(self, name: str, texts: Texts) -> Known:
        if self._device.type != "cpu":
            return nothing_known

        def going(done: int, total: int) -> None:
            if self.watch.stopping:
                raise Interrupted("stopped while the target read; the same command goes on")
            self.watch.progress(f"reading: {name}", done, total)

        folder = self.folder / "texts"
        return remember(folder, f"{name}-states", texts, self._target, going)

    def _enlarged(self, prompts: Texts) -> Texts:
        """With prompts that the target invents: what it writes where a user would."""
        if not self.recipe.invented:
            return prompts
        opening, closing = torch.tensor(self.about.opening), torch.tensor(self.about.closing)
        nothing = torch.zeros(0, dtype=torch.int64)
        asked = Texts.of([(opening, nothing, 0)] * self.recipe.invented, prompts.names)
        invented = self._written("invented", asked, torch.ones(len(asked)), 2, _INVENTED)
        whole = [a[:-1] for _, a, _ in invented.rows() if len(a) > 1 and int(a[-1]) in self._ends]
        if not whole:
            self.watch.say("the target invented no prompt that it ended")
        rows = [(torch.cat([opening, a, closing]), nothing, len(prompts.names)) for a in whole]
        return Texts.of([*prompts.rows(), *rows], [*prompts.names, "invented"])

    def _written(
        self, name: str, asked: Texts, warmth: Tensor, use: int, longest: int | None = None
    ) -> Texts:
        return self._writer(name, asked, warmth, use, longest or self.recipe.answer)

    def _digest(self) -> str:
        """Tells this run from others with the same folder."""
        about, dtype = vars(self.about), str(self._target.embedding.dtype)
        said = json.dumps([self.recipe.to_dict(), about, dtype, str(self._start.config)])
        digest = hashlib.sha256(said.encode())
        for path in sorted((self.folder / "inputs").glob("*.safetensors")):
            digest.update(path.read_bytes())
        return digest.hexdigest()


class _Log:
    """A line of JSON for each step and each look, none of them behind the saved state."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._lines = [line for line in lines if json.loads(line)["step"] <= step]

    def add(self, said: Mapping[str, float]) -> None:
        self._lines.append(json.dumps(said))

    def looked(self, step: int) -> bool:
        """Whether the held-out texts were looked at before this step already."""
        said = [json.loads(line) for line in self._lines[-2:]]
        return any(line["step"] == step and "same_greedy" in line for line in said)

    def flush(self) -> None:
        replace_file(self._path, "".join(f"{line}\n" for line in self._lines).encode())


def device_of(name: str | None) -> torch.device:
    """The device of this name; None: a GPU where there is one. Raises ValueError for none."""
    there = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if there else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device: must be cpu or cuda, not {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not there):
        raise ValueError(f"device: torch finds no {device.type} here")
    return device


def check_widths(start: Checkpoint, target: Checkpoint) -> None:
    """Raises ValueError where their heads, of one tokenizer, were padded to two widths."""
    ours, theirs = start.config.vocabulary, target.config.vocabulary
    if ours != theirs:
        paths = f"{start.source.path} and {target.source.path}"
        raise ValueError(f"the heads of {paths} have {ours} and {theirs} tokens")


def frozen(net: Net, device: torch.device, dtype: torch.dtype) -> Net:
    """This net, moved, as what only reads."""
    net.requires_grad_(False)
    tied = net.head is net.embedding
    net.to(device, dtype)
    net.embedding = net.embedding.to(device, dtype)
    net.head = net.embedding if tied else net.head.to(device, dtype)
    net.norm, net.frequencies = net.norm.to(device), net.frequencies.to(device)
    return net


def _rows(texts: Texts, known: Known) -> list[Row]:
    starts = texts.prompts.tolist()
    return [Row(texts.text(i), at, at, known(i)) for i, at in enumerate(starts)]
