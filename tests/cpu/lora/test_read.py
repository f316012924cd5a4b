"""Reading LoRA files: equal results from every spelling, everything else listed, nothing trusted."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.base.errors import ArtifactError, SvdqError, UsageError
from svdq_trt.lora.read import read_lora
from tests.harness.lora_files import (
    Factors,
    make_factors,
    unet_original,
    write_comfy,
    write_kohya,
    write_named,
    write_peft,
)

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
LAYERS = (
    f"{BLOCK}.attn1.to_q",
    f"{BLOCK}.attn1.to_out.0",
    f"{BLOCK}.ff.net.0.proj",
    "down_blocks.1.resnets.0.conv1",
    "time_embedding.linear_1",
    "down_blocks.1.attentions.0.proj_in",
)


def deltas(lora) -> dict[str, torch.Tensor]:
    """Layer -> the dense change [N, K]."""
    return {t.layer: e.up()[t.source : t.source + t.rows] @ e.down() for e in lora.changes for t in e.targets}


def expected(factors) -> dict[str, torch.Tensor]:
    return {
        name: f.alpha / len(f.down) * f.up.float().flatten(1) @ f.down.float().flatten(1) for name, f in factors.items()
    }


@pytest.fixture(scope="module")
def factors(spec):
    return make_factors(spec, LAYERS)


def test_every_spelling_gives_the_same_change(tmp_path, spec, names, shapes, factors):
    files = {
        "peft": write_peft(tmp_path / "peft.safetensors", factors),
        "kohya": write_kohya(tmp_path / "kohya.safetensors", factors, spec),
        "comfy": write_comfy(tmp_path / "comfy.safetensors", factors, spec),
        "comfy-A-B": write_named(
            tmp_path / "ab.safetensors", factors, lambda n: f"diffusion_model.{unet_original(spec, n)}"
        ),
        "kohya-diffusers": write_named(
            tmp_path / "kd.safetensors", factors, lambda n: f"lora_unet_{n}".replace(".", "_")
        ),
        "bare": write_named(tmp_path / "bare.safetensors", factors, lambda n: n),
    }
    renamed = {
        k.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B."): v
        for k, v in load_file(files["comfy-A-B"]).items()
    }
    save_file(renamed, files["comfy-A-B"])
    want = expected(factors)
    for kind, path in files.items():
        lora = read_lora(path, names, shapes)
        got = deltas(lora)
        assert lora.problems == () and lora.text_encoder == 0, (kind, lora.problems)
        assert set(got) == set(want), kind
        for layer, delta in want.items():
            torch.testing.assert_close(got[layer], delta, rtol=1e-6, atol=1e-7, msg=f"{kind} {layer}")


def test_attention_processors_old_names(tmp_path, names, shapes, spec):
    (layer,) = [n for n in LAYERS if n.endswith("to_out.0")]
    f = make_factors(spec, [layer])[layer]
    stem = "unet." + layer.removesuffix(".to_out.0") + ".processor.to_out_lora"
    save_file({f"{stem}.down.weight": f.down, f"{stem}.up.weight": f.up}, tmp_path / "old.safetensors")
    lora = read_lora(tmp_path / "old.safetensors", names, shapes)
    assert [t.layer for e in lora.changes for t in e.targets] == [layer] and lora.problems == ()


def test_a_middle_convolution_is_one_convolution(tmp_path, names, shapes):
    """LoCon's lora_mid: down 1x1, mid 3x3, up 1x1, as three convolutions do it."""
    layer = "down_blocks.1.resnets.0.conv1"
    n, c, kh, kw = shapes[layer]
    g = torch.Generator().manual_seed(0)
    down, mid = torch.randn(3, c, 1, 1, generator=g), torch.randn(5, 3, kh, kw, generator=g)
    up = torch.randn(n, 5, 1, 1, generator=g)
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(3.0)}
    save_file({f"unet.{layer}.{k}": v for k, v in parts.items()}, tmp_path / "mid.safetensors")
    lora = read_lora(tmp_path / "mid.safetensors", names, shapes)
    x = torch.randn(1, c, 6, 6, generator=g)
    conv = torch.nn.functional.conv2d
    want = conv(conv(conv(x, down), mid, padding=1), up)
    got = conv(x, deltas(lora)[layer].view(n, c, kh, kw), padding=1)
    assert lora.problems == ()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_used_is_listed_and_refused(tmp_path, spec, names, shapes, factors):
    good, q = "down_blocks.1.attentions.0.proj_in", f"lora_unet_{unet_original(spec, LAYERS[0])}".replace(".", "_")
    more = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 8),
        "lora_unet_nowhere.lora_down.weight": torch.ones(4, 8),
        "lora_unet_nowhere.lora_up.weight": torch.ones(8, 4),
        f"{q}.boft_R": torch.ones(64),
        "lora_unet_input_blocks_1_0_in_layers_2.hada_w1_a": torch.ones(4, 4),
        "lora_unet_out_2.lora_down.weight": torch.ones(4, 64, 3, 3),
        "unet.up_blocks.0.attentions.0.proj_in.lora_A.weight": torch.ones(4, 100),
        "unet.up_blocks.0.attentions.0.proj_in.lora_B.weight": torch.ones(100, 4),
        f"unet.{good}.lora_A.weight": torch.ones(4, shapes[good][1]),
        f"unet.{good}.lora_B.weight": torch.ones(shapes[good][0], 4),
        "something.weight": torch.ones(4),
    }
    lora = read_lora(write_kohya(tmp_path / "x.safetensors", factors, spec, **more), names, shapes)
    problems = dict(lora.problems)
    assert lora.text_encoder == 1
    assert problems.pop(q).startswith("BOFT")
    assert problems.pop("lora_unet_nowhere").startswith("no layer of this model")
    assert problems.pop("lora_unet_input_blocks_1_0_in_layers_2") == "parts that do not belong together (hada_w1_a)"
    assert problems.pop("lora_unet_out_2") == "has no up factor"
    assert problems.pop("unet.up_blocks.0.attentions.0.proj_in").startswith("down [4, 100], want [4, ")
    assert problems.pop("something") == "no LoRA tensor"
    (twice,) = problems.values()  # whichever of the two spellings comes second
    assert "again" in twice
    left = {t.layer for e in lora.changes for t in e.targets}
    assert left == set(LAYERS) - {LAYERS[0]}  # BOFT's layer goes as a whole, the rest is used
    with pytest.raises(ArtifactError, match=r"7 layers that cannot be used \(.*--allow-partial leaves them out"):
        lora.require_whole(spec.name)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        ({"down": torch.full((4, 64), float("nan"))}, "NaN or Inf"),
        ({"up": torch.full((64, 4), float("inf"))}, "NaN or Inf"),
        ({"alpha": torch.tensor(float("nan"))}, "NaN or Inf"),
        ({"alpha": torch.tensor(0.0)}, r"alpha 0\.0, want a finite number other than 0"),
        ({"alpha": torch.tensor(True)}, r"numbers of type BOOL, want floats\. Save the LoRA without quantizing it"),
        ({"down": torch.ones(4, 64, dtype=torch.int8)}, r"numbers of type I8, want floats\. Save the LoRA without"),
    ],
)
def test_bad_values_are_refused_when_they_are_read(tmp_path, names, shapes, tensor, text):
    layer = "down_blocks.1.attentions.0.proj_in"
    n, k = shapes[layer]
    parts = {"down": torch.ones(4, k), "up": torch.ones(n, 4), "alpha": torch.tensor(1.0)}
    parts |= {
        name: t if t.ndim == 0 else t.repeat(4, 4)[: parts[name].shape[0], : parts[name].shape[1]]
        for name, t in tensor.items()
    }
    keys = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    save_file({f"unet.{layer}.{keys[p]}": t.contiguous() for p, t in parts.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match=text):
        deltas(read_lora(tmp_path / "x.safetensors", names, shapes))


def test_pickles_and_wreckage_are_refused(tmp_path, names, shapes):
    for name in ("lora.pt", "lora.bin", "lora.ckpt"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UsageError, match=r"want a \.safetensors file"):
            read_lora(tmp_path / name, names, shapes)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_lora(tmp_path / "none.safetensors", names, shapes)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="safetensors"):
        read_lora(tmp_path / "empty.safetensors", names, shapes)
    for metadata in ("{", "[]", '"x"', "[" * 5000, '{"unet.lora_alpha": null}'):
        f = Factors(torch.ones(4, shapes["time_embedding.linear_1"][1]), torch.ones(256, 4), 1.0)
        save_file(
            {"unet.time_embedding.linear_1.lora_A.weight": f.down, "unet.time_embedding.linear_1.lora_B.weight": f.up},
            tmp_path / "m.safetensors",
            metadata={"lora_adapter_metadata": metadata},
        )
        with pytest.raises(ArtifactError, match=r"metadata|alpha"):
            read_lora(tmp_path / "m.safetensors", names, shapes)


def every_kind(path, spec, shapes):
    """One small layer of each kind of adapter."""
    one, two, three, four, five = (
        f"{BLOCK}.attn{i}.to_{x}" for i, x in ((1, "q"), (1, "k"), (1, "v"), (2, "q"), (2, "out.0"))
    )
    f = make_factors(spec, [one], rank=2)[one]
    n, k = shapes[one]
    parts = {
        one: {
            "lora_down.weight": f.down,
            "lora_up.weight": f.up,
            "alpha": torch.tensor(2),
            "dora_scale": torch.ones(n, 1),
        },
        two: {f"hada_w{i}_{x}": torch.ones((n, 2) if x == "a" else (2, k)) for i in (1, 2) for x in "ab"},
        three: {"lokr_w1": torch.ones(4, 4), "lokr_w2_a": torch.ones(n // 4, 2), "lokr_w2_b": torch.ones(2, k // 4)},
        four: {"oft_blocks": torch.ones(n // 8, 8, 8), "rescale": torch.ones(n, 1), "alpha": torch.tensor(0.1)},
        five: {"diff": torch.ones(*shapes[five]), "diff_b": torch.ones(shapes[five][0])},
    }
    save_file({f"unet.{name}.{part}": t for name, own in parts.items() for part, t in own.items()}, path)
    return path


@pytest.mark.parametrize("kind", ["kohya", "every kind"])
def test_mutated_files_are_errors_or_read_right(tmp_path, spec, names, shapes, kind):
    """Bytes flipped, cut and doubled at random: an SvdqError each time, or changes whose every shape fits."""
    path = tmp_path / "good.safetensors"
    if kind == "kohya":
        write_kohya(path, make_factors(spec, [LAYERS[0], LAYERS[3]], rank=2), spec)
    else:
        assert len(read_lora(every_kind(path, spec, shapes), names, shapes).changes) == 5
    good = path.read_bytes()
    header = int.from_bytes(good[:8], "little") + 8
    rng, refused, path = random.Random(0), 0, tmp_path / "bad.safetensors"
    tries = 2000 if kind == "kohya" else 1000
    for i in range(tries):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            end = len(data) if i % 4 == 0 else header  # mostly the header: values alone are any number
            data[rng.randrange(end)] = rng.randrange(256)
        if i % 7 == 0:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            lora = read_lora(path, names, shapes)
            for change in lora.changes:
                delta = change.at(1.0, lambda name: torch.zeros(shapes[name.removesuffix(".weight")]))
                for target in change.targets:
                    n, *rest = shapes[target.layer]
                    k = int(torch.tensor(rest).prod())
                    part = delta.rows(target.source, target.rows)
                    assert target.start + target.rows <= n
                    assert part.dense(torch.zeros(target.rows, k)).shape == (target.rows, k)
                    assert part.bias is None or part.bias.shape == (target.rows,)
            refused += bool(lora.problems)
        except SvdqError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > tries / 2
