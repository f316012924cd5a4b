"""Options of a build, and that the commands and the code of docs/lora.md are real."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.build.config import BuildConfig, LoraOption
from svdq_trt.build.stage import File
from svdq_trt.build.stages.lora import ApplyLoras
from svdq_trt.build.stages.reference_export import ReferenceExport
from svdq_trt.build.work import plan_work
from svdq_trt.cli import parse
from svdq_trt.models import get_model
from tests.harness.lora_files import make_factors

DOC = (Path(__file__).resolve().parents[3] / "docs" / "lora.md").read_text()


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("/x/a.safetensors:0", "/x/a.safetensors", 0.0),
        ("x:y/a.safetensors", "x:y/a.safetensors", 1.0),
        ("x:y/a.safetensors:2e-1", "x:y/a.safetensors", 0.2),
    ],
)
def test_path_and_strength(text, path, strength):
    assert LoraOption.parse(text) == LoraOption(Path(path), strength)


def config(**options):
    return BuildConfig("sdxl-tiny", (89,), Path("out"), random_weights=0, **options)


def test_refused_before_any_work(tmp_path):
    good = tmp_path / "a.safetensors"
    good.write_bytes(b"x")
    assert config(loras=(LoraOption(good, 0.5),), lora_slots=32).to_json()["loras"] == [
        {"path": str(good), "strength": 0.5}
    ]
    for lora, text in (
        (LoraOption(tmp_path / "b.safetensors"), "no such file"),
        (LoraOption(tmp_path), "PATH"),
        (LoraOption(good, float("inf")), "strength inf"),
    ):
        with pytest.raises(UsageError, match=text):
            config(loras=(lora,))
    for slots in (8, -16, 1040):
        with pytest.raises(UsageError, match=f"--lora-slots: {slots}, want a multiple of 16 from 0 to 1024"):
            config(lora_slots=slots)


def test_documented_commands_parse():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", DOC, re.S)).replace("\\\n", "")
    lines = [line for line in blocks.splitlines() if line]
    for line in lines:
        assert line.startswith("python build_engines.py ")
        parse(["build", *line.split()[2:]])
    assert len(lines) >= 2


def test_documented_calls_exist():
    """Every call on the session in the document's Python has those parameters, on both sessions."""
    from svdq_trt.runtime import OnnxSession, Session

    (block,) = re.findall(r"```python\n(.*?)```", DOC, re.S)
    calls = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    assert len(calls) >= 6
    for call in calls:
        method = getattr(Session, call.func.attr)
        inspect.signature(method).bind(None, *call.args, **{k.arg: k.value for k in call.keywords})
    for name in ("set_lora", "prepare_lora"):
        assert inspect.signature(getattr(OnnxSession, name)) == inspect.signature(getattr(Session, name))


@pytest.fixture
def lora(tmp_path):
    """A LoRA of one layer of sdxl-tiny, as PEFT saves it."""
    spec = get_model("sdxl-tiny")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    f = make_factors(spec, ["time_embedding.linear_1"])["time_embedding.linear_1"]
    stem = "base_model.model.time_embedding.linear_1"
    save_file({f"{stem}.lora_A.weight": f.down, f"{stem}.lora_B.weight": f.up}, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def planned(tmp_path, *loras, **more):
    return plan_work(config(loras=tuple(LoraOption(path) for path in loras), **more))


def test_bad_files_are_found_before_any_work(lora, tmp_path):
    """Planning a build, which comes before all of its stages, opens every LoRA and reads its values."""
    assert planned(tmp_path, lora).loras[0].file.path == lora
    junk = tmp_path / "junk.safetensors"
    for tensors, text in (
        ({"lora_unet_x.lora_down.weight": torch.ones(4, 4)}, "lora_unet_x: no layer of this model"),
        ({"time_embedding.linear_1.diff_b": torch.full((256,), float("nan"))}, "NaN or Inf"),
        ({"time_embedding.linear_1.diff_b": torch.ones(256, dtype=torch.int8)}, "numbers of type I8"),
    ):
        save_file(tensors, junk)
        with pytest.raises(ArtifactError, match=text):
            planned(tmp_path, lora, junk)
    junk.write_bytes(b"x" * 100)
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        planned(tmp_path, lora, junk)


def test_the_configuration_beside_a_lora_is_in_the_stages_key(lora, tmp_path):
    """Changed, added or removed, the LoRA is another one."""

    def key():
        work = planned(tmp_path, lora)
        folder = tmp_path / "shared"
        applied = ApplyLoras.of(work, "int4", File("quantized", path=folder / "svdq.safetensors"), folder)
        return applied.key, ReferenceExport.of(work).key

    first, config = key(), tmp_path / "adapter_config.json"
    assert key() == first
    config.write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 2}')
    second = key()
    tensors = {name.removeprefix("base_model.model."): t for name, t in load_file(lora).items()}
    save_file(tensors, lora)
    config.write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    third = key()
    config.unlink()
    for one, *others in zip(first, second, third, key(), strict=True):
        assert len({one, *others}) == 4


def test_only_what_needs_them_reads_the_models_weights(lora, tmp_path):
    work = planned(tmp_path, lora)
    folder = tmp_path / "shared"

    def stage():
        return ApplyLoras.of(work, "int4", File("quantized", path=folder / "svdq.safetensors"), folder)

    assert stage().weights is None
    tensors = load_file(lora)
    tensors["base_model.model.time_embedding.linear_1.lora_magnitude_vector"] = torch.ones(256)
    save_file(tensors, lora)
    work = planned(tmp_path, lora)
    assert stage().weights == work.weights and work.weights.digest
