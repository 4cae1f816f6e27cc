"""Minimum-cost assignment against SciPy's."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.optimize import linear_sum_assignment

from keras_densepred.ops.assignment import assign


def solve(costs, valid):
    return ops.convert_to_numpy(assign(costs, valid))


def excess(costs, valid, queries):
    """By how much the totals of a batch exceed SciPy's; asserts that each is an assignment."""
    worst = 0.0
    for cost, is_valid, query in zip(costs, valid, queries, strict=True):
        assert (query[~is_valid] == -1).all()
        cost, query = cost[:, is_valid].astype("float64"), query[is_valid]
        theirs = linear_sum_assignment(cost)
        target = np.flatnonzero(query >= 0)
        assert len(target) == len(theirs[0]) == len(set(query[target].tolist()))
        worst = max(worst, cost[query[target], target].sum() - cost[theirs].sum())
    return worst


def problems(rng, num, queries, targets):
    """Costs of four kinds, a part of the targets padding, some problems without any."""
    costs = rng.normal(size=(num, queries, targets))
    kind = np.arange(num) % 4
    costs[kind == 1] = np.round(costs[kind == 1])  # ties
    costs[kind == 2] = 1e3 + 1e-3 * costs[kind == 2]
    offset = rng.uniform(0, 1e3, (num, 1, targets))
    costs[kind == 3] = (offset + 1e-3 * costs)[kind == 3]
    valid = rng.uniform(size=(num, targets)) < rng.choice([0.0, 0.5, 0.9, 1.0], (num, 1))
    return costs.astype("float32"), valid


@pytest.mark.parametrize("queries,targets", [(30, 7), (7, 12), (11, 11), (5, 1), (1, 5)])
def test_total_cost_is_the_smallest(queries, targets):
    costs, valid = problems(np.random.default_rng(queries), 100, queries, targets)
    assert excess(costs, valid, solve(costs, valid)) < 1e-5


def test_reference_files(golden):
    data = np.load(golden / "detr" / "assignment.npz")
    for k in range(6):
        cost = data[f"cost_{k}"]
        queries = solve(cost, np.ones(cost.shape[1], bool))
        target = np.flatnonzero(queries >= 0)
        total = cost[queries[target], target].astype("float64").sum()
        assert total == pytest.approx(float(data[f"total_{k}"]), abs=1e-4)
        if k != 2:  # has ties
            expected = dict(zip(data[f"target_{k}"], data[f"query_{k}"], strict=True))
            assert dict(zip(target, queries[target], strict=True)) == expected
