"""BuildConfig, archs and the command line's refusals."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path

import pytest

from svdq_trt import cli
from svdq_trt.base.errors import ShapeError, UnsupportedError, UsageError
from svdq_trt.base.units import parse_bytes
from svdq_trt.build import config, run
from svdq_trt.build.config import BuildConfig, Range, RankAuto, Sampling
from svdq_trt.build.work import plan_work
from svdq_trt.cli.build import quantization
from svdq_trt.contract.archs import parse_arch, resolve_format
from svdq_trt.quantize.layer import quantize_group


def test_range_parses_one_number_and_three():
    assert Range.parse("--batch", "2") == Range(2, 2, 2)
    assert Range.parse("--height", "512:1024:1536") == Range(512, 1024, 1536)
    assert str(Range(1, 2, 4)) == "1:2:4" and str(Range(2, 2, 2)) == "2"


@pytest.mark.parametrize("text", ["", "0", "4:2:1", "1:2", "a", "1:2:3:4", "-1"])
def test_bad_range_is_refused(text):
    with pytest.raises(UsageError, match="--height"):
        Range.parse("--height", text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1000", 1000),
        ("2.2GB", 2_200_000_000),
        ("700 MB", 700_000_000),
        ("1.5gib", 1_610_612_736),
        ("0.3kB", 300),
        ("1.0000000001 GB", 1_000_000_000),
        ("12 b", 12),
    ],
)
def test_bytes_are_read_exactly(text, want):
    assert parse_bytes("--budget-bytes", text) == want


def test_rank_auto_stands_in_the_manifests_config(tmp_path):
    scan = tmp_path / "scan.json"
    scan.write_text("{}")
    rank, auto = RankAuto.parse("auto", "1MB", None, scan)
    data = BuildConfig("sdxl-tiny", (89,), tmp_path, random_weights=0, rank=rank, rank_auto=auto).to_json()
    assert data["rank"] == "auto"
    assert data["rank_auto"] == {"budget_bytes": 1_000_000, "target_sqnr": None, "sensitivity": str(scan)}
    json.dumps(data)


def test_text_of_any_length_is_an_option(tmp_path):
    args = cli.parse(["build", "--model", "sdxl-tiny", "--arch", "sm_89", "--tokens", "77:77:231"])
    config = BuildConfig(
        "sdxl-tiny", (89,), tmp_path, random_weights=0, check=False, tokens=Range.parse("--tokens", args.tokens)
    )
    (text,) = [p for p in plan_work(config).inputs() if p.name == "encoder_hidden_states"]
    assert (text.min, text.max) == ((1, 77, 128), (4, 231, 128)) and text.axes == ("batch", "tokens", "")
    assert json.loads(json.dumps(config.to_json()))["tokens"] == {"min": 77, "opt": 77, "max": 231}


def test_profile_that_a_models_axes_forbid_is_refused(tmp_path):
    """Stable Diffusion 3's table of positions ends; SDXL's UNet halves its latents twice."""
    for model, size, text in (
        ("sd3-tiny", Range(64, 64, 400), "height: 400, want at most 384 for sd3-tiny"),
        ("sdxl-tiny", Range(64, 80, 128), "height: 80, want a positive multiple of 32 for sdxl-tiny"),
    ):
        with pytest.raises(ShapeError, match=text):
            plan_work(BuildConfig(model, (89,), tmp_path, random_weights=0, check=False, height=size))


def test_every_way_in_searches_as_hard_where_no_preset_is_named():
    words = ["--model", "sdxl-tiny", "--random-weights", "0"]
    lines = (["build", *words, "--arch", "sm_89"], ["quantize", *words, "--arch", "sm_89"])
    assert [quantization(cli.parse(line))["preset"] for line in lines] == ["default", "default"]
    assert cli.parse(["sensitivity", *words, "--format", "int4"]).preset == "default"
    assert BuildConfig("sdxl-tiny", (89,), Path("x"), random_weights=0).preset == "default"
    assert inspect.signature(quantize_group).parameters["preset"].default.name == "default"


@pytest.mark.parametrize(
    ("argv", "all_engines", "parts"),
    [
        ([], False, ()),
        (["--weight-streaming"], True, ()),
        (
            ["--weight-streaming", "vae_decoder", "--weight-streaming", "text_encoder"],
            False,
            ("vae_decoder", "text_encoder"),
        ),
        (["--weight-streaming", "text_encoder", "--weight-streaming"], True, ("text_encoder",)),
    ],
)
def test_weights_are_streamed_of_all_engines_or_of_those_named(argv, all_engines, parts, monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(run, "build", lambda config: built.append(config) or [])
    common = ["--model", "sdxl-tiny", "--arch", "sm_89", "--random-weights", "0", "--pipeline", str(tmp_path)]
    assert cli.main(["build", *argv, *common]) == 0
    assert (built[0].weight_streaming, built[0].streamed_parts) == (all_engines, parts)


def test_auto_format_follows_the_arch():
    assert [resolve_format("auto", parse_arch(f"sm_{a}")).name for a in (80, 86, 89, 90, 120, 121)] == [
        "w4a8",
        "int4",
        "int4",
        "w4a8",
        "nvfp4",
        "nvfp4",
    ]


def test_format_without_kernels_on_an_arch_is_refused():
    with pytest.raises(UsageError, match="nvfp4 for sm_89"):
        resolve_format("nvfp4", 89)


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--model", "sdxl-tiny", "--arch", "sm_1"], 2, "--arch: 'sm_1', want one of sm_80"),
        (["--model", "nope", "--arch", "sm_89"], 2, "--model: 'nope', want one of sdxl"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--rank", "20"], 2, "--rank: 20, want a multiple of 16"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--batch", "x"], 2, "--batch: 'x'"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--format", "int3"], 2, "--format: 'int3'"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--preset", "max"], 2, "--preset: 'max'"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--height", "100"], 1, "height: 100, want a positive multiple"),
        (["--model", "sdxl-tiny", "--arch", "sm_89"], 2, "--random-weights"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--checkpoint", "/nonexistent/x.safetensors"], 1, "x.safetensors"),
        (["--model", "sdxl-tiny"], 2, "--arch"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--random-weights", "0", "--calibration", "/no/f"], 2, "--calib"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--calibration-prompts", "/no/f"], 2, "no model_index.json"),
        *(
            (
                ["--model", "sdxl-tiny", "--arch", "sm_89", f"--calibration-{name}", value],
                2,
                f"--calibration-{name}: given alone, want --calibration-prompts with it.",
            )
            for name, value in (
                ("pipeline", "/no"),
                ("samples", "16"),
                ("steps", "4"),
                ("guidance", "0"),
                ("seed", "0"),
            )
        ),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--no-check", "--min-sqnr", "9"], 2, "--min-sqnr"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--min-sqnr", "nan"], 2, "--min-sqnr: nan, want a finite"),
        (["--model", "sdxl-tiny", "--arch", "sm_89", "--weight-streaming", ""], 2, "--weight-streaming: '', a part"),
    ],
)
def test_bad_arguments_are_one_line_and_an_exit_code(argv, code, text, tmp_path, capsys):
    refused(argv, code, text, tmp_path, capsys)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--rank", "x"], "--rank: 'x', want a multiple of 16 from 0 to 1024, or auto"),
        (["--rank", "auto"], "--rank auto: none or both of --budget-bytes and --target-sqnr, want one of them"),
        (["--rank", "auto", "--budget-bytes", "1GB", "--target-sqnr", "20"], "--rank auto: none or both"),
        (["--rank", "auto", "--budget-bytes", "2.2 XB"], "--budget-bytes: '2.2 XB', want a number of bytes"),
        (["--rank", "auto", "--budget-bytes", "-5"], "--budget-bytes: '-5', want a number of bytes"),
        (["--budget-bytes", "1GB"], "--budget-bytes: given with --rank 32, want --rank auto"),
        (["--rank", "auto", "--target-sqnr", "20"], "--target-sqnr: given without --sensitivity"),
        (["--rank", "auto", "--target-sqnr", "nan"], "--target-sqnr: nan, want 0 to 300 dB"),
        (["--rank", "auto", "--budget-bytes", "1GB", "--sensitivity", "/no/f"], "--sensitivity: '/no/f': no such file"),
    ],
)
def test_bad_rank_options_are_refused(argv, text, tmp_path, capsys):
    refused(["--model", "sdxl-tiny", "--arch", "sm_89", "--random-weights", "0", *argv], 2, text, tmp_path, capsys)


@pytest.mark.parametrize(
    "option",
    ["rank", "budget-bytes", "target-sqnr", "sensitivity", "preset", "calibration", "calibration-prompts", "skip"],
)
def test_what_steers_the_quantizer_is_refused_beside_a_quantized_model(option, tmp_path, capsys):
    argv = ["--model", "sdxl-tiny", "--arch", "sm_89", "--quantized", "x", f"--{option}", "0"]
    refused(argv, 2, f"--quantized: given with --{option}, want it alone", tmp_path, capsys)


def refused(argv, code, text, tmp_path, capsys):
    """`build` ends with the code and one line that has the text."""
    try:
        got = cli.main(["build", *argv, "--out", str(tmp_path / "out")])
    except SystemExit as exit_:
        got = exit_.code
    err = capsys.readouterr().err
    assert got == code, err
    assert text in err and "Traceback" not in err
    assert err.strip().count("\n") == 0


def test_checkpoint_and_random_weights_exclude_each_other():
    with pytest.raises(UsageError, match="one of them"):
        BuildConfig("sdxl", (89,), Path("x"), checkpoint="a", random_weights=0)


@pytest.fixture
def pipeline(tmp_path):
    """A folder that looks like a pipeline, with a file of prompts."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet" / "weights").write_text("1")
    (tmp_path / "prompts.txt").write_text("a fox")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"samples": 0}, "--calibration-samples: 0, want at least 1"),
        ({"steps": -1}, "--calibration-steps: -1, want at least 1"),
        ({"guidance": float("nan")}, "--calibration-guidance: nan, want a finite"),
        ({"prompts": Path("/no/prompts")}, "--calibration-prompts: '/no/prompts': no such file"),
        ({"pipeline": Path("/no/pipe")}, "--calibration-pipeline: '/no/pipe': no model_index.json"),
    ],
)
def test_bad_sampling_is_reported_before_any_work(pipeline, changes, text):
    sampling = Sampling(**{"pipeline": pipeline, "prompts": pipeline / "prompts.txt"} | changes)
    with pytest.raises(UsageError, match=text):
        BuildConfig("sdxl-tiny", (89,), Path("x"), random_weights=0, sampling=sampling)


def test_pipeline_without_its_library_is_refused_before_any_work(pipeline, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    argv = [
        "--model",
        "sdxl-tiny",
        "--arch",
        "sm_89",
        "--random-weights",
        "0",
        "--calibration-pipeline",
        str(pipeline),
        "--calibration-prompts",
        str(pipeline / "prompts.txt"),
    ]
    refused(argv, 1, "--calibration-prompts: transformers is not installed", tmp_path, capsys)
    with pytest.raises(UnsupportedError, match=r'pip install "svdq-trt\[prompts\]"'):
        Sampling(pipeline, pipeline / "prompts.txt").check()


def test_sampling_options_reach_the_config(pipeline):
    words = [
        "build",
        "--model",
        "sdxl-tiny",
        "--arch",
        "sm_89",
        "--random-weights",
        "0",
        "--calibration-prompts",
        "p",
        "--calibration-pipeline",
        "q",
    ]
    given = ["--calibration-samples", "3", "--calibration-seed", "0"]
    for more, want in (([], {}), (given, {"samples": 3, "seed": 0})):
        assert quantization(cli.parse([*words, *more]))["sampling"] == Sampling(Path("q"), Path("p"), **want)


def test_sampling_and_given_inputs_exclude_each_other(pipeline):
    sampling = Sampling(pipeline, pipeline / "prompts.txt")
    with pytest.raises(UsageError, match="--calibration: given with --calibration-prompts"):
        BuildConfig("sdxl-tiny", (89,), Path("x"), random_weights=0, sampling=sampling, calibration=Path("y"))


def test_sampling_is_known_by_its_settings_and_files(pipeline, tmp_path_factory):
    def identity(**changes):
        return Sampling(**{"pipeline": pipeline, "prompts": pipeline / "prompts.txt"} | changes).digest()

    first = identity()
    assert identity() == first and identity(seed=1) != first and identity(steps=4) != first
    weights, second = pipeline / "unet" / "weights", identity()
    assert second == first
    weights.write_text("12")
    second = identity()
    assert second != first
    stat = weights.stat()
    weights.write_text("13")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # other weights of the same size and time
    third = identity()
    assert third != second
    (pipeline / "unet" / "weights.bin").write_text("a pickle, which is never read")
    assert identity() == third
    (pipeline / "prompts.txt").write_text("an owl")
    fourth = identity()
    assert fourth != third
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(pipeline, copy, copy_function=shutil.copyfile)  # at another time
    assert identity(pipeline=copy) == fourth
