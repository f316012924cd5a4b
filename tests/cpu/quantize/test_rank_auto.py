"""--rank auto on a whole small model: equal bytes, less error, predicted and measured; and the results of a scan."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from svdq_trt import calibrate
from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.allocation import Allocation, describe
from svdq_trt.artifact.sensitivity import Effect, Sensitivity
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.base.journal import Journal
from svdq_trt.calibrate.inputs import synthetic
from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import FORMATS
from svdq_trt.contract.sqnr import decibels
from svdq_trt.models import LinearGroup, ModelSpec, get_model
from svdq_trt.models.recipe import weight_layers
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.nn.restore import layer_of, restore_model
from svdq_trt.quantize.allocate import NodeCurve, allocate, measure_curves
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.quantize.run import quantize_model
from svdq_trt.quantize.sensitivity import Probe, scan
from svdq_trt.quantize.spend import total_bytes, total_error

RANK, PIXELS = 32, 64


@dataclass
class Model:
    """flux1-tiny, calibrated, in int4 at one rank, scanned."""

    spec: ModelSpec
    module: nn.Module
    groups: tuple[LinearGroup, ...]
    calibration: calibrate.Calibration
    curves: dict[str, NodeCurve]
    fresh: Probe
    uniform: dict[str, SVDQLinear]
    found: Sensitivity
    folder: Path

    def quantize(self, ranks: dict[str, int], kept: tuple[str, ...] = ()) -> dict[str, SVDQLinear]:
        module = copy.deepcopy(self.module, {id(t): t for t in self.module.parameters()})
        out = self.folder / "svdq.safetensors"
        groups = self.spec.groups(module, kept)
        quantize_model(
            module,
            self.spec,
            groups,
            self.calibration,
            FORMATS["int4"],
            ranks,
            PRESETS["fast"],
            out,
            "k",
            lambda *_: None,
            skip=kept,
            notes={"allocation": {"kept": list(kept)}},
        )
        loaded = svdq_file.load(out)
        return {n.name: layer_of(n, loaded.tensors) for n in loaded.nodes}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    spec, folder = get_model("flux1-tiny"), tmp_path_factory.mktemp("auto")
    module = load(spec, random_seed=0)
    groups = spec.groups(module)
    calibration = calibrate.collect(module, spec, groups, samples=2, tokens_per_group=128, height=PIXELS, width=PIXELS)
    curves = measure_curves(
        module, groups, calibration, FORMATS["int4"], spec.torch_dtype, Journal(folder / "curves", "k"), lambda *_: None
    )
    probe, fresh = (Probe(module, spec, groups, list(synthetic(spec, 1, PIXELS, PIXELS, seed))) for seed in (1, 2))
    got = Model(spec, module, groups, calibration, curves, fresh, {}, None, folder)
    got.uniform = got.quantize({g.node: g.rank(RANK) for g in groups})
    layer_db = {n.name: n.sqnr_db for n in svdq_file.read_nodes(folder / "svdq.safetensors")}
    effects = tuple(scan(probe, got.uniform, layer_db, {}))
    got.found = Sensitivity(spec.name, "int4", RANK, "fast", "1 synthetic", effects, probe.output_db(got.uniform))
    return got


def uniform_cost(model: Model) -> tuple[int, float]:
    """Bytes, and the error that curves and scan predict, of one rank for all."""
    ranks = {g.node: g.rank(RANK) for g in model.groups}
    choice = {e.node: model.curves[e.node].option(ranks[e.node], e.gain) for e in model.found.effects}
    return total_bytes(choice), total_error(choice)


def test_auto_is_better_than_one_rank_at_equal_bytes(model):
    size, error = uniform_cost(model)
    chosen = allocate(model.curves, size, None, model.found, "scan.json")
    assert chosen.bytes <= size
    layers = model.quantize(chosen.ranks, chosen.kept)
    own = sum(t.numel() * t.element_size() for layer in layers.values() for t in layer.buffers())
    kept = sum(2 * model.curves[node].n * (model.curves[node].k + 1) for node in chosen.kept)
    assert own + kept == chosen.bytes  # what the budget counts is what is there
    uniform_db, auto_db = model.fresh.output_db(model.uniform), model.fresh.output_db(layers)
    print(
        f"\nrank {RANK}: predicted {decibels(error):.1f} dB, measured {uniform_db:.1f}; auto at {chosen.bytes} of "
        f"{size} bytes: predicted {chosen.error_db:.1f}, measured {auto_db:.1f}"
    )
    assert chosen.error_db > decibels(error) + 0.5
    assert auto_db > uniform_db + 0.5 * (chosen.error_db - decibels(error))  # one input's gains are not another's


def test_target_takes_fewer_bytes_than_one_rank_of_that_quality(model):
    size, error = uniform_cost(model)
    chosen = allocate(model.curves, None, decibels(error), model.found, "scan.json")
    assert chosen.error_db >= decibels(error) - 1e-9 and chosen.bytes < 0.95 * size


def test_more_bytes_never_predict_a_larger_error(model):
    size, _ = uniform_cost(model)
    least = allocate(model.curves, size, None, model.found).error_db
    for share in (1.02, 1.1, 1.3, 2.0, 4.0):
        more = allocate(model.curves, int(share * size), None, model.found)
        assert more.bytes <= share * size and more.error_db >= least
        least = more.error_db


def test_kept_nodes_are_whole_in_the_restored_model(model):
    kept = (model.groups[0].node, model.groups[5].node)
    model.quantize({g.node: 16 for g in model.groups if g.node not in kept}, kept)
    loaded = svdq_file.load(model.folder / "svdq.safetensors")
    module = restore_model(loaded, model.spec)
    plain = weight_layers(module)
    for group in (model.groups[0], model.groups[5]):
        for member in group.members:
            torch.testing.assert_close(plain[member].weight, model.module.get_submodule(member).weight)
    assert loaded.meta["allocation"] == {"kept": list(kept)} and loaded.meta["rank"] == 16
    assert all(node.trials for node in loaded.nodes)


def test_curves_are_taken_over_from_the_journal(model):
    journal = Journal(model.folder / "curves", "k")
    again = measure_curves(model.module, model.groups, None, FORMATS["int4"], torch.float16, journal, lambda *_: None)
    assert again == model.curves


def test_scan_predicts_the_whole_and_its_file_comes_back(model, tmp_path):
    assert model.found.predicted_db == pytest.approx(model.found.measured_db, abs=2.0)
    path = tmp_path / "scan.json"
    model.found.save(path)
    assert Sensitivity.load(path) == model.found
    assert json.loads(path.read_text())["predicted_db"] == pytest.approx(model.found.predicted_db)


def test_scan_leaves_the_16_bit_model_alone_and_skips_what_is_done(model):
    before = [n for n, _ in model.module.named_modules()]
    first = model.found.effects[0]
    done = {e.node: e.output_db for e in model.found.effects[1:]}
    again = scan(model.fresh, model.uniform, {n: 0.0 for n in model.uniform}, done)
    got = {e.node: e.output_db for e in again}
    assert got.keys() == {first.node, *done} and {n: got[n] for n in done} == done
    assert model.fresh.output_db({}) == 300.0  # nothing quantized: nothing changed
    assert [n for n, _ in model.module.named_modules()] == before


def curve(*errors: float, keep: bool = True) -> NodeCurve:
    return NodeCurve(64, 64, "int4", keep, errors)


def test_errors_name_the_bound():
    curves = {"a": curve(0.1, 0.05, 0.02, 0.01, 0.005), "b": curve(0.2, 0.1, 0.1, 0.1, 0.1, keep=False)}
    least = sum(c.option(0).bytes for c in curves.values())
    assert allocate(curves, least, None).ranks == {"a": 0, "b": 0}
    with pytest.raises(UsageError, match=f"--budget-bytes: {least - 1}, want at least {least}"):
        allocate(curves, least - 1, None)
    with pytest.raises(UsageError, match=r"--target-sqnr: 20 dB, want at most 13\.01"):  # b alone: 0.1 / 2 nodes
        allocate(curves, None, 20.0)
    other = Sensitivity("m", "int4", 32, "fast", "", (Effect("a", "op", 20.0, 30.0),), 30.0)
    with pytest.raises(UsageError, match="--sensitivity: no figures of b"):
        allocate(curves, least, None, other)


def test_a_linear_shared_by_columns_is_never_kept():
    curves = {"a": curve(0.1, 0.05, 0.02, 0.01, 0.005), "b": curve(0.2, 0.1, 0.09, 0.08, 0.07, keep=False)}
    chosen = allocate(curves, 10**6, None)
    assert chosen.kept == ("a",) and chosen.ranks == {"b": 64}


def test_gain_moves_bytes_to_the_node_that_matters():
    same = (0.1, 0.05, 0.02, 0.01, 0.005)
    curves = {"a": curve(*same, keep=False), "b": curve(*same, keep=False)}
    budget = curves["a"].option(0).bytes + curves["a"].option(48).bytes
    effects = Effect("a", "op", 20.0, 40.0), Effect("b", "op", 20.0, 20.0)
    chosen = allocate(curves, budget, None, Sensitivity("m", "int4", 32, "fast", "", effects, 20.0), "s")
    assert chosen.ranks["b"] > chosen.ranks["a"]


def test_allocation_file_comes_back_and_a_damaged_one_is_reported(tmp_path):
    chosen = Allocation(1000, None, "s.json", 990, 21.5, {"a": 16}, ("b",))
    chosen.save(tmp_path / "a.json")
    assert Allocation.load(tmp_path / "a.json") == chosen
    assert describe(chosen.summary()) == (
        "990 bytes in all nodes, 1 of them in 16 bit; 21.5 dB predicted at the output; asked for 1,000 bytes"
    )
    (tmp_path / "b.json").write_text('{"kept": []}')
    with pytest.raises(ArtifactError, match="damaged"):
        Allocation.load(tmp_path / "b.json")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"version": 2}',
        '{"version": 1, "predicted_db": 1, "effects": [{"node": 1}]}',
        '{"version": 1, "predicted_db": 1, "effects": 3}',
    ],
)
def test_a_file_that_is_no_scan_is_reported(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ArtifactError, match="no usable scan"):
        Sensitivity.load(tmp_path / "s.json")
