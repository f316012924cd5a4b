"""The choice over convex hulls against trying everything."""

from __future__ import annotations

import itertools
import random

import pytest

from svdq_trt.quantize.spend import KEEP, Option, fit_budget, hull, reach_error, total_bytes, total_error

Curves = dict[str, list[Option]]


def convex(rng: random.Random, nodes: int) -> Curves:
    """Random nodes whose options all lie on their hulls; integers, so that sums are exact."""
    curves = {}
    for i in range(nodes):
        steps = sorted((rng.randint(1, 9) for _ in range(rng.randint(1, 3))), reverse=True)  # saved per byte
        size, error = rng.randint(1, 9), 400
        options = [Option(0, size, error)]
        for j, slope in enumerate(dict.fromkeys(steps), 1):
            more = rng.randint(1, 5)
            size, error = size + more, error - slope * more
            options.append(Option(16 * j, size, error))
        curves[f"n{i}"] = rng.sample(options, len(options))
    return curves


def every_choice(curves: Curves) -> list[tuple[int, float]]:
    found = itertools.product(*curves.values())
    return [(sum(o.bytes for o in some), sum(o.error for o in some)) for some in found]


def best_within(choices: list[tuple[int, float]], budget: int) -> float:
    return min(error for size, error in choices if size <= budget)


@pytest.mark.parametrize("seed", range(20))
def test_budget_is_kept_and_the_choice_is_the_best_at_every_corner(seed):
    curves = convex(random.Random(seed), 5)
    choices = every_choice(curves)
    least, most = min(choices)[0], max(choices)[0]
    assert fit_budget(curves, least - 1) is None
    exact, before = 0, float("inf")
    for budget in range(least, most + 1):
        choice = fit_budget(curves, budget)
        size, error, best = total_bytes(choice), total_error(choice), best_within(choices, budget)
        assert size <= budget and error >= best
        assert error <= before  # more bytes are never worse
        before = error
        exact += error == best
        steepest = max((a.error - b.error) for some in curves.values() for a, b in itertools.pairwise(hull(some)))
        assert error - best < steepest  # the promise: less than one move
    assert exact >= (most - least) // 2 and before == best_within(choices, most)


@pytest.mark.parametrize("seed", range(20))
def test_choice_after_each_move_is_optimal(seed):
    """The greedy choice is optimal at the budgets where moves end."""
    curves = convex(random.Random(100 + seed), 5)
    choices = every_choice(curves)
    moves = sorted(
        (
            ((a.error - b.error) / (b.bytes - a.bytes), b.bytes - a.bytes)
            for some in curves.values()
            for a, b in itertools.pairwise(hull(some))
        ),
        key=lambda m: -m[0],
    )
    budget = min(choices)[0]
    for _, more in moves:
        budget += more
        assert total_error(fit_budget(curves, budget)) == best_within(choices, budget)


@pytest.mark.parametrize("seed", range(20))
def test_target_is_reached_and_a_harder_one_never_takes_less(seed):
    curves = convex(random.Random(200 + seed), 4)
    choices = every_choice(curves)
    worst, best = max(e for _, e in choices), min(e for _, e in choices)
    assert reach_error(curves, best - 1) is None
    before, exact = 0, 0
    for target in range(int(worst), int(best) - 1, -1):
        choice = reach_error(curves, target)
        size, fewest = total_bytes(choice), min(s for s, e in choices if e <= target)
        assert total_error(choice) <= target and fewest <= size and before <= size
        before = size
        exact += size == fewest
    assert exact >= (worst - best) // 2


def test_hull_leaves_out_what_is_never_worth_it():
    options = [Option(0, 10, 8.0), Option(16, 12, 7.5), Option(32, 14, 2.0), Option(48, 16, 2.5), Option(KEEP, 40, 0.0)]
    assert [o.rank for o in hull(options)] == [0, 32, KEEP]


def test_equal_slopes_go_in_the_order_of_the_nodes():
    same = [Option(0, 10, 2.0), Option(16, 20, 1.0)]
    choice = fit_budget({"a": same, "b": same}, 30)
    assert (choice["a"].rank, choice["b"].rank) == (16, 0)


def test_a_node_whose_move_does_not_fit_lets_others_go_on():
    big, small = [Option(0, 1, 100.0), Option(16, 101, 0.0)], [Option(0, 1, 1.0), Option(16, 3, 0.5)]
    choice = fit_budget({"big": big, "small": small}, 50)
    assert (choice["big"].rank, choice["small"].rank) == (0, 16)
