"""Folders of diffusers classes that no file of ours names: each becomes a plan and is compared with its 16-bit model.

What of such classes is refused, and how, is in tests/cpu/models/test_described.py.
"""

from __future__ import annotations

import json

import pytest
import torch

from svdq_trt.runtime import OnnxSession, attach
from tests.harness.builds import build, plugin_nodes, some_minutes
from tests.harness.foreign import asked, denoiser, pipeline, save

#: of pictures; FLUX.2 klein's small transformer is one, too, in test_prompt_to_picture.py
PICTURES = [
    "ChromaTransformer2DModel",
    "AuraFlowTransformer2DModel",
    "CogView4Transformer2DModel",
    "ErnieImageTransformer2DModel",
    "OvisImageTransformer2DModel",
    "PRXTransformer2DModel",
]
VIDEO = "SkyReelsV2Transformer3DModel"
SIZES = {"batch": "1", "height": "64:64:128", "width": "64:128:128", "tokens": "16:24:32"}


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=some_minutes) for name in PICTURES), VIDEO])
def test_class_without_a_file_of_ours_is_built_and_runs_in_its_pipeline(name, tmp_path):
    folder, out = save(name, tmp_path / "some-model"), tmp_path / "engines"
    sizes = SIZES | ({"frames": "9"} if name == VIDEO else {})
    words = [word for symbol, size in sizes.items() for word in (f"--{symbol}", size)]
    done = build(str(folder), out, "--arch", "sm_89", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    engine = out / "some-model-sm_89"
    m = json.loads((engine / "manifest.json").read_text())
    assert (engine / "model.plan").stat().st_size == m["plan"]["bytes"] and m["model"] == "some-model"
    layers = {node.partition("#")[0] for node in plugin_nodes(m)}  # a layer that runs twice has two
    assert layers == {q["node"] for q in m["quantized"]}
    (output,) = m["accuracy"]["outputs"]
    assert output["sqnr_db"] > 15, output

    with OnnxSession(engine, device="cpu") as session:
        pipe = attach(pipeline(name, denoiser(name)), session)
        latent = pipe(**asked(pipe, "prompt_embeds", num_inference_steps=1, guidance_scale=1.0))[0]
    assert torch.isfinite(latent).all()
