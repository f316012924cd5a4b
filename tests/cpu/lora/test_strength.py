"""How strong a file's factors are: read wherever it is stated, and refused where that is not understood."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.base.errors import ArtifactError, SvdqError
from svdq_trt.lora.read import read_lora
from tests.harness.lora_files import make_factors

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
Q, K, TIME = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_k", "time_embedding.linear_1"
LAYERS = (Q, K, TIME)
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "init_lora_weights": True}


@pytest.fixture
def scales(tmp_path, spec, names, shapes):
    """Write a LoRA of rank 4 in this spelling and with these statements, and read the scale of each layer."""
    factors = make_factors(spec, LAYERS, rank=4)

    def read(prefix="", beside=None, inside=None, alphas=None, header=None):
        tensors = {}
        for name, f in factors.items():
            tensors |= {f"{prefix}{name}.lora_A.weight": f.down, f"{prefix}{name}.lora_B.weight": f.up}
            if alphas is not None:
                tensors[f"{prefix}{name}.alpha"] = alphas.clone()
        metadata = dict(header or {})
        if inside is not None:
            metadata["lora_adapter_metadata"] = inside if isinstance(inside, str) else json.dumps(inside)
        save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
        (tmp_path / "adapter_config.json").unlink(missing_ok=True)
        if beside is not None:
            (tmp_path / "adapter_config.json").write_text(json.dumps(beside))
        lora = read_lora(tmp_path / "x.safetensors", names, shapes)
        assert not lora.problems
        found = {change.targets[0].layer: change.scale for change in lora.changes}
        return tuple(found[layer] for layer in LAYERS)

    return read


def component(config, name="unet"):
    return {f"{name}.{key}": value for key, value in config.items()}


def test_nothing_stated_is_one(scales):
    assert scales() == scales("unet.") == scales("diffusion_model.") == (1, 1, 1)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8])
def test_alpha_may_have_any_number_type(scales, kind):
    assert scales(alphas=torch.tensor(6).to(kind)) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("more", "want"),
    [
        ({}, (1.5, 1.5, 1.5)),
        ({"use_rslora": True}, (3, 3, 3)),
        ({"alpha_pattern": {"attn1.to_q": 10}}, (2.5, 1.5, 1.5)),
        ({"alpha_pattern": {f"^{Q}": 10, "to_k": 2}}, (2.5, 0.5, 1.5)),
        ({"alpha_pattern": {"^to_q": 10}}, (1.5, 1.5, 1.5)),
        ({"alpha_pattern": {r".*\.to_[qk]": 10, "to_k": 2}}, (2.5, 2.5, 1.5)),  # the first that fits
        ({"alpha_pattern": {r"down_blocks\.\d+\.attentions.*": 8}}, (2, 2, 1.5)),
        ({"r": 8, "rank_pattern": {r"attn1\.to_\w": 4, f"^{TIME}": 4}}, (1.5, 1.5, 1.5)),
        ({"lora_alpha": None, "alpha_pattern": {".*": 4}}, (1, 1, 1)),
    ],
)
def test_configurations_are_read_as_peft_does(scales, more, want):
    config = CONFIG | more
    assert scales("base_model.model.", beside=config) == want
    assert scales("unet.", inside=component(config) | {"text_encoder.lora_alpha": 99}) == want
    assert scales("", inside=config) == want
    assert scales("diffusion_model.", inside=component(config)) == want


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"r": 8}, "rank 8, and factors of 4, want one rank"),
        ({"rank_pattern": {"to_q": 2}}, "rank 2, and factors of 4"),
        ({"lora_alpha": "6"}, "lora_alpha '6', want a finite number"),
        ({"lora_alpha": float("nan")}, "not valid JSON"),
        ({"lora_alpha": True}, "lora_alpha True, want a finite number"),
        ({"alpha_pattern": {"to_q": None}}, "lora_alpha None, want a finite number"),
        ({"alpha_pattern": ["to_q"]}, "alpha_pattern is a list, want a JSON object"),
        ({"alpha_pattern": {r"(?!to_q)": 4}}, r"alpha_pattern has '\(\?!to_q\)' with .*, want names"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', factors that take the place of a part"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights 'pissa_niter_16'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"init_lora_weights": 1}, "init_lora_weights 1"),
        ({"use_rslora": "yes"}, "use_rslora 'yes', want true or false"),
        ({"use_dora": True}, "use_dora without a magnitude"),
        ({"use_qalora": True}, "'use_qalora', which svdq-trt does not know"),
        ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens', which"),
        ({"layer_replication": [[0, 4]]}, "'layer_replication', which"),
        ({"a_field_of_tomorrow": 2}, "'a_field_of_tomorrow', which"),
        ({"peft_type": "BOFT"}, "peft_type 'BOFT', want one of LORA, LOHA, LOKR, OFT"),
    ],
)
def test_what_is_not_understood_is_refused(scales, more, text):
    for spelling in ({"prefix": "base_model.model.", "beside": CONFIG | more}, {"inside": CONFIG | more}):
        with pytest.raises(ArtifactError, match=text):
            scales(**spelling)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, r"PEFT's OFT without its configuration, want adapter_config\.json"),
        ({"peft_type": "OFT", "use_cayley_neumann": None}, "use_cayley_neumann None of peft_type 'OFT'"),
        ({"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 10**9}, "want 1 to 64"),
        ({"peft_type": "OFT", "use_cayley_neumann": False, "coft": True}, "'coft', which svdq-trt does not know"),
        (CONFIG | {"use_cayley_neumann": False}, "of peft_type 'LORA', want true or false, of OFT"),
    ],
)
def test_a_rotation_without_its_configuration_is_refused(tmp_path, names, shapes, config, text):
    metadata = None if config is None else {"lora_adapter_metadata": json.dumps(config)}
    save_file({f"{Q}.oft_R.weight": torch.ones(4, 496)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(ArtifactError, match=text):
        read_lora(tmp_path / "x.safetensors", names, shapes)


def test_defaults_of_tomorrows_fields_do_not_matter(scales):
    config = CONFIG | {"a_field_of_tomorrow": None, "another": False, "one_more": {}}
    assert scales("base_model.model.", beside=config) == (1.5, 1.5, 1.5)


def test_two_statements_must_agree(scales):
    assert scales(alphas=torch.tensor(6.0), inside=CONFIG) == (1.5, 1.5, 1.5)
    with pytest.raises(ArtifactError, match=r"strength 1 by its alpha, 1\.5 by its configuration, want one strength"):
        scales(alphas=torch.tensor(4.0), inside=CONFIG)


def test_peft_names_without_their_configuration_have_no_strength(scales):
    """PEFT never writes one without the other: who takes alpha = r for granted is wrong by any factor."""
    for prefix in ("base_model.model.", "base_model.model.unet."):
        with pytest.raises(
            ArtifactError, match=r"no adapter_config\.json beside it, which has the strength, want both"
        ):
            scales(prefix)
    assert scales("base_model.model.", alphas=torch.tensor(6.0)) == (1.5, 1.5, 1.5)


def test_statements_that_nobody_reads_must_say_one(scales):
    """A configuration beside a file of other names; a header's alpha; metadata about other components."""
    assert scales(beside=CONFIG | {"lora_alpha": 4}) == (1, 1, 1)
    assert scales(beside=CONFIG, alphas=torch.tensor(2.0)) == (0.5, 0.5, 0.5)
    for config in (CONFIG, CONFIG | {"r": 16}, CONFIG | {"init_lora_weights": "pissa"}):
        with pytest.raises(ArtifactError, match=r"no alpha, and adapter_config\.json beside it.*move the file away"):
            scales(beside=config)
    for header in ({"ss_network_alpha": "8"}, {"lora_alpha": "None"}, {"network_alpha": "16.0"}):
        with pytest.raises(ArtifactError, match=r"no alpha, and \w+ '.*' in the header, want '\.alpha' tensors"):
            scales(header=header)
        assert scales(header=header, alphas=torch.tensor(4.0)) == (1, 1, 1)
    assert scales(header={"ss_network_alpha": "4.0"}) == (1, 1, 1)
    for other in ({"text_encoder.lora_alpha": 4}, component(CONFIG, "a") | component(CONFIG, "b")):
        with pytest.raises(ArtifactError, match=r"lora_adapter_metadata"):
            scales("unet.", inside={**other, "text_encoder.r": 4})


def test_damaged_configurations_are_one_sentence(scales):
    """Numbers, types and brackets at random in both places."""
    rng, refused = random.Random(0), 0
    config = CONFIG | {"alpha_pattern": {"to_q": 10}, "rank_pattern": {}, "use_rslora": False, "target_modules": ["a"]}
    values = [None, True, -1, 0, 1e400, 10**400, "x", [], {}, [[1]], {"a": {"b": 1}}, "[" * 3000, 4, 6]
    for i in range(300):
        changed = {k: rng.choice(values) if rng.random() < 0.3 else v for k, v in config.items()}
        text = json.dumps(changed)
        if i % 3 == 0:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(['"', "[" * 2000, "}", "\\", "\x00", ""]) + text[at + 1 :]
        try:
            assert all(isinstance(scale, float) for scale in scales(inside=text))
        except SvdqError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100
