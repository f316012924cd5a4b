"""Parts that fit their denoiser, and parts that do not, before --pipeline begins any work."""

from __future__ import annotations

import json
import shutil

import pytest

from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.build.config import BuildConfig, Range
from svdq_trt.build.work import plan_work
from svdq_trt.models import MODELS, get_model
from tests.harness import module_engines, tiny_encoders, tiny_pipelines
from tests.harness.module_engines import KINDS

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
MASKED, CLIP = "sdxl-inpaint", {"projection_dim": 1280, "num_attention_heads": 4, "num_hidden_layers": 1}
#: configs of autoencoders with another number of latent channels, and with other pixels to a latent
CHANNELS, LARGER, SMALLER = {"latent_channels": 8}, tiny_pipelines.vae_levels(5), tiny_pipelines.vae_levels(3)
SDXL, FLUX, PIXART, SD3, CHROMA, Z_IMAGE, SANA, QWEN, FLUX2, KLEIN = KINDS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Makes the folder of a tiny pipeline, by its class, without weights; once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = folder = tmp_path_factory.mktemp("pipeline")
            (folder / "words" / "t5").mkdir(parents=True)
            model, make, _ = KINDS[name]
            tiny_pipelines.save(name, get_model(model), make(folder / "words"), folder / "own")
            for file in (folder / "own").rglob("*.safetensors"):
                file.unlink()
        return made[name] / "own"

    return get


@pytest.fixture
def plan(saved, tmp_path, monkeypatch):
    """Plans the build of a tiny pipeline with changes of its configs: component -> values."""
    monkeypatch.setitem(MODELS, "klein", module_engines.klein())

    def planned(name, model=None, tokens=None, folder=None, **changes):
        if folder is None:
            folder = tmp_path / "changed"
            shutil.copytree(saved(name), folder)
        for component, values in changes.items():
            file = folder / component / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | values))
        tokens = (93 if name == SD3 else None) if tokens is None else tokens
        fixed = {} if tokens is None else {"tokens": Range(tokens, tokens, tokens)}
        options = {"check": False, "preset": "fast", "pipeline": folder, "random_weights": 0} | fixed
        return plan_work(BuildConfig(model or KINDS[name][0], (89,), tmp_path / "out", **options)).pipeline

    return planned


@pytest.mark.parametrize("name", KINDS)
def test_parts_that_fit(name, plan):
    work = plan(name)
    assert {one.part.component for one in work.parts} >= {"vae", "text_encoder"}
    assert "step" not in vars(work.folder.files["scheduler"])  # it is diffusers' again


@pytest.mark.parametrize("limit", ["LCMScheduler", "CMStochasticIterativeScheduler"])
def test_a_scheduler_of_fewer_steps_than_the_pipeline_takes_by_itself(limit, plan, saved, tmp_path):
    """Of 40, where the pipeline's own default is 50."""
    folder = tmp_path / "few"
    shutil.copytree(saved(SDXL), folder)
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["diffusers", limit]}
    (folder / "model_index.json").write_text(json.dumps(index))
    own = {"_class_name": limit, "original_inference_steps": 40} if limit == "LCMScheduler" else {"_class_name": limit}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(own))
    assert plan(SDXL, folder=folder)


@pytest.mark.parametrize(
    "name,length,text",
    [
        (SDXL, None, "tokenizer: texts of any length, want a model_max_length of 77."),
        (FLUX, 70_000, "tokenizer: texts of 70000 tokens, want a model_max_length of 77."),
        (SDXL, 76, "text_encoder: input_ids of [1, 77], want [1, 76], which a StableDiffusionXLPipeline"),
    ],
)
def test_a_tokenizer_that_pads_to_another_length(name, length, text, plan, saved, tmp_path):
    folder = tmp_path / "longer"
    shutil.copytree(saved(name), folder)
    file = folder / "tokenizer" / "tokenizer_config.json"
    own = {key: value for key, value in json.loads(file.read_text()).items() if key != "model_max_length"}
    file.write_text(json.dumps(own if length is None else own | {"model_max_length": length}))
    with pytest.raises(ArtifactError) as error:
        plan(name, folder=folder)
    assert f": {text}" in str(error.value)


def test_a_tokenizer_whose_own_length_is_not_read(plan, saved, tmp_path):
    """Stable Diffusion 3 pads both CLIPs' texts to the first tokenizer's."""
    folder = tmp_path / "second"
    shutil.copytree(saved(SD3), folder)
    file = folder / "tokenizer_2" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 70_000}))
    assert plan(SD3, folder=folder)


@pytest.mark.parametrize(
    "name,changes,text",
    [
        (
            SDXL,
            {"text_encoder": {"hidden_size": 96}},
            "text_encoder, text_encoder_2: encoder_hidden_states of [2, 77, 160], want [2, 77, 128], which sdxl-tiny",
        ),
        (
            SDXL,
            {"text_encoder_2": {"hidden_size": 32}},
            "text_encoder, text_encoder_2: encoder_hidden_states of [2, 77, 96], want [2, 77, 128], which sdxl-tiny",
        ),
        (
            SDXL,
            {"text_encoder_2": {"projection_dim": 96}},
            "text_encoder_2: text_embeds of [2, 96], want [2, 64], which sdxl-tiny takes. Take all parts from the",
        ),
        (
            SDXL,
            {"text_encoder": {"max_position_embeddings": 64}},
            "text_encoder: input_ids of [1, 64], want [1, 77], which a StableDiffusionXLPipeline of sdxl-tiny gives it",
        ),
        (
            SDXL,
            {"text_encoder_2": {"vocab_size": 20}},
            "text_encoder_2: 20 words, want more than 53, which its tokenizer gives it.",
        ),
        (
            FLUX,
            {"text_encoder": {"hidden_size": 64}},
            "text_encoder: pooled_projections of [1, 64], want [1, 48], which flux1-tiny takes.",
        ),
        (
            FLUX,
            {"text_encoder_2": {"d_model": 64}},
            "text_encoder_2: encoder_hidden_states of [1, 16, 64], want [1, 16, 96], which flux1-tiny takes.",
        ),
        (
            PIXART,
            {"text_encoder": {"d_model": 64}},
            "text_encoder: encoder_hidden_states of [2, 24, 64], want [2, 24, 96], which pixart-tiny takes.",
        ),
        (
            SD3,
            {"text_encoder_2": {"projection_dim": 32}},
            "text_encoder, text_encoder_2: pooled_projections of [2, 56], want [2, 48], which sd3-tiny takes.",
        ),
        (
            CHROMA,
            {"text_encoder": {"d_model": 64}},
            "text_encoder: encoder_hidden_states of [1, 16, 64], want [1, 16, 96], which chroma-tiny takes.",
        ),
        (
            Z_IMAGE,
            {"text_encoder": {"hidden_size": 64}},
            "text_encoder: cap_feats of [2, 32, 64], want [2, 32, 96], which z-image-tiny takes.",
        ),
        (
            SANA,
            {"text_encoder": {"hidden_size": 64}},
            "text_encoder: encoder_hidden_states of [2, 24, 64], want [2, 24, 96], which sana-tiny takes.",
        ),
        (
            KLEIN,
            {"text_encoder": {"hidden_size": 64}},
            "text_encoder: encoder_hidden_states of [1, 16, 192], want [1, 16, 96], which klein takes.",
        ),
        (
            KLEIN,
            {"text_encoder": {"num_hidden_layers": 20, "layer_types": ["full_attention"] * 20}},
            "text_encoder/config.json: 20 layers, where the state after 27 is read, want the config of a Qwen3For",
        ),
    ],
)
def test_a_text_encoder_of_another_model(name, changes, text, plan):
    with pytest.raises(ArtifactError) as error:
        plan(name, **changes)
    assert text in str(error.value)


def test_a_language_model_of_another_model(plan, saved):
    own = json.loads((saved(QWEN) / "text_encoder" / "config.json").read_text())["text_config"]
    with pytest.raises(
        ArtifactError, match=r"text_encoder: encoder_hidden_states of \[1, \d+, 48\], want \[1, \d+, 96\]"
    ):
        plan(QWEN, text_encoder={"text_config": own | {"hidden_size": 48, "num_attention_heads": 2}})


@pytest.mark.parametrize(
    "name,change,text",
    [
        *((name, CHANNELS, "8 latent channels of 8 x 8, want 4, which") for name in (SDXL, FLUX, PIXART, SD3, CHROMA)),
        *((name, CHANNELS, "8 latent channels of 8 x 8, want 4, which") for name in (Z_IMAGE, KLEIN)),
        (QWEN, {"z_dim": 8}, "8 latent channels of 8 x 8, want 4, which qwen-image-tiny makes."),
        (SANA, {"latent_channels": 16}, "16 latent channels of 2 x 2, want 8, which sana-tiny makes."),
        (SDXL, LARGER, "16 pixels to a latent, so sample of [2, 4, 4, 4], want [2, 4, 8, 8], which sdxl-tiny takes."),
        (SDXL, SMALLER, "4 pixels to a latent, so sample of [2, 4, 16, 16], want [2, 4, 8, 8], which sdxl-tiny takes"),
        (FLUX, LARGER, "16 pixels to a latent, so hidden_states of [1, 4, 16], want [1, 16, 16], which flux1-tiny"),
        (FLUX, SMALLER, "4 pixels to a latent, so hidden_states of [1, 64, 16], want [1, 16, 16], which flux1-tiny"),
        (PIXART, LARGER, "16 pixels to a latent, so hidden_states of [2, 4, 4, 4], want [2, 4, 8, 8], which pixart"),
        (SD3, LARGER, "16 pixels to a latent, so hidden_states of [2, 4, 4, 4], want [2, 4, 8, 8], which sd3-tiny"),
        (CHROMA, LARGER, "16 pixels to a latent, so hidden_states of [1, 4, 16], want [1, 16, 16], which chroma-tiny"),
        (Z_IMAGE, LARGER, "16 pixels to a latent, so x of [2, 4, 1, 4, 4], want [2, 4, 1, 8, 8], which z-image-tiny"),
        (KLEIN, LARGER, "16 pixels to a latent, so hidden_states of [1, 4, 16], want [1, 16, 16], which klein takes."),
        (
            QWEN,
            {"dim_mult": [1, 2, 4], "temperal_downsample": [False, True]},
            "4 pixels to a latent, so hidden_states of [1, 64, 16], want [1, 16, 16], which qwen-image-tiny takes.",
        ),
        (
            SANA,
            tiny_pipelines.deep_compression(5),
            "16 pixels to a latent, so hidden_states of [2, 8, 4, 4], want [2, 8, 2, 2], which sana-tiny takes.",
        ),
    ],
)
def test_an_autoencoder_of_another_model(name, change, text, plan):
    with pytest.raises(ArtifactError) as error:
        plan(name, vae=change)
    assert f": vae: {text}" in str(error.value)


def test_an_autoencoder_whose_statistics_are_of_other_latents(plan):
    with pytest.raises(
        ArtifactError, match=r"fails behind transformer \(shape .* is invalid for input of size 8\), want"
    ):
        plan(QWEN, vae={"latents_mean": [0.0] * 8})


@pytest.mark.parametrize("hidden", [24, 40, 64])
def test_states_that_diffusers_pads_or_cuts_off_fit(hidden, plan):
    """Those of Stable Diffusion 3's CLIP are as wide as its T5's, with zeros or without their end."""
    assert plan(SD3, text_encoder={"hidden_size": hidden})


def test_a_text_encoder_that_may_be_absent(plan, saved, tmp_path):
    """With it, the width of the text is its own."""
    folder, index = tmp_path / "with-t5", json.loads((saved(SD3) / "model_index.json").read_text())
    shutil.copytree(saved(SD3), folder)
    (folder / "pieces").mkdir()
    index |= {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5Tokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pieces, encoder = tiny_encoders.t5(folder / "pieces")
    pieces.save_pretrained(folder / "tokenizer_3")
    encoder.config.save_pretrained(folder / "text_encoder_3")
    assert plan(SD3, folder=folder)
    with pytest.raises(UsageError, match="--tokens: 77, want more, as 77 are CLIP's and none is left for another text"):
        plan(SD3, folder=folder, tokens=77)
    text = r"text_encoder, text_encoder_2, text_encoder_3: encoder_hidden_states of \[2, 93, 80\], want \[2, 93, 96\]"
    with pytest.raises(ArtifactError, match=text):
        plan(SD3, folder=folder, text_encoder_3={"d_model": 80})


def test_tokens_of_another_length(plan, saved):
    with pytest.raises(
        ArtifactError, match=r"of \[2, 77, 128\], want \[2, 64, 128\], .*\. Build it with other --tokens\."
    ):
        plan(SDXL, tokens=64)
    with pytest.raises(UsageError, match="--tokens: 24, want at least 77, which are CLIP's"):
        plan(SD3, folder=saved(SD3), tokens=24)
    assert plan(SD3, folder=saved(SD3), tokens=77)  # without T5


def test_a_denoiser_that_takes_a_mask(plan):
    """SDXL's inpainting model: latents, a mask and a picture's latents are 4 + 1 + 4 channels."""
    unet = {"_class_name": "UNet2DConditionModel", **get_model(MASKED).config}
    changes = {"text_encoder": {"hidden_size": 768}, "text_encoder_2": {"hidden_size": 1280}}
    changes = {name: own | CLIP for name, own in changes.items()} | {"unet": unet}
    folder = plan(SDXL, model=MASKED, **changes).folder.path
    for change, text in (
        (CHANNELS, r"fails behind vae_encoder \(.* expects 9 but received .*: 8 \+ .*: 1 \+ .*: 8 = 17"),
        (
            LARGER | {"latent_channels": 4},
            r"vae: 16 pixels to a latent, so sample of \[2, 9, 32, 32\], want \[2, 9, 64",
        ),
    ):
        with pytest.raises(ArtifactError, match=text):
            plan(SDXL, model=MASKED, folder=folder, vae=change)


@pytest.mark.parametrize("name", [Z_IMAGE, SANA])
def test_a_tokenizer_is_loaded_once(name, plan, monkeypatch):
    import transformers

    cls = getattr(transformers, {Z_IMAGE: "Qwen2Tokenizer", SANA: "GemmaTokenizer"}[name])
    load, loaded = cls.from_pretrained, []
    monkeypatch.setattr(cls, "from_pretrained", lambda *args, **options: loaded.append(args) or load(*args, **options))
    plan(name)
    assert len(loaded) == 1
