"""The supervised pool: a crash, an overrun or a stop costs one item."""

import pytest
from pool_targets import behave, greedy

from neurovfm_core.errors import Reason
from tasks.pool import Lost, Pool


@pytest.fixture
def pool():
    with Pool(behave, workers=2, timeout_s=2.0, memory_gb=8.0) as pool:
        yield pool


def test_every_item_comes_back_once(pool) -> None:
    items = [("ok", number) for number in range(50)]
    outcomes = dict(pool.run(items))
    assert [outcomes[index][:2] for index in range(50)] == items
    assert len({outcome[2] for outcome in outcomes.values()}) <= 2


@pytest.mark.parametrize(
    ("what", "reason", "words"),
    [
        ("segfault", Reason.CRASH, "SIGSEGV"),
        ("exit", Reason.CRASH, "exit code 7"),
        ("hang", Reason.TIMEOUT, "longer than 2 s"),
    ],
)
def test_a_dying_worker_costs_its_item_only(pool, what: str, reason: Reason, words: str) -> None:
    outcomes = dict(pool.run([("ok", 0), (what, 1), ("ok", 2), ("ok", 3)]))
    lost = outcomes.pop(1)
    assert isinstance(lost, Lost)
    assert lost.reason is reason
    assert words in lost.detail
    assert sorted(outcomes) == [0, 2, 3]
    assert dict(pool.run([("ok", 9)]))[0][:2] == ("ok", 9)


def test_a_stop_hands_out_nothing_more(pool) -> None:
    seen = []
    for index, _ in pool.run([("ok", n) for n in range(1000)], should_stop=lambda: len(seen) >= 5):
        seen.append(index)
    assert 5 <= len(seen) < 20


def test_an_item_over_the_memory_limit_does_not_take_the_machine(pool) -> None:
    with Pool(greedy, workers=1, timeout_s=30.0, memory_gb=1.0) as small:
        assert dict(small.run([1]))[0] == "MemoryError"
