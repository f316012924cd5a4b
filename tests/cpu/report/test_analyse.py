"""The closer look at a node, and the page it ends in."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch

from svdq_trt.artifact.manifest import LeftOut
from svdq_trt.artifact.sensitivity import Effect, Sensitivity
from svdq_trt.artifact.svdq_file import Node
from svdq_trt.contract.formats import FORMATS
from svdq_trt.evaluate import figures
from svdq_trt.evaluate.analyse import RANKS, analyse, error_split, kind, representative
from svdq_trt.evaluate.figures import one_layer
from svdq_trt.evaluate.page import render
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.preset import PRESETS

N, K, R = 96, 128, 16


def node(name: str, sqnr: float = 20.0) -> Node:
    return Node(name, (name,), (N,), "int4", "", N, K, R, sqnr, 0.5, 0.0, False, 0.0)


@pytest.fixture(scope="module")
def report():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(256, K, generator=g), torch.randn(N, K, generator=g)
    x[:, :2] *= 30
    w += 4 * torch.randn(N, 3, generator=g) @ torch.randn(3, K, generator=g)
    x = x.half()
    q = quantize_group([w], [None], x, FORMATS["int4"], R, name="layer", preset=PRESETS["fast"])
    described = q.node(("layer",), (N,))
    return analyse(described, q.weights.named("layer"), w, x, x.abs().amax(0).float()), q, w


def test_spectra_are_the_singular_values(report):
    got, _, w = report
    torch.testing.assert_close(
        torch.tensor(got.spectra["W"]), torch.linalg.svdvals(w.double()).float(), rtol=1e-4, atol=1e-4
    )
    smoothed, rest = got.spectra["smoothed W"], got.spectra["residual"]
    assert rest[0] == pytest.approx(smoothed[R], rel=0.1)  # what is left after the R largest directions


def test_both_parts_together_are_worse_than_each(report):
    got, q, _ = report
    assert got.split["both"] < min(got.split["activations"], got.split["weights"])
    assert got.split["both"] == pytest.approx(q.sqnr_db, abs=0.05)  # the figure the quantizer gave


def test_split_of_a_node_with_unsigned_codes():
    g = torch.Generator().manual_seed(1)
    x = torch.nn.functional.gelu(torch.randn(256, K, generator=g)).half()
    w = torch.randn(N, K, generator=g)
    q = quantize_group([w], [None], x, FORMATS["int4"], R, name="layer", act_shift=0.171875, preset=PRESETS["fast"])
    described = q.node(("layer",), (N,))
    got = analyse(described, q.weights.named("layer"), w, x, x.abs().amax(0).float())
    assert described.act_unsigned and got.split["both"] == pytest.approx(q.sqnr_db, abs=0.05)
    at_its_rank = {rank: db for rank, db, _ in got.sweep}[R]
    assert at_its_rank == pytest.approx(got.split["both"], abs=1)  # the same codes


def test_more_rank_is_better_and_larger(report):
    sweep = report[0].sweep
    assert [r for r, _, _ in sweep] == list(RANKS)
    for (_, worse, small), (_, better, large) in itertools.pairwise(sweep):
        assert better > worse - 0.1 and large > small
    assert sweep[1][1] > sweep[0][1] + 3  # three outlier directions


def test_node_holds_every_smoothing_tried(report):
    got, q, _ = report
    trials = got.node.trials
    assert [t[:2] for t in trials] == [t[:2] for t in q.trials] and trials[0][:2] == (0.0, 0.0)
    best = max(trials, key=lambda t: t[2])
    assert best[:2] == (q.alpha, q.beta) and best[2] > trials[0][2] + 3  # smoothing helps against outlier channels


def test_exact_activations_leave_the_weights_error_alone():
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(64, K, generator=g).half(), torch.randn(N, K, generator=g)
    q = quantize_group([w], [None], x, FORMATS["w4a16"], R, name="layer", preset=PRESETS["fast"])
    described = q.node(("layer",), (N,))
    got = error_split(described, q.weights.named("layer"), w, x)
    assert got["activations"] > 55 and got["weights"] == got["both"] == pytest.approx(q.sqnr_db, abs=0.1)


def test_shift_of_the_activations_is_taken_out_again(report):
    """x̂ = (x + shift) · act_mul: the bias undoes the shift, so it is no error."""
    got, q, w = report
    x = torch.randn(64, K, generator=torch.Generator().manual_seed(2)).abs().half()
    tensors = q.weights.named("layer")
    plain = error_split(got.node, tensors, w, x)
    shifted = error_split(replace(got.node, act_shift=0.25, act_unsigned=True), tensors, w, x)
    assert shifted["weights"] == pytest.approx(plain["weights"], abs=0.5)
    assert shifted["activations"] > plain["activations"] + 3  # 15 steps for what is positive instead of 7


def test_representative_takes_the_worst_of_each_kind_first():
    nodes = (node("a.0.attn1.to_q", 30), node("a.1.attn1.to_q", 10), node("a.0.ff.net.2", 20), node("a.1.ff.net.2", 25))
    names = [n.name for n in representative(nodes, 3)]
    assert names == ["a.1.attn1.to_q", "a.0.ff.net.2", "a.1.ff.net.2"]
    assert representative(nodes, 0) == []
    assert kind(nodes[0].name) == "attn1.to_q"


def test_page_escapes_what_files_say(report):
    evil = "<script>alert(1)</script>"
    png = one_layer(report[0])
    page = render(
        evil,
        [("from", evil)],
        {"layers": png, "bytes": png, "ranks": png},
        [(report[0], png)],
        [node(evil)],
        [LeftOut(evil, evil)],
        {evil: report[0].split},
        evil,
    )
    assert "<script" not in page and page.count("data:image/png;base64,") == 4


def test_page_counts_reasons_and_names_exact_parts():
    kept = [LeftOut(f"l{i}", "few features") for i in range(3)] + [LeftOut("m", "first layer")]
    splits = {"a.0.attn1.to_q": {"activations": 290.0, "weights": 21.26, "both": 21.26}}
    page = render("t", [], {}, [], [node("a.0.attn1.to_q")], kept, splits)
    assert re.search(r"3</td>\s*<td>few features.*1</td>\s*<td>first layer", page, re.S)
    assert re.search(r">exact</td>\s*<td class=\"n\">21\.3</td>", page)
    absent = ("Where errors", "Smoothing", "Ranks", "Rank sweep", "A closer")
    assert all(f"<h2>{heading}" not in page for heading in absent)


def test_overview_figures_are_drawn_for_any_nodes(report):
    nodes = [
        replace(node(f"a.{i}.attn1.to_q"), rank=16 * i, trials=((0.0, 0.0, 20.0), (0.5, 0.5, 21.0 + i)))
        for i in range(3)
    ]
    splits = {n.name: report[0].split for n in nodes}
    scan = Sensitivity("m", "int4", 32, "fast", "", tuple(Effect(n.name, "op", 20, 30 + n.rank) for n in nodes), 28.0)
    drawn = [
        figures.layers(nodes),
        figures.split(nodes, splits),
        figures.alphas(nodes),
        figures.ranks(nodes, 2),
        figures.rank_sweep([report[0]]),
        figures.sensitivity(scan),
    ]
    assert all(png.startswith(b"\x89PNG") for png in drawn) and len(set(drawn)) == len(drawn)
    assert figures.ranks(nodes, 0) != drawn[3]  # a bar for those in 16 bit


def test_page_of_an_imported_model_says_what_is_not_known(report):
    png = one_layer(report[0])
    page = render("t", [], {"layers": png, "bytes": png}, [], [node("a.0.attn1.to_q", math.nan)], [])
    assert "not known" in page and "nan" not in re.sub(r"base64,[^\"]*", "", page)
