"""The trained-model benchmark's parts: scenes, paths, outliers, judging, and what people see."""

import io
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import get_context

import pytest
import torch
import trained_models
from PIL import Image
from safetensors.torch import load_file, save_file
from trained import jobs, judge, metrics, scenes, variants
from trained.linears import Unpacked
from trained.publish import PAGE, publish
from trained.sheet import contact_sheet, table
from trained.tasks import TASKS, noised, sample
from trained.train import train
from trained.variants import Variant, amplify

from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.preset import PRESETS


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_scenes_show_their_class():
    labels = torch.arange(scenes.CLASSES)
    x = scenes.draw(labels, rng())
    assert x.shape == (48, 4, scenes.SIZE, scenes.SIZE) and x.abs().max() <= 1
    assert torch.equal(x, scenes.draw(labels, rng())) and not torch.equal(x, scenes.draw(labels, rng(1)))
    cover = (x[:, 3:] + 1) / 2
    colour = ((x[:, :3] + 1) / 2 * cover).sum((2, 3)) / cover.sum((2, 3))
    wheel = torch.cos(2 * torch.pi * (torch.arange(8)[:, None] / 8 - torch.arange(3) / 3))
    nearest = ((colour - colour.mean(1, keepdim=True)) @ wheel.T).argmax(1)
    assert torch.equal(nearest, labels % 8)


def test_euler_steps_along_the_true_velocity_end_at_the_picture():
    torch.manual_seed(0)
    x0 = scenes.draw(torch.arange(3), rng())
    x, t, velocity = noised(x0)
    torch.testing.assert_close(x - t[:, None, None, None] * velocity, x0)
    noise = torch.randn_like(x0)
    got = sample(lambda x, t, labels: noise - x0, noise, torch.arange(3), 7)
    torch.testing.assert_close(got, x0, atol=1e-5, rtol=0)


def test_flux_packing_is_undone():
    task, x = TASKS["flux1-tiny"], torch.randn(2, 4, scenes.SIZE, scenes.SIZE)
    packed = task.inputs(x, torch.ones(2), torch.arange(2))[0]
    assert packed.shape == (2, scenes.SIZE**2 // 4, 16)
    assert torch.equal(task.output(packed), x)


@pytest.mark.parametrize(("name", "count"), [("sdxl-tiny", 30), ("flux1-tiny", 16)])
def test_outliers_leave_the_function_alone(name, count, monkeypatch):
    monkeypatch.setattr(scenes, "SIZE", 8)
    task = TASKS[name]
    torch.manual_seed(0)
    module = task.spec.build(torch.float32, "cpu")
    flat, inputs = task.spec.wrap(module), task.inputs(torch.randn(1, 4, 8, 8), torch.ones(1), torch.arange(1))
    node = next(g for g in task.spec.groups(module) if not g.weight_only)
    seen = []
    module.get_submodule(node.members[0]).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        want = flat(*inputs)
        assert amplify(task.spec, module, 64.0) == count
        torch.testing.assert_close(flat(*inputs), want, atol=1e-4, rtol=1e-4)
    before, after = (x.abs().amax((0, 1)) for x in seen)
    large = after / before > 32
    assert large.sum() == max(len(before) // 64, 1), "one channel in 64 became large"
    torch.testing.assert_close(after[~large], before[~large], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", [Activation.GEGLU, Activation.SWIGLU], ids=["geglu", "swiglu"])
@pytest.mark.parametrize("fmt", ["int4", "nvfp4", "w4a8", "w4a16"])
def test_unpacked_linear_is_the_ops(fmt, activation):
    g = rng()
    w, x = torch.randn(128, 128, generator=g), torch.randn(2, 24, 128, generator=g).half()
    q = quantize_group([w], [None], x.flatten(0, 1), FORMATS[fmt], 16, activation=activation, preset=PRESETS["fast"])
    layer = q.module()
    x[0, 3, 7] = torch.inf  # NaN in that row and nowhere else
    layer.bias += 1000  # more than f16 holds after the gate
    got = Unpacked(layer)(x)
    assert torch.equal(got.isnan().any(-1), ~x.isfinite().all(-1)) and got.nan_to_num().abs().max() == 65504
    torch.testing.assert_close(got, layer(x), atol=0, rtol=0, equal_nan=True)


class Small:
    """A task whose model is one convolution; its own spec."""

    name, torch_dtype, spec = "small", torch.float16, None

    def __init__(self):
        self.spec = self

    def build(self, dtype, device):
        return torch.nn.Conv2d(4, 4, 3, padding=1, dtype=dtype, device=device).requires_grad_(False)

    def wrap(self, module):
        return lambda x, t, labels: module(x)

    def inputs(self, x, t, labels):
        return x, t, labels

    def output(self, y):
        return y


def test_training_learns_and_stops_where_asked(tmp_path):
    out, settings = tmp_path / "model.safetensors", {"batch": 8, "lr": 1e-2, "device": "cpu"}
    short = train(Small(), out, seconds=1e9, steps=10, **settings)
    calls = []
    long = train(Small(), out, seconds=1e9, steps=150, running=lambda: calls.append(1), **settings)
    assert calls == [1]
    assert (short["steps"], long["steps"]) == (10, 150) and long["loss"] < 0.7 * short["loss"]
    assert {t.dtype for t in load_file(out).values()} == {torch.float16}
    assert 1 < train(Small(), out, seconds=0.3, steps=10**9, **settings)["steps"] < 10**9


def test_metrics_of_equal_pictures():
    labels = torch.arange(scenes.CLASSES)
    x = scenes.draw(labels, rng())
    torch.manual_seed(0)
    net = metrics.Features().requires_grad_(False)
    same, noisy = (metrics.compare(net, x + e * torch.randn_like(x), x, labels) for e in (0.0, 0.3))
    assert (same["psnr_db"], same["feature_distance"]) == (pytest.approx(100, abs=7), 0)
    assert same["ssim"] == pytest.approx(1) and same["frechet"] == pytest.approx(0, abs=1e-4)
    assert noisy["psnr_db"] < 20 and noisy["ssim"] < 0.9 and noisy["feature_distance"] > 0


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """An untrained model's results, their folder, and what was printed: one row works, one does not."""
    task, work, printed = TASKS["flux1-tiny"], tmp_path_factory.mktemp("work"), io.StringIO()
    torch.manual_seed(0)
    save_file(task.spec.build(device="cpu").state_dict(), work / "model.safetensors")
    record = {"steps": 1, "seconds": 2.0, "loss": 3.0, "batch": 4}
    (work / "training.json").write_text(json.dumps(record))
    rtn = next(v for v in variants.variants() if v.preset.name == "rtn")
    rows = [rtn, Variant("a rank that no node takes", "int4", 8, rtn.preset)]
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        for module, name, value in (
            (scenes, "SIZE", 8),
            (judge, "SAMPLER_STEPS", 2),
            (judge, "PER_CLASS", 1),
            (judge, "CALIBRATION_SAMPLES", 4),
            (variants, "TOKENS", 64),
            (metrics, "train_features", lambda device: (metrics.Features().requires_grad_(False), 0.5)),
        ):
            patch.setattr(module, name, value)
        results = judge.judge(task, work, "cpu", pool, rows)
    return results, work, printed.getvalue()


def test_judging_sheet_and_page(judged, tmp_path):
    results, work, printed = judged
    assert "rank 8, want a multiple of 16" in printed, "a variant that fails says why"
    (row,) = results["variants"]
    assert row["key"] == "int4-rtn-r0-x1" and 10 < row["layers_db"] < 30 and row["output_db"] > 10
    assert json.loads((work / "results.json").read_text()) == results
    pictures = load_file(work / "pictures.safetensors")
    assert set(pictures) == {"fp16", row["key"]} and len(results["shown"]) == len(pictures["fp16"])

    (tmp_path / "flux1-tiny.json").write_text(json.dumps(results))
    contact_sheet(results, pictures, tmp_path / "flux1-tiny.png")
    with Image.open(tmp_path / "flux1-tiny.png") as sheet:
        assert sheet.width > sheet.height > 2 * 64
    page = tmp_path / PAGE
    page.parent.mkdir()
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    page.write_text("# Top\n\n<!-- flux1-tiny -->\nold\n<!-- end -->\n\nrest\n")
    assert publish(tmp_path, ["flux1-tiny"], tmp_path) == 0
    first = page.read_text()
    assert table(results) in first and "old" not in first and first.endswith("rest\n")
    assert publish(tmp_path, ["flux1-tiny", "sdxl-tiny"], tmp_path) == 0
    assert page.read_text() == first, "publishing again changes nothing; a model without results is left alone"
    page.write_text("# Top\n")
    with pytest.raises(SystemExit, match="0 places for 'flux1-tiny'"):
        publish(tmp_path, ["flux1-tiny"], tmp_path)


def test_publishing_a_comparison_keeps_what_it_does_not_have(tmp_path):
    def result(source, db):
        mean = {"fast": db - 1, "default": db, "modelopt": db - 2}
        return {
            "source": source,
            "format": "int4",
            "mean_db": mean,
            "default_better": 1,
            "layers": [{"layer": "l", **mean}],
        }

    page, out, results = tmp_path / PAGE, tmp_path / "out", tmp_path / "benchmarks/results/modelopt.json"
    for folder in (page.parent, out, results.parent):
        folder.mkdir(parents=True)
    page.write_text("<!-- modelopt -->\n<!-- end -->\n")

    def published(rank, *found):
        (out / "modelopt.json").write_text(json.dumps({"rank": rank, "results": found}))
        assert publish(out, [], tmp_path) == 0
        rows = [line.split(" | ")[0] for line in page.read_text().splitlines() if "`int4`" in line]
        return rows, json.loads(results.read_text())["results"]

    old, again, trained = result("random m", 20), result("random m", 30), result("trained m", 40)
    published(32, old, result("also random", 10))
    assert published(32, trained, again) == (
        ["| trained m", "| also random", "| random m"],
        [trained, result("also random", 10), again],
    )
    assert published(16, old)[1] == [old], "another rank is another table"


def test_publishing_nothing_says_so(tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / PAGE).write_text("# Top\n")
    assert publish(tmp_path, ["sdxl-tiny"], tmp_path) == 1
    assert "nothing to publish" in capsys.readouterr().out


def test_the_most_important_rows_come_first():
    rows = variants.variants()
    assert len({v.key for v in rows}) == len(rows) and set(variants.FIRST) <= {v.key for v in rows}
    ordered = variants.by_importance(rows)
    assert [v.key for v in ordered[: len(variants.FIRST)]] == list(variants.FIRST)
    assert ordered[len(variants.FIRST) :] == [v for v in rows if v.key not in variants.FIRST]


def test_futures_come_as_they_are_done_the_first_submitted_first():
    slow, quick, quicker = (Future() for _ in range(3))
    quicker.set_result(0)
    quick.set_result(0)
    futures = judge.as_done([slow, quick, quicker])
    assert next(futures) is quick
    slow.set_result(0)
    assert list(futures) == [slow, quicker]


def test_a_worker_has_one_thread():
    with ProcessPoolExecutor(1, get_context("spawn"), variants.start_worker) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1


def test_at_the_limit_what_is_done_is_reported(judged, tmp_path, monkeypatch, capsys):
    _, work, _ = judged
    shutil.copytree(work, tmp_path / "flux1-tiny")
    sleeping = partial(subprocess.Popen, ["sleep", "60"], start_new_session=True)
    monkeypatch.setattr(trained_models, "start", lambda *args: sleeping())
    monkeypatch.setattr(
        sys, "argv", ["", "--out", str(tmp_path), "--work", str(tmp_path), "--model", "flux1-tiny", "--limit", "0.1"]
    )
    assert trained_models.main() == 1
    printed = capsys.readouterr().out
    assert "| int4 | round to nearest | 0 |" in printed and "flux1-tiny; stopped at the limit of 0 s" in printed
    assert {p.suffix for p in tmp_path.glob("flux1-tiny.*")} == {".json", ".png", ".safetensors"}


def test_models_processes_start_with_one_thread(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **more: started.append((command, env)))
    monkeypatch.setattr(sys, "argv", ["", "--out", str(tmp_path), "--work", str(tmp_path)])
    trained_models.start(trained_models.arguments(), "flux1-tiny", "tf32-graph")
    ((command, env),) = started
    assert env["OMP_NUM_THREADS"] == "1" and command[command.index("--seconds") + 1] == "75"


def test_a_process_past_the_limit_is_killed_with_its_children():
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    job = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    job.stdout.readline()
    assert jobs.ended(job, time.monotonic()) == -9
    assert job.stdout.read() == b"", "the child held the pipe"


def test_modelopt_leaves_the_weights_alone():
    pytest.importorskip("modelopt", reason="needs nvidia-modelopt")
    from modelopt_compare import Layer, _modelopt

    g = rng()
    weights = [torch.randn(64, 128, generator=g) for _ in range(2)]
    layer = Layer("two", [w.clone() for w in weights], torch.randn(64, 128, generator=g))
    assert layer.x.is_shared() and all(w.is_shared() for w in layer.weights), "workers read them while it runs"
    one, two = (_modelopt(layers, "int4", 16, "cpu") for layers in ([layer], [layer, layer]))
    assert all(torch.equal(a, b) for a, b in zip(layer.weights, weights, strict=True))
    assert two == one * 2 and 5 < one[0] < 40


def test_training_is_tried_in_every_mode_and_no_further(tmp_path, monkeypatch):
    tried = []

    def start(args, name, mode):
        tried.append(mode)
        if mode == "tf32":
            (tmp_path / name / "model.safetensors").touch()
        return subprocess.Popen(["false"])

    monkeypatch.setattr(trained_models, "start", start)
    (tmp_path / "flux1-tiny").mkdir()
    monkeypatch.setattr(sys, "argv", ["trained_models.py", "--out", str(tmp_path)])
    args = trained_models.arguments()
    args.work = tmp_path
    later = time.monotonic() + 60
    assert trained_models.tried(args, later, "flux1-tiny") == 1
    assert tried == ["tf32-graph", "tf32"], "it was trained, then failed"
    monkeypatch.setattr(trained_models, "start", lambda args, name, mode: subprocess.Popen(["true"]))
    assert trained_models.tried(args, later, "flux1-tiny") == 0
