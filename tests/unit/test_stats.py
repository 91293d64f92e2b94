"""AUROC, its intervals and its bootstrap agree with independent implementations."""

import json
import warnings

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from neurovfm_core.errors import UsageError
from neurovfm_core.stats.auroc import (
    auroc,
    bca_interval,
    delong_variance,
    jackknife,
    logit_delong_interval,
)
from neurovfm_core.stats.bootstrap import auroc_replicates, bootstrap_auroc, resample_counts


def studies(seed: int, num: int = 120, classes: int = 5, levels: int = 9, missing: float = 0.1):
    """Scores with heavy ties, some labels missing, prevalence from rare to common."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num, classes)) < np.linspace(0.08, 0.5, classes)).astype(float)
    scores = {
        name: np.round((rng.normal(size=labels.shape) + gain * labels) * levels / 4) / levels
        for name, gain in (("pretrained", 1.5), ("random", 0.5))
    }
    labels[rng.random(labels.shape) < missing] = np.nan
    return scores, labels


@pytest.mark.parametrize("clustered", [False, True])
def test_every_replicate_equals_sklearn_on_the_same_resample(clustered):
    scores, labels = studies(1, classes=3)
    patients = [f"pat_{i // 3}" for i in range(len(labels))] if clustered else None
    ours = auroc_replicates(scores, labels, patients, replicates=66, seed=3)
    counts = resample_counts(len(labels), patients, replicates=66, seed=3)
    for name, matrix in scores.items():
        for c in range(labels.shape[1]):
            known = ~np.isnan(labels[:, c])
            for r in range(66):
                weights = counts[r, known]
                y, s = np.repeat(labels[known, c], weights), np.repeat(matrix[known, c], weights)
                if 0 < y.sum() < len(y):
                    assert ours[name][r, c] == pytest.approx(roc_auc_score(y, s), abs=1e-12)
                else:
                    assert np.isnan(ours[name][r, c])


def test_a_patient_is_drawn_with_all_of_its_studies():
    patients = ["a", "b", "a", "c", "c", "c"]
    counts = resample_counts(6, patients, replicates=50, seed=0)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 3] == counts[:, 5]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()


def test_threads_do_not_change_a_bit():
    scores, labels = studies(2)
    one, two = (auroc_replicates(scores, labels, replicates=300, seed=5, threads=t) for t in (1, 2))
    for name in scores:
        assert one[name].tobytes() == two[name].tobytes()


def test_fewer_replicates_are_the_first_of_more():
    scores, labels = studies(2)
    few, many = (auroc_replicates(scores, labels, replicates=r, seed=5) for r in (100, 200))
    np.testing.assert_array_equal(few["random"], many["random"][:100])


def test_more_than_32767_studies_do_not_overflow():
    rng = np.random.default_rng(0)
    labels = (rng.random((40_000, 1)) < 0.5).astype(float)
    scores = {"a": labels * 0.2 + rng.random(labels.shape)}
    areas = auroc_replicates(scores, labels, replicates=3, seed=1)["a"][:, 0]
    counts = resample_counts(40_000, None, replicates=3, seed=1)
    expected = [roc_auc_score(labels[:, 0], scores["a"][:, 0], sample_weight=w) for w in counts]
    np.testing.assert_allclose(areas, expected, atol=1e-12)


def test_macro_is_averaged_inside_each_replicate():
    scores, labels = studies(4)
    result = bootstrap_auroc(scores, labels, replicates=200, seed=7, min_positives=1)
    areas = auroc_replicates(scores, labels, replicates=200, seed=7)["pretrained"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        macro = np.nanmean(areas, axis=1)
    estimate = result.macro["pretrained"]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(macro, [0.025, 0.975])), abs=1e-14)
    points = [auroc(scores["pretrained"][:, c], labels[:, c]) for c in range(labels.shape[1])]
    assert estimate.value == pytest.approx(np.mean(points), abs=1e-14)


def test_a_difference_uses_the_same_resamples():
    scores, labels = studies(5)
    result = bootstrap_auroc(scores, labels, replicates=200, seed=7)
    areas = auroc_replicates(scores, labels, replicates=200, seed=7)
    difference = result.class_differences["pretrained", "random"][4]
    expected = np.quantile(areas["pretrained"][:, 4] - areas["random"][:, 4], [0.025, 0.975])
    assert (difference.low, difference.high) == pytest.approx(tuple(expected), abs=1e-14)
    separate = (
        result.per_class["pretrained"][4].high
        - result.per_class["pretrained"][4].low
        + result.per_class["random"][4].high
        - result.per_class["random"][4].low
    )
    assert difference.high - difference.low < separate


def test_an_encoder_does_not_differ_from_itself():
    scores, labels = studies(6)
    twin = {"a": scores["random"], "b": scores["random"].copy()}
    difference = bootstrap_auroc(twin, labels, replicates=100, seed=0).differences["a", "b"]
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_rare_classes_are_suppressed_flagged_and_kept_out_of_the_average():
    rng = np.random.default_rng(0)
    labels = np.zeros((100, 3))
    labels[:4, 0], labels[:20, 1], labels[:50, 2] = 1, 1, 1
    scores = {"a": rng.normal(size=labels.shape)}
    result = bootstrap_auroc(scores, labels, replicates=50, class_names=["x", "y", "z"])
    assert [(c.suppressed, c.flagged) for c in result.classes] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert result.macro["a"].value == pytest.approx(np.mean([auroc(scores["a"][:, c], labels[:, c]) for c in (1, 2)]))
    page = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert "auroc" not in page["classes"][0]
    assert page["classes"][1]["num_positives"] == 20
    shown = bootstrap_auroc(scores, labels, replicates=50, min_positives=1).to_dict()
    assert shown["min_positives"] == 1
    assert "auroc" in shown["classes"][0]


def test_undefined_replicates_are_left_out_and_counted():
    labels = np.array([[1.0]] + [[0.0]] * 9)
    result = bootstrap_auroc({"a": np.arange(10.0)[:, None]}, labels, replicates=400, min_positives=1)
    counts = resample_counts(10, None, replicates=400, seed=0)
    undefined = int(((counts[:, 0] == 0) | (counts[:, 0] == 10)).sum())
    assert 0 < result.per_class["a"][0].num_undefined == undefined


def test_a_class_without_positives_is_null_in_json_not_half():
    result = bootstrap_auroc({"a": np.arange(6.0)[:, None]}, np.zeros((6, 1)), replicates=20, min_positives=1)
    assert result.to_dict()["macro"]["a"]["value"] is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_bca_agrees_with_scipy_on_the_same_replicates():
    scores, labels = studies(8, missing=0)
    s, y = scores["pretrained"][:, 3], labels[:, 3]
    positive, negative = s[y == 1], s[y == 0]
    areas = auroc_replicates(scores, labels, replicates=500, seed=1)["pretrained"][:, 3]
    ours = bca_interval(areas, auroc(s, y), jackknife(positive, negative))

    def statistic(index):
        index = index.astype(int)
        return roc_auc_score(y[index], s[index])

    previous = scipy_stats.bootstrap(
        (np.arange(len(y)),), statistic, n_resamples=2, method="percentile", vectorized=False
    )
    previous.bootstrap_distribution = areas
    theirs = scipy_stats.bootstrap(
        (np.arange(len(y)),),
        statistic,
        bootstrap_result=previous,
        n_resamples=0,
        method="BCa",
        vectorized=False,
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_jackknife_agrees_with_leaving_out_one_study_at_a_time():
    scores, labels = studies(9, num=40, missing=0)
    s, y = scores["random"][:, 4], labels[:, 4]
    order = np.concatenate([np.flatnonzero(y == 1), np.flatnonzero(y == 0)])
    brute = [roc_auc_score(np.delete(y, i), np.delete(s, i)) for i in order]
    np.testing.assert_allclose(jackknife(s[y == 1], s[y == 0]), brute, atol=1e-14)


def test_delong_variance_agrees_with_the_pairwise_definition():
    rng = np.random.default_rng(1)
    positive, negative = np.round(rng.normal(1, 1, 23), 1), np.round(rng.normal(0, 1, 41), 1)
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    expected = wins.mean(1).var(ddof=1) / 23 + wins.mean(0).var(ddof=1) / 41
    assert delong_variance(positive, negative) == pytest.approx(expected, abs=1e-15)


def test_bootstrap_and_delong_standard_errors_agree():
    scores, labels = studies(10, num=900, levels=1000, missing=0)
    areas = auroc_replicates(scores, labels, replicates=1500, seed=2)["pretrained"]
    for c in (2, 4):
        s, y = scores["pretrained"][:, c], labels[:, c]
        analytic = np.sqrt(delong_variance(s[y == 1], s[y == 0]))
        assert areas[:, c].std(ddof=1) == pytest.approx(analytic, rel=0.08)


def test_perfect_separation_has_no_logit_interval():
    assert np.isnan(logit_delong_interval(np.array([2.0, 3.0]), np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ({"a": np.zeros((4, 2))}, np.zeros((4, 3))),
        ({}, np.zeros((4, 3))),
        ({"a": np.full((4, 1), np.nan)}, np.array([[0.0], [1], [0], [1]])),
        ({"a": np.zeros((2, 1))}, np.array([[0.5], [1]])),
    ],
)
def test_input_that_makes_no_sense_is_refused(scores, labels):
    with pytest.raises(UsageError):
        bootstrap_auroc(scores, labels, replicates=5)
