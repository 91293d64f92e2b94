"""Laws of the AUROC."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from neurovfm_core.stats.auroc import auroc
from neurovfm_core.stats.bootstrap import auroc_replicates

scored = st.lists(st.tuples(st.integers(-5, 5), st.sampled_from([0.0, 1.0, np.nan])), min_size=2, max_size=40).map(
    lambda pairs: (np.array([s for s, _ in pairs], float), np.array([y for _, y in pairs]))
)


@settings(deadline=None)
@given(scored)
def test_agrees_with_sklearn_or_is_undefined(case):
    scores, labels = case
    known = ~np.isnan(labels)
    if len(set(labels[known])) < 2:
        assert np.isnan(auroc(scores, labels))
    else:
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels[known], scores[known]), abs=1e-12)


@settings(deadline=None)
@given(scored)
def test_turning_the_scores_round_turns_the_area_round(case):
    scores, labels = case
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(scored)
def test_a_monotone_map_of_the_scores_changes_no_replicate(case):
    scores, labels = case
    pair = {"plain": scores[:, None], "cubed": 2 * scores[:, None] ** 3 + 1}
    areas = auroc_replicates(pair, labels[:, None], replicates=20, seed=0)
    np.testing.assert_array_equal(areas["plain"], areas["cubed"])
