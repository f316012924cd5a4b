"""Which calls of a denoiser follow each other."""

from __future__ import annotations

import pytest

from svdq_trt.models.call_order import CallOrder


def counted(*timesteps, context=""):
    order = CallOrder()
    return [order.next(context, float(t)) for t in timesteps]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("timesteps", "want"),
    [
        ((3, 2, 1), [(0, False)] * 3),
        ((3, 3, 2, 2), [(0, False), (1, False)] * 2),  # two branches of guidance
        ((3, 2, 2, 1, 1), [(0, False), (0, False), (1, False), (0, False), (1, False)]),  # Heun's second order
        ((3, 2, 3, 2), [(0, False), (0, False), (0, True), (0, False)]),  # another picture
        ((3, 2, 1, 2), [(0, False)] * 3 + [(0, True)]),  # another one that begins later
        ((3,) * 5, [(0, False), (1, False), (2, False), (3, False), (0, True)]),  # pictures of one step
    ],
)
def test_calls_of_one_context(sign, timesteps, want):
    assert counted(*(sign * t for t in timesteps)) == want


def test_contexts_count_by_themselves():
    order = CallOrder()
    calls = [("cond", 3), ("uncond", 3), ("cond", 2), ("uncond", 2)]
    assert [order.next(*call) for call in calls] == [(0, False)] * 4
    assert order.next("cond", 3) == (0, True)
    assert order.next("uncond", 3) == (0, False)


def test_a_restart_forgets():
    order = CallOrder()
    assert [order.next("", 3.0), order.next("", 2.0)] == [(0, False)] * 2
    order.restart()
    assert [order.next("", 3.0), order.next("", 3.0)] == [(0, False), (1, False)]
