"""Merging requests and taking the results apart."""

from __future__ import annotations

import numpy as np
import pytest

from svdq_trt.base.errors import ShapeError
from svdq_trt.serve import batching
from svdq_trt.serve.batching import batch_of, divided, key_of, merged, one_for_all


def request(batch: int, width: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((batch, width)), "t": rng.standard_normal(batch)}


def grouped(requests, limit, shared=()):
    return batching.grouped([key_of(r, shared) for r in requests], [batch_of(r, shared) for r in requests], limit)


def test_batches_that_differ_are_refused():
    with pytest.raises(ShapeError, match=r"^batch: 'x' 2, 't' 3, want the same first axis"):
        batch_of({"x": np.zeros((2, 4)), "t": np.zeros(3)})
    assert batch_of({"x": np.zeros((2, 4)), "t": np.zeros(2), "ids": np.zeros(3)}, {"ids"}) == 2


def test_an_input_without_a_batch_axis_is_one_for_all_that_run_together():
    ids, others = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    requests = [request(1) | {"ids": ids}, request(1) | {"ids": others}, request(2) | {"ids": ids.copy()}]
    assert grouped(requests, 4, {"ids"}) == [[0, 2], [1]]
    together = merged([requests[0], requests[2]], {"ids"})
    assert together["x"].shape == (3, 8) and np.array_equal(together["ids"], ids)


def test_an_input_without_a_batch_axis_is_the_same_for_every_image():
    ids = np.arange(6).reshape(2, 3)
    assert np.array_equal(one_for_all("ids", np.stack([ids, ids])), ids)
    assert one_for_all("sigma", np.ones(2)).shape == ()
    with pytest.raises(ShapeError, match="input 'ids': values that differ within the batch, want the same for every"):
        one_for_all("ids", np.stack([ids, ids + 1]))


@pytest.mark.parametrize(
    ("batches", "groups"),
    [
        ([1, 1, 1, 1], [[0, 1, 2, 3]]),
        ([1, 1, 1, 1, 1], [[0, 1, 2, 3], [4]]),
        ([3, 2, 1], [[0, 2], [1]]),
        ([4, 4], [[0], [1]]),
        ([], []),
    ],
)
def test_groups_hold_at_most_the_limit(batches, groups):
    assert grouped([request(b) for b in batches], 4) == groups


def test_other_shapes_are_not_merged():
    assert grouped([request(1, 8), request(1, 16), request(1, 8)], 4) == [[0, 2], [1]]


def test_a_request_above_the_limit_stays_alone():
    assert grouped([request(9), request(1)], 4) == [[0], [1]]


def test_order_of_names_does_not_matter():
    turned = dict(reversed(request(1).items()))
    assert grouped([request(1), turned], 4) == [[0, 1]]
    assert np.array_equal(merged([request(1), turned])["t"], np.repeat(request(1)["t"], 2))


def test_division_undoes_the_merge():
    requests = [request(b, seed=b) for b in (1, 3, 2)]
    parts = divided(merged(requests), [1, 3, 2])
    for part, one in zip(parts, requests, strict=True):
        assert all(np.array_equal(part[name], one[name]) for name in one)
