"""The account of a run's kernels by kind."""

from __future__ import annotations

import pytest

from svdq_trt.bench.kinds import by_kind, kind_of


def test_times_of_overlapping_kernels_add_up_to_the_run():
    kernels = [
        ("__myl_CastMeanSubMulMean_0x1", 10.0, 0.0),
        ("void svdq::sm90::quantize_once_w4a8_kernel<__half>", 5.0, 12.0),
        ("void svdq::sm90::gemm_w4a8_kernel<2>", 20.0, 13.0),  # starts early, waits, ends 16 us later
        ("__myl_SlicReshTranReshMove_0x2", 3.0, 20.0),  # ends inside the one before
        ("_gemm_mha_v2_0x3", 7.0, 40.0),
    ]
    found = by_kind(kernels)
    assert found["norm"] == {"count": 1, "ms": 0.01}
    assert found["ours: quantize"] == {"count": 1, "ms": 0.005}
    assert found["ours: product"] == {"count": 1, "ms": 0.016}
    assert found["copy"] == {"count": 1, "ms": 0.0}
    assert found["attention"] == {"count": 1, "ms": 0.007}
    assert found["gaps"]["ms"] == 0.009
    assert sum(row["ms"] for row in found.values()) == pytest.approx(0.047)


@pytest.mark.parametrize(
    "kernel, kind",
    [
        ("__myl_TranSlicSlicReshMulSlicReshMulReshMoveReshReshMoveMoveTran_0x1", "copy"),
        ("cudnn_generated_fort_native_sm90_matMul_pointwise_knob_23_128x128x32_10_0", "matmul"),
        ("__myl_SiluGnor_0x1", "norm"),
        ("__myl_AddReshAdd_0x1", "other"),
        ("void svdq::sm90::attention_kernel<svdq::sm90::AttentionTile<128> >(svdq::AttentionArgs)", "attention"),
        ("void svdq::(anonymous namespace)::prepare_kernel<__half>(svdq::PrepareArgs)", "attention"),
        ("void svdq::gemv_kernel<svdq::W4A16>(svdq::GemvArgs)", "ours: product"),
        ("void svdq::lora_down_kernel<__half>(svdq::DownArgs)", "ours: quantize"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128> >", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x128", "attention"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN", "matmul"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("triton_per_fused__to_copy_add_mul_native_layer_norm_0", "norm"),
        ("triton_poi_fused_cat_3", "copy"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
    ],
)
def test_kinds_of_kernels(kernel, kind):
    assert kind_of(kernel) == kind
