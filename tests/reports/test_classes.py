"""Claims about a classifier's sections: their numbers are those of naive loops over the predictions."""

from __future__ import annotations

import numpy as np
import torch

from espalier.pages import Figure, Gallery, Section, Table, Text
from espalier.reports import classes
from espalier.reports.look import Look


def table(section: Section, place: int = 0) -> Table:
    return [block for block in section.blocks if isinstance(block, Table)][place]


def test_classes_are_counted_one_by_one(looks: list[Look]) -> None:
    look = looks[0]
    rows = table(classes.per_class(look)).rows
    answers = look.probs.argmax(1)
    for place, row in enumerate(rows):
        own, said = look.labels == place, answers == place
        assert row[1] == f"{own.sum()}"
        assert str(row[2]).startswith(f"{(own & said).sum() / own.sum():.3f}")
        assert str(row[3]).startswith(f"{(own & said).sum() / said.sum():.3f}" if said.any() else "none")


def test_the_confusion_is_shared_by_true_class_and_its_sentence_names_the_worst(looks: list[Look]) -> None:
    look = looks[0]
    found = next(block for block in classes.per_class(look).blocks if isinstance(block, Figure))
    assert found.data is not None
    shares = np.array([row[1:] for row in found.data[1]], dtype=float)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(
        np.average(np.diag(shares), weights=np.bincount(look.labels)), (look.probs.argmax(1) == look.labels).mean()
    )
    wrong = look.probs.argmax(1) != look.labels
    pairs, counts = np.unique(np.stack([look.labels, look.probs.argmax(1)], 1)[wrong], axis=0, return_counts=True)
    worst = {
        f"Most often {a} is taken for {b}: {n} of" for (a, b), n in zip(pairs, counts, strict=True) if n == counts.max()
    }
    assert any(found.says.startswith(said) for said in worst)


def test_the_gallery_shows_the_most_confident_errors_first(looks: list[Look]) -> None:
    look = looks[0]
    wrong = np.flatnonzero(look.probs.argmax(1) != look.labels)
    order = wrong[np.argsort(-look.probs[wrong].max(1), kind="stable")]
    gallery = next(block for block in classes.examples(look).blocks if isinstance(block, Gallery))
    assert gallery.title == "Most confidently wrong"
    shown = [int(example.lines[1].split()[1].rstrip(",")) for example in gallery.examples]
    assert shown == order[: classes.SHOWN].tolist()
    assert all(example.png for example in gallery.examples)


def test_without_masks_nothing_differs_between_draws(looks: list[Look]) -> None:
    titles = [block.title for block in classes.examples(looks[1]).blocks if isinstance(block, Gallery)]
    assert "Draws differ most" not in titles
    assert "Draws differ most" in [
        block.title for block in classes.examples(looks[0]).blocks if isinstance(block, Gallery)
    ]


def test_risk_at_full_coverage_is_the_error(looks: list[Look]) -> None:
    found = next(block for block in classes.selective(looks).blocks if isinstance(block, Figure))
    assert found.data is not None
    for look in looks:
        last = [row for row in found.data[1] if row[0] == f"{look.name}: confidence"][-1]
        assert last[1] == 1.0
        np.testing.assert_allclose(last[2], (look.probs.argmax(1) != look.labels).mean())


def test_reliability_says_which_way_it_errs(looks: list[Look]) -> None:
    said = [block.text for block in classes.reliability(looks).blocks if isinstance(block, Text)]
    for look, text in zip(looks, said, strict=True):
        gap = look.probs.max(1).mean() - (look.probs.argmax(1) == look.labels).mean()
        assert f"{'over' if gap > 0 else 'under'}-confident by {abs(gap):.3f}" in text


def test_where_no_answer_is_right_that_is_said(looks: list[Look]) -> None:
    others = torch.from_numpy((looks[0].probs.argmax(1) + 1) % looks[0].probs.shape[1])
    data = looks[0].data._replace(test=looks[0].data.test._replace(y=others))
    wrong = looks[0]._replace(data=data)
    says = next(block for block in classes.certainty([wrong]).blocks if isinstance(block, Text))
    assert f"No answer of {wrong.name} is right." in says.text
