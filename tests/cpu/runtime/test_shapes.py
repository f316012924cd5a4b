"""Inputs against an engine's profile, and arrays to tensors and back."""

from __future__ import annotations

import dataclasses
import types

import ml_dtypes
import numpy as np
import pytest
import torch

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ShapeError
from svdq_trt.runtime.shapes import as_array, as_tensor, check_inputs, input_profiles
from tests.harness.unfit import FIT, PROFILES, UNFIT, tensors


@pytest.mark.parametrize("case", FIT)
def test_fit_inputs_are_accepted_in_the_engines_order(case):
    given = tensors(**FIT[case])
    checked = check_inputs(PROFILES, dict(reversed(given.items())))
    assert list(checked) == [p.name for p in PROFILES]
    assert all(checked[name] is given[name] for name in given)


@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.parametrize("convert", [torch.Tensor.clone, torch.Tensor.numpy], ids=["torch", "numpy"])
def test_unfit_inputs_are_one_sentence_with_advice_that_helps(case, convert):
    shapes, sentence, advice = UNFIT[case]
    with pytest.raises(ShapeError) as caught:
        check_inputs(PROFILES, {name: convert(value) for name, value in tensors(**shapes).items()})
    assert str(caught.value) == sentence + advice


def test_sizes_of_an_earlier_release_have_ranges_alone():
    """Its manifest does not say what they follow from."""
    profiles = [dataclasses.replace(p, axes=()) for p in PROFILES]
    check_inputs(profiles, tensors(sample=(2, 4, 17, 16), timestep=(1,)))
    with pytest.raises(ShapeError, match=r"shape \[5, 4, 16, 16\], want \[1..4, 4, 8..32, 8..32\]\.$"):
        check_inputs(profiles, tensors(sample=(5, 4, 16, 16)))


@pytest.mark.parametrize("axis", ["0*height", "9" * 5000 + "*height", "-4*height", "*", "height + 1", "\u0664*height"])
def test_axis_of_a_foreign_graph_is_a_name_and_no_rule(axis):
    profiles = [dataclasses.replace(PROFILES[0], axes=("batch", "", axis, axis)), *PROFILES[1:]]
    check_inputs(profiles, tensors(sample=(2, 4, 17, 17)))
    with pytest.raises(ShapeError, match="17, as in 'sample'"):
        check_inputs(profiles, tensors(sample=(2, 4, 17, 16)))


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(500),
        torch.tensor(500.0),
        torch.tensor([500, 500]),
        torch.tensor([500, 500], dtype=torch.bfloat16),
        np.float32(500),
        np.array(500),
        np.array([500, 500], np.float16),
        500,
        500.0,
    ],
    ids=repr,
)
def test_timestep_of_any_scheduler_is_taken(value):
    (timestep,) = [v for n, v in check_inputs(PROFILES, tensors() | {"timestep": value}).items() if n == "timestep"]
    assert torch.as_tensor(timestep).equal(torch.tensor([500.0, 500.0]))


def test_any_values_are_refused_in_one_sentence_or_as_asked_for():
    """2,000 calls with random kinds, shapes and names; a bug shows as any other exception."""
    rng = np.random.default_rng(0)
    dtypes = ["float16", "float32", "float64", "int64", "uint8", "bool", "complex64", "U3", "object"]
    accepted = 0
    for _ in range(2000):
        given = tensors()
        for _ in range(rng.integers(0, 3)):
            name = str(rng.choice([p.name for p in PROFILES]))
            like = list(given[name].shape) if torch.is_tensor(given[name]) else []
            if like and rng.random() < 0.7:
                like[rng.integers(len(like))] = int(rng.choice([0, 1, 2, 3, 4, 8, 16, 28, 77, 154]))
            dtype = tensors()[name].dtype if rng.random() < 0.6 else rng.choice(dtypes)
            shape = like[: rng.integers(len(like) + 1)] if rng.random() < 0.2 else like
            value = np.zeros(shape, str(dtype).removeprefix("torch."))
            given[name] = rng.choice([0, 1.5, None]) if rng.random() < 0.1 else value
        try:
            checked = check_inputs(PROFILES, given)
        except ShapeError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        for profile in PROFILES:
            got = checked[profile.name]
            assert profile.dtype in str(got.dtype) and len(got.shape) == len(profile.min)
    assert 100 < accepted < 1900


def test_what_would_lose_something_is_the_callers_to_convert():
    for value, kind in ((np.zeros(2), "float64"), (torch.zeros(2, dtype=torch.complex64), "complex64")):
        with pytest.raises(ShapeError, match=f"input 'timestep': {kind}, want float32. Convert it before the call"):
            check_inputs(PROFILES, tensors() | {"timestep": value})
    with pytest.raises(ShapeError, match=r"input 'sample': float32, want float16\. Convert it before the call"):
        check_inputs(PROFILES, tensors() | {"sample": torch.zeros(2, 4, 16, 16)})
    with pytest.raises(ShapeError, match=r"input 'sample': a scalar, want \[1..4, 4, 8..32, 8..32\]"):
        check_inputs(PROFILES, tensors() | {"sample": np.float16(0)})


def test_missing_and_unknown():
    with pytest.raises(ShapeError, match="input 'timestep': missing, want sample, timestep"):
        check_inputs(PROFILES, {"sample": tensors()["sample"]})
    with pytest.raises(ShapeError, match="input 'x': no input of this engine"):
        check_inputs(PROFILES, tensors() | {"x": np.zeros(1)})


def test_profiles_of_an_engine_have_the_manifests_axes():
    """TensorRT knows ranges, the manifest what they follow from; slots of LoRAs are the session's to fill."""
    ranges = {p.name: p for p in PROFILES} | {"slot": TensorProfile("slot", "float16", (8,), (8,), (8,))}
    kinds = {"float16": "HALF", "float32": "FLOAT"}
    engine = types.SimpleNamespace(
        num_io_tensors=len(ranges),
        get_tensor_name=lambda i: list(ranges)[i],
        get_tensor_mode=lambda name: "in",
        get_tensor_dtype=lambda name: types.SimpleNamespace(name=kinds[ranges[name].dtype]),
        get_tensor_profile_shape=lambda name, index: [list(getattr(ranges[name], b)) for b in ("min", "opt", "max")],
    )
    trt = types.SimpleNamespace(TensorIOMode=types.SimpleNamespace(INPUT="in"))
    assert input_profiles(trt, engine, {p.name: p.axes for p in PROFILES}, {"slot"}) == PROFILES
    assert input_profiles(trt, engine, {})[0] == dataclasses.replace(PROFILES[0], axes=())


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
