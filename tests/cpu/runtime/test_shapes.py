"""Inputs against an engine's profile, and arrays to tensors and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ShapeError
from svdq_trt.runtime.shapes import as_array, as_tensor, check_inputs

PROFILES = [
    TensorProfile("sample", "float16", (1, 4, 8, 8), (2, 4, 16, 16), (4, 4, 32, 32)),
    TensorProfile("timestep", "float32", (1,), (2,), (4,)),
]


def given(sample=(2, 4, 16, 16), dtype=np.float16):
    return {"timestep": np.zeros(2, np.float32), "sample": np.zeros(sample, dtype)}


def test_order_is_the_engines():
    assert list(check_inputs(PROFILES, given())) == ["sample", "timestep"]


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (4, 4, 32, 32), (3, 4, 8, 31)])
def test_inside_the_profile(shape):
    assert tuple(check_inputs(PROFILES, given(shape))["sample"].shape) == shape


@pytest.mark.parametrize("shape", [(5, 4, 16, 16), (0, 4, 16, 16), (2, 3, 16, 16), (2, 4, 16, 33), (4, 16, 16), ()])
def test_outside_the_profile(shape):
    with pytest.raises(ShapeError) as caught:
        check_inputs(PROFILES, given(shape))
    want = f"input 'sample': shape {list(shape)}, want [1..4, 4, 8..32, 8..32]. Build the engine with a wider"
    assert str(caught.value).startswith(want)


def test_other_dtype():
    with pytest.raises(ShapeError, match="input 'sample': float32, want float16"):
        check_inputs(PROFILES, given(dtype=np.float32))


def test_missing_and_unknown():
    with pytest.raises(ShapeError, match="input 'timestep': missing, want sample, timestep"):
        check_inputs(PROFILES, {"sample": given()["sample"]})
    with pytest.raises(ShapeError, match="input 'x': no input of this engine"):
        check_inputs(PROFILES, given() | {"x": np.zeros(1)})


def test_bfloat16_goes_both_ways():
    array = np.array([1.5, -2.0, 3e38], ml_dtypes.bfloat16)
    tensor = as_tensor(array)
    assert tensor.dtype == torch.bfloat16 and tensor[:2].tolist() == [1.5, -2.0]
    assert as_array(tensor).dtype == array.dtype and np.array_equal(as_array(tensor), array)


def test_odd_arrays():
    strided, frozen = np.arange(12, dtype=np.float32).reshape(3, 4).T, np.ones(3, np.float32)
    frozen.flags.writeable = False
    assert torch.equal(as_tensor(strided), torch.tensor(strided.copy()))
    as_tensor(frozen)[0] = 7
    assert frozen[0] == 1
