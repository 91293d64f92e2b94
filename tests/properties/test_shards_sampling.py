"""Orders and batches: laws that resuming and training rest on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovfm_core.errors import UsageError
from neurovfm_core.shards import epoch_order, pack_by_budget

names = st.lists(st.text("abcdefgh234567", min_size=1, max_size=6), unique=True, max_size=40)


@given(ids=names, seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), data=st.data())
def test_an_epoch_is_a_permutation_that_forgets_the_order_given(ids, seed, epoch, data):
    order = epoch_order(seed, epoch, ids)
    assert sorted(order) == sorted(ids)
    assert epoch_order(seed, epoch, data.draw(st.permutations(ids))) == order


@given(ids=names, seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), data=st.data())
def test_new_volumes_leave_the_order_of_the_others_alone(ids, seed, epoch, data):
    fewer = [one for one in ids if data.draw(st.booleans())]
    order = [one for one in epoch_order(seed, epoch, ids) if one in set(fewer)]
    assert epoch_order(seed, epoch, fewer) == order


def test_epochs_and_seeds_differ_and_first_places_are_fair():
    ids = [f"ser_{n}" for n in range(50)]
    orders = {tuple(epoch_order(seed, epoch, ids)) for seed in range(4) for epoch in range(5)}
    assert len(orders) == 20
    firsts = [epoch_order(1, epoch, ids)[0] for epoch in range(400)]
    assert max(map(firsts.count, ids)) < 30  # 8 expected; 30 has a probability below 1e-8


@given(lengths=st.lists(st.integers(0, 100), max_size=60), budget=st.integers(100, 400))
def test_packing_loses_nothing_and_keeps_the_budget(lengths, budget):
    batches = pack_by_budget(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in batch) <= budget for batch in batches)
    assert sum(2 * sum(lengths[i] for i in batch) <= budget for batch in batches) <= 1


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_packing_fills_realistic_batches(seed):
    lengths = np.random.default_rng(seed).gamma(2.0, 180, 600).clip(20, 4000).astype(int).tolist()
    batches = pack_by_budget(lengths, 16_384)
    assert len(batches) <= -(-sum(lengths) // 16_384) + 1  # one more than if tokens were a liquid


def test_a_sequence_larger_than_the_budget_is_refused_by_its_size():
    with pytest.raises(UsageError, match="500 tokens"):
        pack_by_budget([10, 500], 400)
