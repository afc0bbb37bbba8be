"""What a head learns from: drafts in one pass are those made one token after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.training.acceptance_samples import Pair, Samples
from app.training.net import Net
from tests.app.engines.embedded.tiny import EOS, VOCABULARY
from tests.app.training.heads import pair

TEXT = torch.tensor([72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 108, 100])
PROMPT = 4


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def state(net: Net, ids: Tensor) -> Tensor:
    """Behind the last of these."""
    with torch.no_grad():
        return net(ids[None])[0, -1]


def logs(net: Net, hidden: Tensor) -> Tensor:
    return torch.log_softmax(hidden @ net.head.T, -1)


@pytest.mark.parametrize("greedy", [True, False])
def test_a_draft_is_what_the_draft_model_would_write(tiny_folder: Path, greedy: bool) -> None:
    """Computed again from nothing but whole texts, one draft and one guess at a time."""
    both, starts, longest = pair(tiny_folder), torch.tensor([4, 7, 12]), 3
    flags = torch.full((3,), greedy)
    found = both.rounds(TEXT, starts, longest, flags, seeded())
    assert len(found) == 9
    for draft, start in enumerate(starts.tolist()):
        text, chance = TEXT[:start], 1.0
        for step in range(longest):
            at = draft * longest + step
            hidden = state(both.draft, text)
            torch.testing.assert_close(found.before[at].float(), hidden, atol=0.03, rtol=0.01)
            log_q, log_p = logs(both.draft, hidden), logs(both.target, state(both.target, text))
            told = found.extras[at]
            # The guess is whichever token has this log-probability.
            guess = int((log_q - told[0]).abs().argmin())
            assert float((log_q - told[0]).abs().min()) < 1e-4
            assert float(told[1]) == pytest.approx(float(-(log_q.exp() * log_q).sum()), rel=1e-4)
            assert float(told[2]) == greedy
            if greedy:
                assert guess == int(log_q.argmax())
                accepted = float(int(log_p.argmax()) == guess)
            else:
                accepted = min(1.0, float((log_p - log_q)[guess].exp()))
            assert float(found.accepted[at]) == pytest.approx(accepted, rel=1e-3)
            assert float(found.reached[at]) == pytest.approx(chance, rel=1e-3, abs=1e-6)
            text = torch.cat([text, torch.tensor([guess])])
            after = state(both.draft, text)
            torch.testing.assert_close(found.after[at].float(), after, atol=0.03, rtol=0.01)
            chance *= accepted * (guess != EOS)


def test_nothing_is_reached_behind_the_end(tiny_folder: Path) -> None:
    whole = pair(tiny_folder)
    every = frozenset(range(VOCABULARY))
    ending = Pair(whole.draft, whole.target, None, every)
    found = ending.rounds(TEXT, torch.tensor([5, 9]), 3, torch.tensor([True, False]), seeded())
    assert found.reached.view(2, 3).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_trimmed_head_guesses_its_own_tokens_alone(tiny_folder: Path) -> None:
    known = torch.tensor([3, 30, 200])
    both = pair(tiny_folder, known)
    found = both.rounds(TEXT, torch.arange(4, 12), 2, torch.zeros(8).bool(), seeded())
    log_q = torch.log_softmax((both.draft(TEXT[None])[0, 3:11] @ both.draft.head.T)[:, known], -1)
    gaps = (log_q.detach() - found.extras.view(8, 2, 3)[:, 0, :1]).abs()
    assert (gaps.min(1).values < 1e-4).all()
    assert (found.extras[:, 1] < 1.0987).all()  # log 3


def test_mixed_texts_are_those_of_specdec(tiny_folder: Path) -> None:
    """The draft reads what it drew itself, and each of these tokens is a sample."""
    both = pair(tiny_folder)
    found = both.mixed(TEXT, PROMPT, 0.0, seeded())
    assert len(found) == 2 * 8
    with torch.no_grad():
        log_q = logs(both.draft, both.draft(TEXT[None])[0, 3:11])
    for half in (slice(0, 8), slice(8, 16)):
        drawn = (log_q - found.extras[half, :1]).abs().argmin(1)
        with torch.no_grad():
            hidden = both.draft(torch.cat([TEXT[:PROMPT], drawn])[None])[0]
        torch.testing.assert_close(found.before[half].float(), hidden[3:11], atol=0.03, rtol=0.01)
        torch.testing.assert_close(found.after[half].float(), hidden[4:12], atol=0.03, rtol=0.01)
    assert found.extras[:, 2].tolist() == [0.0] * 8 + [1.0] * 8
    assert (found.reached == 1).all()
    assert set(found.accepted[8:].tolist()) <= {0.0, 1.0}


def test_a_share_of_a_mixed_text_is_the_target_s_and_no_sample(tiny_folder: Path) -> None:
    both = pair(tiny_folder)
    made = [both.mixed(TEXT, PROMPT, 0.25, torch.Generator().manual_seed(n)) for n in range(40)]
    assert sum(len(found) for found in made) / (40 * 2 * 8) == pytest.approx(0.75, abs=0.06)


def test_with_nothing_mixed_every_place_is_a_sample_of_the_text_itself(tiny_folder: Path) -> None:
    both = pair(tiny_folder)
    found = both.mixed(TEXT, PROMPT, 1.0, seeded())
    assert len(found) == 2 * 8
    with torch.no_grad():
        hidden = both.draft(TEXT[None])[0]
    for half in (slice(0, 8), slice(8, 16)):
        torch.testing.assert_close(found.before[half].float(), hidden[3:11], atol=0.03, rtol=0.01)
    # How often what is drawn from q is kept is, in the mean, the overlap of p and q.
    drawn = [both.mixed(TEXT, PROMPT, 1.0, torch.Generator().manual_seed(n)) for n in range(200)]
    kept = torch.stack([each.accepted[:8] for each in drawn]).mean()
    with torch.no_grad():
        q = logs(both.draft, hidden[3:11]).exp()
        p = logs(both.target, both.target(TEXT[None])[0, 3:11]).exp()
    assert float(kept) == pytest.approx(float(torch.minimum(p, q).sum(1).mean()), abs=0.03)


def test_samples_in_a_file(tiny_folder: Path, tmp_path: Path) -> None:
    found = pair(tiny_folder).mixed(TEXT, PROMPT, 1.0, seeded())
    path = tmp_path / "samples.safetensors"
    found.save(path, {"said": "one"})
    read = Samples.read(path, {"said": "one"})
    assert read is not None and torch.equal(read.before, found.before)
    assert torch.equal(read.accepted, found.accepted)
    assert Samples.read(path, {"said": "other"}) is None
    path.write_bytes(path.read_bytes()[:100])
    assert Samples.read(path, {"said": "one"}) is None
    assert len(Samples.joined([found, found.at(found.extras[:, 2] > 0)])) == 24
