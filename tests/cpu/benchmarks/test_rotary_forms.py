"""The forms of the rotary embedding that are timed: each is the same rotation, in torch, ONNX Runtime and TensorRT."""

import pytest
import rotary_forms
import torch
from rotary_forms import sqnr_db
from rotary_graphs import FORMS, Blocks, Sizes, apart, feed, inputs_of, matrix, reference

from svdq_export import write_float32_twin
from svdq_trt.models.positions import RotaryTable, rotate

SMALL = Sizes(heads=2, dim=32, text=5, side=4)


@torch.no_grad()
def test_the_reference_turns_pairs_as_complex_numbers():
    qkv, cos, sin = inputs_of(SMALL).values()
    q = Blocks(FORMS["strided"], SMALL, "rotation").norm_q(qkv[..., :64].unflatten(-1, (2, 32)))
    pairs = torch.view_as_complex(q.float().unflatten(-1, (-1, 2))) * torch.complex(cos, sin)[:, None]
    want = torch.view_as_real(pairs).flatten(-2).transpose(1, 2)
    torch.testing.assert_close(reference(FORMS["strided"], SMALL, "rotation", "cpu")[0], want)
    for name in ("halves", "contiguous"):
        torch.testing.assert_close(reference(FORMS[name], SMALL, "rotation", "cpu")[0], apart(want))


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.rotate])
@torch.no_grad()
def test_form_rotates(name):
    form = FORMS[name]
    outputs = Blocks(form, SMALL, "rotation")(*feed(form, SMALL).values())
    for want, got in zip(reference(form, SMALL, "rotation", "cpu"), outputs, strict=True):
        assert sqnr_db(want, got) > (40 if "16" in name else 50)  # one rounding to bf16: 52 dB


def test_matrix_is_what_the_models_do():
    angles = RotaryTable(10000.0, (8, 24))(torch.arange(10.0).view(5, 2))
    x = torch.randn(2, 5, 3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = (t[None, :, None, ::2] for t in angles[:2])
    assert torch.equal(matrix(x, cos, sin), rotate(x, angles))


@torch.no_grad()
def test_attention_does_not_see_channels_that_are_left_apart():
    outputs = [Blocks(FORMS[name], SMALL, "attention")(*inputs_of(SMALL).values()) for name in ("strided", "halves")]
    assert sqnr_db(*outputs) > 45


@pytest.mark.parametrize("name", ["halves", "rope"])
@torch.no_grad()
def test_form_runs_in_onnx_runtime_and_builds(name, tmp_path):
    import onnxruntime as ort

    form = FORMS[name]
    plan = tmp_path / "plan"
    assert rotary_forms.build(name, "rotation", SMALL, 89, tmp_path, plan)["layers"] and plan.stat().st_size > 0
    twin = write_float32_twin(tmp_path / f"{name}-rotation.onnx")
    session = ort.InferenceSession(str(twin), providers=["CPUExecutionProvider"])
    ran = session.run(None, {key: t.float().numpy() for key, t in feed(form, SMALL).items()})
    for want, got in zip(reference(form, SMALL, "rotation", "cpu"), ran, strict=True):
        assert sqnr_db(want, torch.from_numpy(got)) > 50  # the twin does not round the norm's output to bf16
