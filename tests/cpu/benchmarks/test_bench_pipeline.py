"""bench_pipeline.py's folders are pipelines that a build takes, of the published sizes; a GPU times them."""

from __future__ import annotations

import bench_pipeline
import pytest
from pipeline_bench.folder import PIPELINES, write

from svdq_trt.build.config import BuildConfig
from svdq_trt.build.pipeline_work import plan_pipeline
from svdq_trt.build.sizes import Sizes
from svdq_trt.models import get_model

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
#: whole millions of parameters: SDXL's CLIP-L, CLIP-G and autoencoder as published; FLUX.1's T5 is built in 4 bits
SIZES = {"sdxl": {"text_encoder": 123, "text_encoder_2": 694, "vae": 83}, "flux1-dev": {"text_encoder": 123, "vae": 83}}


@pytest.mark.parametrize("model", PIPELINES)
def test_folder_is_a_pipeline_of_the_published_size(model, tmp_path):
    import torch

    write(model, tmp_path)
    quantize = {"quantize_t5": True} if model == "flux1-dev" else {}
    config = BuildConfig(model, ("sm_90",), tmp_path / "out", random_weights=0, pipeline=tmp_path, **quantize)
    spec = get_model(model)
    work = plan_pipeline(config, spec, Sizes({name: getattr(spec.profile, name) for name in vars(spec.profile)}))
    found = {}
    with torch.device("meta"):
        for one in work.parts:
            found[one.part.component] = sum(p.numel() for p in one.part.build().parameters()) // 1_000_000
    assert found == SIZES[model]
    assert {name: build.model for name, build in work.quantized.items()} == (
        {"text_encoder_2": "t5-xxl"} if quantize else {}
    )


def test_a_first_picture_is_counted_from_the_process_and_from_the_weights(capsys):
    both = {"picture_s": 2.0, "memory_bytes": 6_000_000_000}
    engines = both | {"first_s": 12.5, "open_s": 9.0, "parts_s": {"text": 0.02, "steps": 1.5}}
    engines |= {"slowest": "unet", "slowest_s": {"check": 0.5, "load": 4.0}}
    rival = {"picture_s": 3.0, "memory_bytes": 12_000_000_000, "first_s": 50.0, "weights_s": 25.0}
    bench_pipeline._print({"engines": engines, "compile": rival})
    _, ours, theirs = capsys.readouterr().out.splitlines()
    assert ours.endswith("open 9.0 s (slowest unet: check 0.5 s, load 4.0 s), text 0.020 s, steps 1.500 s")
    said = "first 25.00 s after its weights; engines: 1.50x as fast, 50% of the memory, first picture "
    first = "4.00x as soon (2.00x without its weights) at the first start"
    assert theirs.startswith("compile") and theirs.endswith(f"50.00        -    3.000     12.00   {said}{first}")
    again = [one | {"again": {"first_s": seconds, "weights_s": 20.0}} for one, seconds in ((engines, 8), (rival, 40))]
    bench_pipeline._print({"engines": again[0], "compile": again[1]})
    _, ours, theirs = capsys.readouterr().out.splitlines()
    assert "12.50     8.00    2.000" in ours
    assert theirs.endswith(f"{said}{first}, 5.00x as soon (2.50x without its weights) at the second")
