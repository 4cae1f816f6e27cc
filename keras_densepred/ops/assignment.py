"""Minimum-cost assignment of queries to targets, for many problems at once.

Shortest augmenting paths (Jonker and Volgenant, "A Shortest Augmenting Path Algorithm for Dense and
Sparse Linear Assignment Problems", 1987): targets are assigned one after the other, each along the
cheapest chain of reassignments that ends at a query still free. Prices of the queries keep the
costs along a chain from being negative, so Dijkstra's algorithm finds it.

Every problem goes its own way in one common loop: in each round it looks at one query more, or
moves one link of the chain that it has found. So the number of rounds is that of the slowest
problem, not the sum over targets of the slowest search, and a round is a few operations on
(problems, Q), whatever the number of problems: the same on the three backends, eager and compiled.
"""

from typing import Any

from keras import ops

from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.loops import while_loop
from keras_densepred.runtime.replicas import on_own_rows

Tensor = Any

HUGE = 1e30  # costs from here on count as not finite: their sums would overflow


def assign(costs: Tensor, valid: Tensor) -> Tensor:
    """The query of each target, such that the sum of their costs is the smallest there is.

    As many targets as possible are assigned, each to another query. Exact up to the rounding of
    float32, of costs from which each target's smallest is subtracted first: a large constant in all
    costs of a problem does no harm. Of several solutions of equal cost, which one is open.

    Args:
        costs: (..., Q, G) float32 cost of giving query q to target g. A cost that is not finite
            (NaN, infinite, or beyond 1e30) marks a pair to avoid: such pairs are taken only where
            there is no solution without them, as few as possible. Takes no gradient.
        valid: (..., G) bool, False for targets that are padding; their costs are not looked at.

    Returns:
        (..., G) int32: the index of a query, or -1 for padding, and for the targets left over where
        there are more targets than queries.
    """
    costs = ops.stop_gradient(ops.cast(costs, "float32"))
    valid = ops.cast(valid, "bool")
    if 0 in costs.shape[-2:]:  # a number that TensorFlow does not know is one at least
        return ops.full(ops.shape(valid), -1, "int32")
    return on_own_rows(_assign, costs, valid)


def _assign(costs: Tensor, valid: Tensor) -> Tensor:
    *_, queries, targets = ops.shape(costs)
    shape = ops.shape(valid)
    costs = ops.reshape(costs, (-1, queries, targets))
    return ops.reshape(_solve(costs, ops.reshape(valid, (-1, targets))), shape)


def _lines(costs: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Costs (P, G, Q), all finite, above the smallest of each target, and those smallest (P, G)."""
    usable = ops.logical_and(ops.abs(costs) < HUGE, valid[..., None])
    highest = ops.max(ops.where(usable, costs, -HUGE), axis=(1, 2), keepdims=True)
    lowest = ops.min(ops.where(usable, costs, HUGE), axis=(1, 2), keepdims=True)
    spread = highest - lowest  # below 0 where nothing is usable
    spread = ops.where(spread > 0.0, spread, 1.0)
    # One pair to avoid is worse than all that the others can differ by.
    targets = ops.cast(ops.shape(costs)[1], "float32")  # TensorFlow may not know it yet
    costs = ops.where(usable, costs, highest + spread * (targets + 1.0))
    smallest = ops.min(costs, axis=2)
    return costs - smallest[..., None], smallest


def _solve(costs: Tensor, valid: Tensor) -> Tensor:
    """(P, G) int32 of costs (P, Q, G) and valid (P, G): the query of each target, or -1."""
    lines, smallest = _lines(ops.transpose(costs, (0, 2, 1)), valid)
    problems, targets, queries = ops.shape(lines)
    query_numbers = ops.arange(queries, dtype="int32")[None]
    target_numbers = ops.arange(targets, dtype="int32")[None]
    first_target = ops.arange(problems, dtype="int32") * targets
    first_query = ops.arange(problems, dtype="int32") * queries
    lines = ops.reshape(lines, (-1, queries))
    smallest = ops.reshape(smallest, (-1,))
    infinity = float("inf")

    def of_query(array: Tensor, query: Tensor) -> Tensor:
        return ops.take(ops.reshape(array, (-1,)), first_query + ops.maximum(query, 0))

    def of_target(array: Tensor, target: Tensor) -> Tensor:
        return ops.take(ops.reshape(array, (-1,)), first_target + ops.maximum(target, 0))

    def next_target(query_of: Tensor) -> Tensor:
        """The first target that waits, or -1."""
        waits = ops.cast(query_of == -1, "int32")
        return ops.where(ops.any(query_of == -1, axis=1), argmax(waits, axis=1), -1)

    def unfinished(query_of, *others):
        return ops.any(query_of == -1)

    # What belongs to a problem, besides the prices of its queries:
    #   query_of, target_of    the assignment so far; -1 is free, and a target with the query
    #                          `queries` is left over
    #   target, query          while a chain is searched: its last target, and the query that this
    #                          one holds (-1: none, it is the first); while a chain changes hands:
    #                          -1, and the next query to do so
    #   reached                length of the chain up to there
    #   distance, before       of each query: the shortest chain known, and the target before it
    #   unread                 queries whose chain is not final
    #   spare, spare_length    the target that is best left over, should no query be free
    def step(
        query_of, target_of, price, target, query, reached, distance, before, unread, spare,
        spare_length,
    ):  # fmt: skip
        searching = target >= 0
        here = first_target + ops.maximum(target, 0)
        reduced = ops.take(lines, here, axis=0) - price
        own = ops.where(query >= 0, of_query(reduced, query), 0.0)
        # The difference first: where costs are equal it is zero.
        through = ops.where(searching, reached, infinity)[:, None] + (reduced - own[:, None])
        shorter = ops.logical_and(through < distance, unread)
        distance = ops.where(shorter, through, distance)
        before = ops.where(shorter, target[:, None], before)
        left_over = reached - own - ops.take(smallest, here)
        better = ops.logical_and(searching, left_over < spare_length)
        spare = ops.where(better, target, spare)
        spare_length = ops.where(better, left_over, spare_length)

        # The nearest query; of those equally near a free one, which ends the search.
        ahead = ops.where(unread, distance, infinity)
        nearest = ops.min(ahead, axis=1)
        is_free = ops.cast(target_of < 0, "int32")
        candidate = argmax(ops.where(ahead == nearest[:, None], 1 + is_free, 0), axis=1)
        exhausted = ops.logical_and(searching, nearest == infinity)
        reads = ops.logical_xor(searching, exhausted)
        is_candidate = ops.logical_and(query_numbers == candidate[:, None], reads[:, None])
        unread = ops.logical_and(unread, ops.logical_not(is_candidate))
        owner = ops.where(exhausted, -1, of_query(target_of, candidate))
        found = ops.logical_and(searching, owner < 0)
        length = ops.where(exhausted, spare_length, nearest)
        dearer = ops.logical_and(found[:, None], ops.logical_not(unread))
        price = ops.where(dearer, price + (distance - length[:, None]), price)
        reached = nearest
        target = ops.where(searching, owner, -1)
        query = ops.where(reads, candidate, query)
        query = ops.where(exhausted, of_target(query_of, spare), query)
        is_spare = ops.logical_and(target_numbers == spare[:, None], exhausted[:, None])
        query_of = ops.where(is_spare, queries, query_of)

        # One link: `query` goes to the target before it, whose own query is the next to go.
        moves = ops.logical_and(target < 0, query >= 0)
        taker = of_query(before, query)
        given_up = of_target(query_of, taker)
        is_query = ops.logical_and(query_numbers == query[:, None], moves[:, None])
        is_taker = ops.logical_and(target_numbers == taker[:, None], moves[:, None])
        target_of = ops.where(is_query, taker[:, None], target_of)
        query_of = ops.where(is_taker, query[:, None], query_of)
        query = ops.where(moves, given_up, query)

        # The next search, where this one has come to its end.
        ends = ops.logical_and(target < 0, query < 0)
        target = ops.where(ends, next_target(query_of), target)
        reached = ops.where(ends, 0.0, reached)
        distance = ops.where(ends[:, None], infinity, distance)
        unread = ops.logical_or(unread, ends[:, None])
        spare_length = ops.where(ends, infinity, spare_length)
        return (
            query_of, target_of, price, target, query, reached, distance, before, unread, spare,
            spare_length,
        )  # fmt: skip

    query_of = ops.where(valid, -1, queries)
    none = ops.full((problems, queries), -1, "int32")
    far = ops.full((problems, queries), infinity, "float32")
    nobody = ops.full((problems,), -1, "int32")
    state = (
        query_of, none, ops.zeros_like(far), next_target(query_of), nobody,
        ops.zeros((problems,), "float32"), far, none, ops.ones((problems, queries), "bool"), nobody,
        ops.full((problems,), infinity, "float32"),
    )  # fmt: skip
    query_of, *_ = while_loop(unfinished, step, state, maximum_iterations=2 * targets * targets)
    return ops.where(query_of == queries, -1, query_of)
