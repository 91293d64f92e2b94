"""Heads, probe training and their files."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from neurovfm_core.errors import Excluded, Reason, UsageError
from neurovfm_core.models.pooling import (
    ClassifyThenAggregate,
    HeadShape,
    MeanThenClassify,
    fold_standardization,
)
from neurovfm_core.probing.features import Bag, cap_tokens
from neurovfm_core.probing.heads import load_head, save_head
from neurovfm_core.probing.probe import masked_bce, train_probe
from neurovfm_core.probing.settings import ProbeParams, label_matrix
from neurovfm_core.vocabulary import LabelState, Split

LABELS = ("acute_infarct", "brain_tumor", "never_seen")
FAST = ProbeParams(hidden=16, mlp=(), epochs=20, patience=20, learning_rate=1e-2, weight_decay=1.0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bag(study_id: str, features: np.ndarray) -> Bag:
    n = len(features)
    zeros = np.zeros(n, np.int32)
    return Bag(study_id, np.float32(features), np.zeros((n, 3), np.int32), zeros, np.uint8(zeros), ("ser_v0",), n)


@pytest.fixture(scope="module")
def hospital():
    """64 studies; a label in the report is a shifted feature in a few of the study's tokens."""
    rng = np.random.default_rng(0)
    targets = np.zeros((64, 3), np.float32)
    targets[:, :2] = rng.random((64, 2)) < 0.4
    targets[rng.random(targets.shape) < 0.1] = np.nan
    bags = []
    for i, wanted in enumerate(targets):
        x = rng.normal(size=(int(rng.integers(30, 60)), 12)) * 3 + 5
        for c in np.flatnonzero(wanted == 1):
            x[:10, c] += 12
        bags.append(bag(f"stu_{i}", x))
    split = [Split.TRAIN] * 32 + [Split.VAL] * 12 + [Split.TEST] * 20
    return bags, targets, split


@pytest.fixture(scope="module")
def fitted(hospital):
    return train_probe(*hospital, FAST, labels=LABELS)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shared_votes", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_evidence_sums_to_the_bag_logit_before_scale_and_bias(gated, shared_votes, normed):
    shape = HeadShape(10, 7, hidden=8, mlp=(6,), gated=gated, normed=normed, shared_votes=shared_votes)
    head = ClassifyThenAggregate(shape, seed=3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    x = torch.randn(23, 10, generator=torch.Generator().manual_seed(2))
    evidence = head.evidence(x)
    assert evidence.shape == (23, 7)
    torch.testing.assert_close(head.rescale(evidence.sum(0)), head(x, [23])[0])


def test_attention_agrees_with_the_formula_written_label_by_label():
    head = ClassifyThenAggregate(HeadShape(5, 3, hidden=4, mlp=(6,)), seed=0)
    x = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    state = head.state_dict()
    hidden = torch.tanh(x @ state["attention_V.weight"].T + state["attention_V.bias"])
    hidden = hidden * torch.sigmoid(x @ state["gating_V.weight"].T + state["gating_V.bias"])
    votes = F.gelu(x @ state["mlp.mlp.0.weight"].T + state["mlp.mlp.0.bias"])
    votes = votes @ state["mlp.mlp.2.weight"].T + state["mlp.mlp.2.bias"]
    for c in range(3):
        score = hidden @ state["W.weight"][c] + state["W.bias"][c]
        weight = score.exp() / score.exp().sum()
        torch.testing.assert_close(head(x, [11])[0, c], (weight * votes[:, c]).sum())


@pytest.mark.parametrize("kind", [ClassifyThenAggregate, MeanThenClassify])
def test_a_study_gets_the_same_logits_alone_and_in_a_batch(kind):
    head = kind(HeadShape(5, 3, hidden=4, mlp=(6,)))
    bags = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (4, 9, 1)]
    together = head(torch.cat(bags), [4, 9, 1])
    torch.testing.assert_close(together, torch.cat([head(x, [len(x)]) for x in bags]))


def test_a_head_has_the_tensors_of_a_published_one():
    shapes = {k: tuple(v.shape) for k, v in ClassifyThenAggregate(HeadShape(768, 74)).state_dict().items()}
    assert shapes == {
        "attention_V.weight": (512, 768),
        "attention_V.bias": (512,),
        "gating_V.weight": (512, 768),
        "gating_V.bias": (512,),
        "W.weight": (74, 512),
        "W.bias": (74,),
        "mlp.mlp.0.weight": (384, 768),
        "mlp.mlp.0.bias": (384,),
        "mlp.mlp.2.weight": (74, 384),
        "mlp.mlp.2.bias": (74,),
        "output_scale": (74,),
        "output_bias": (74,),
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_149_352


@pytest.mark.parametrize("kind", [ClassifyThenAggregate, MeanThenClassify])
def test_folding_the_standardisation_changes_no_output(kind):
    generator = torch.Generator().manual_seed(5)
    head = kind(HeadShape(6, 4, hidden=5, mlp=(7,)))
    raw = torch.randn(20, 6, generator=generator) * 30 + 100
    mean, std = raw.mean(0), raw.std(0)
    before = head((raw - mean) / std, [12, 8])
    fold_standardization(head, mean, std)
    torch.testing.assert_close(head(raw, [12, 8]), before, atol=1e-5, rtol=1e-4)


def test_label_states_become_targets_as_the_settings_say():
    study = {str(state): state for state in LabelState}
    names = [str(state) for state in LabelState]
    assert names == ["present", "uncertain", "absent", "historical", "not_mentioned"]
    nan = math.nan
    np.testing.assert_array_equal(label_matrix([study], [*names, "unheard"], ProbeParams()), [[1, nan, 0, 0, 0, nan]])
    other = ProbeParams(uncertain_as="present", historical_as="missing", not_mentioned_as="missing")
    np.testing.assert_array_equal(label_matrix([study], names, other), [[1, 1, 0, nan, nan]])
    assert label_matrix([], names, other).shape == (0, 5)


def test_missing_targets_have_neither_loss_nor_gradient():
    logits = torch.tensor([[0.3, -2.0], [1.0, 4.0]], requires_grad=True)
    targets = torch.tensor([[1.0, math.nan], [math.nan, 0.0]])
    weight = torch.tensor([3.0, 1.0])
    loss = masked_bce(logits, targets, weight)
    loss.backward()
    expected = (3 * F.softplus(torch.tensor(-0.3)) + F.softplus(torch.tensor(4.0))) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad[0, 1] == logits.grad[1, 0] == 0
    assert logits.grad[0, 0] != 0


def test_a_probe_finds_a_planted_signal_in_unseen_studies(hospital, fitted):
    bags, targets, _ = hospital
    logits = fitted.predict(bags[44:])
    for column, c in enumerate(fitted.columns(LABELS)):
        known = ~np.isnan(targets[44:, c])
        assert roc_auc_score(targets[44:, c][known], logits[known, column]) > 0.9


def test_evidence_points_at_the_planted_tokens(hospital, fitted):
    bags, targets, _ = hospital
    study = 44 + int(np.flatnonzero(targets[44:, 0] == 1)[0])
    evidence = fitted.evidence(bags[study])[:, 0]
    assert evidence[:10].sum() > evidence[10:].sum()


def test_a_label_without_positives_gets_no_head_and_is_named(fitted):
    assert fitted.labels == LABELS[:2]
    assert [row["label"] for row in fitted.facts["labels_without_head"]] == ["never_seen"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(hospital, fitted):
    again = train_probe(*hospital, FAST, labels=LABELS).predict(hospital[0])
    assert again.tobytes() == fitted.predict(hospital[0]).tobytes()
    other = train_probe(*hospital, FAST.model_copy(update={"seed": 1}), labels=LABELS)
    assert other.predict(hospital[0]).tobytes() != again.tobytes()


def test_test_studies_are_never_looked_at(hospital, fitted):
    bags, targets, split = hospital
    garbled = [*bags[:44], *(bag("stu_x", np.full((3, 12), 1e6)) for _ in range(20))]
    turned = np.concatenate([targets[:44], 1 - targets[44:]])
    logits = train_probe(garbled, turned, split, FAST, labels=LABELS).predict(bags)
    assert logits.tobytes() == fitted.predict(bags).tobytes()


def test_validation_decides_only_when_to_stop(hospital, fitted):
    bags, targets, split = hospital
    turned = targets.copy()
    turned[32:44] = 1 - turned[32:44]
    other = train_probe(bags, turned, split, FAST, labels=LABELS)
    losses, same = ([row["train_loss"] for row in probe.facts["history"]] for probe in (other, fitted))
    assert losses == same
    assert other.facts["best_epoch"] < fitted.facts["best_epoch"]


def test_the_weight_of_positives_is_capped(hospital):
    bags, _, split = hospital
    rare = np.zeros((64, 1), np.float32)
    rare[[0, 1, 40, 50]] = 1
    for cap, expected in ((100.0, 15.0), (4.0, 4.0)):
        params = FAST.model_copy(update={"pos_weight_cap": cap, "epochs": 1})
        facts = train_probe(bags, rare, split, params, labels=["rare"]).facts
        assert facts["labels"][0]["pos_weight"] == expected


def test_nothing_to_learn_is_refused_by_reason(hospital):
    bags, targets, split = hospital
    with pytest.raises(Excluded) as refused:
        train_probe(bags, targets[:, 2:], split, FAST, labels=LABELS[2:])
    assert refused.value.reason is Reason.TOO_FEW_LABELS
    with pytest.raises(UsageError, match="validation"):
        train_probe(bags, targets, [Split.TRAIN] * 64, FAST, labels=LABELS)


def test_a_cap_on_tokens_belongs_to_the_study_and_keeps_the_order(hospital):
    one, two = hospital[0][0], hospital[0][1]
    kept = cap_tokens(one, 10, seed=4)
    assert len(kept) == 10
    assert kept.num_tokens_seen == len(one)
    np.testing.assert_array_equal(kept.features, cap_tokens(one, 10, seed=4).features)
    rows = [np.flatnonzero((one.features == row).all(1))[0] for row in kept.features]
    assert rows == sorted(set(rows))
    assert cap_tokens(two, 10**6, seed=4) is two


@pytest.mark.parametrize("pooling", ["classify_then_aggregate", "avgpool"])
def test_a_saved_head_comes_back_bit_for_bit(hospital, tmp_path, pooling):
    params = FAST.model_copy(update={"pooling": pooling, "epochs": 3, "mlp": (8,)})
    fitted = train_probe(*hospital, params, labels=LABELS)
    save_head(tmp_path / "a", fitted, {"modality": "MR"})
    save_head(tmp_path / "b", fitted, {"modality": "MR"})
    for name in ("config.json", "card.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    back = load_head(tmp_path / "a")
    assert back.predict(hospital[0]).tobytes() == fitted.predict(hospital[0]).tobytes()
    assert (back.labels, back.params, back.facts) == (fitted.labels, fitted.params, fitted.facts)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["which"] == pooling
    assert config["params"]["W_out"] == 2


def test_a_head_that_does_not_fit_its_config_is_refused_by_name(hospital, fitted, tmp_path):
    with pytest.raises(UsageError, match=r"config\.json"):
        load_head(tmp_path)
    save_head(tmp_path, fitted, {})
    config = json.loads((tmp_path / "config.json").read_text())
    config["params"]["hidden_dim"] = 99
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"attention_V\.weight"):
        load_head(tmp_path)
