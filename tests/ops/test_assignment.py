"""Minimum-cost assignment against SciPy's."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from scipy.optimize import linear_sum_assignment

from keras_densepred.ops import assignment
from keras_densepred.ops.assignment import assign


def solve(costs, valid):
    """`assign`, compiled where the backend compiles."""
    costs, valid = ops.convert_to_tensor(costs), ops.convert_to_tensor(valid)
    return ops.convert_to_numpy(compiled(costs.shape[-1])(costs, valid))


@functools.cache
def compiled(targets):
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(assign)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        specs = [tf.TensorSpec((None, None, targets)), tf.TensorSpec((None, targets), tf.bool)]
        return tf.function(assign, input_signature=specs)
    return assign


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


@pytest.mark.parametrize("queries,targets", [(30, 12), (12, 12), (7, 12), (2, 1)])
def test_total_cost_is_the_smallest(queries, targets):
    costs, valid = problems(np.random.default_rng(queries), 100, queries, targets)
    assert excess(costs, valid, solve(costs, valid)) < 1e-5


def test_reference_files(golden):
    data = np.load(golden / "detr" / "assignment.npz")
    # All in one batch: no query beyond those of a problem has finite costs.
    costs = np.full((6, 300, 63), np.inf, "float32")
    valid = np.zeros((6, 63), bool)
    for k in range(6):
        queries, targets = data[f"cost_{k}"].shape
        costs[k, :queries, :targets] = data[f"cost_{k}"]
        valid[k, :targets] = True
    for k, found in enumerate(solve(costs, valid)):
        cost = data[f"cost_{k}"]
        target = np.flatnonzero((found >= 0) & (found < len(cost)))
        total = cost[found[target], target].astype("float64").sum()
        assert total == pytest.approx(float(data[f"total_{k}"]), abs=1e-4)
        if k != 2:  # has ties
            expected = dict(zip(data[f"target_{k}"], data[f"query_{k}"], strict=True))
            assert dict(zip(target, found[target], strict=True)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("queries,targets", [(60, 15), (25, 25), (15, 40), (100, 12), (4, 3)])
def test_total_cost_is_the_smallest_of_2000_problems(queries, targets):
    costs, valid = problems(np.random.default_rng(targets), 2000, queries, targets)
    # Which targets are left over is decided by whole costs of up to 1e3, not by their differences.
    rounding = 10 * np.spacing(np.float32(1e3)) if targets > queries else 1e-5
    assert excess(costs, valid, solve(costs, valid)) < rounding


def test_leading_axes_and_no_targets():
    costs, valid = problems(np.random.default_rng(1), 100, 12, 12)
    flat = solve(costs, valid)
    function = assign
    if keras.config.backend() == "jax":
        import jax

        function = jax.jit(assign)
    nested = function(costs.reshape(4, 25, 12, 12), valid.reshape(4, 25, 12))
    assert np.array_equal(ops.convert_to_numpy(nested), flat.reshape(4, 25, 12))
    assert (solve(costs, np.zeros_like(valid)) == -1).all()
    assert solve(costs[..., :0], valid[:, :0]).shape == (100, 0)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="rounds are Python's on PyTorch")
def test_equal_costs_take_as_many_rounds_as_targets(monkeypatch):
    rounds = []
    loop = assignment.while_loop

    def counting(cond, body, state, maximum_iterations):
        rounds.append(0)

        def counted(*values):
            rounds[-1] += 1
            return body(*values)

        return loop(cond, counted, state, maximum_iterations)

    monkeypatch.setattr(assignment, "while_loop", counting)
    queries = solve(np.zeros((2, 30, 20), "float32"), np.ones((2, 20), bool))
    assert all(len(set(row)) == 20 for row in queries.tolist())
    assert rounds == [20]


def test_a_pair_of_no_finite_cost_is_taken_only_where_there_is_no_other():
    costs = np.array([[1, 2, 0], [3, 5, 0], [9, 9, 0]], "float32")[None].repeat(4, 0)
    costs[0, 0, 0] = np.nan  # so target 0 takes query 1, and target 1 query 0
    costs[1, :, 0] = np.inf, 4, np.nan
    costs[2] = np.nan
    costs[3, :, 2] = -np.inf
    valid = np.array([[True, True, False]] * 3 + [[True, True, True]])
    queries = solve(costs, valid)
    assert queries[0].tolist() == [1, 0, -1]
    assert queries[1].tolist() == [1, 0, -1]
    assert len(set(queries[2, :2].tolist())) == 2
    assert sorted(queries[3].tolist()) == [0, 1, 2]
    assert sum(costs[3, queries[3, :2], [0, 1]]) == 5.0


def test_costs_of_padding_are_not_looked_at():
    costs, valid = problems(np.random.default_rng(2), 100, 12, 12)
    valid[:, 1] = valid[:, 4] = False
    expected = solve(costs, valid)
    costs[:, :, 1], costs[:, :, 4] = np.nan, -1e6
    assert np.array_equal(solve(costs, valid), expected)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow's XLA")
def test_compiled_by_xla_it_gives_the_same():
    import tensorflow as tf

    costs, valid = problems(np.random.default_rng(3), 8, 7, 12)
    queries = tf.function(assign, jit_compile=True)(costs, valid)
    assert np.array_equal(queries, solve(costs, valid))


@pytest.mark.skipif(keras.config.backend() != "jax", reason="lowers with JAX")
def test_it_lowers_for_tpu():
    import jax

    specs = [jax.ShapeDtypeStruct((2, 7, 5), "float32"), jax.ShapeDtypeStruct((2, 5), "bool")]
    exported = jax.export.export(jax.jit(assign), platforms=["tpu"])(*specs)
    assert "custom_call" not in exported.mlir_module()  # nothing that calls back into the host


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="others know all shapes")
def test_an_open_number_of_problems_and_targets():
    """TensorFlow stops telling how many targets there are once it has seen several numbers."""
    import tensorflow as tf

    kinds = [tf.TensorSpec((None, 6, None)), tf.TensorSpec((None, None), tf.bool)]
    compiled = tf.function(assign, input_signature=kinds)
    for targets in (1, 9):
        costs = np.random.default_rng(targets).normal(size=(2, 6, targets)).astype("float32")
        valid = np.ones((2, targets), bool)
        np.testing.assert_array_equal(compiled(costs, valid), assign(costs, valid))
