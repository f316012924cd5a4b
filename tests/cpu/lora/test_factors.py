"""One node's factors: block-diagonal, shared, split by columns, balanced, at strength."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from svdq_trt.base.errors import RangeError, ShapeError
from svdq_trt.lora.delta import Delta
from svdq_trt.lora.factors import Loaded, NodeRows, approximate, extend, merge_bias, merge_dense
from svdq_trt.lora.factors import unit_factors as with_loss
from svdq_trt.lora.names import Target

K = 128
QKV = NodeRows("to_qkv", {"to_q": 0, "to_k": 64, "to_v": 128}, 192, K)


def entry(layer, n, r, seed=0, start=0, source=0, rows=None, down=None, size=1.0):
    """A stand-in for a file's LoRA, with its target."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(r, K, generator=g) if down is None else down
    return change(layer, Delta(a, torch.randn(n, r, generator=g) * size)), Target(layer, start, source, rows or n)


def change(layer, delta, needs_weight=False):
    """A stand-in for a file's change of a layer."""
    return SimpleNamespace(
        name=layer,
        kind="stub",
        file=SimpleNamespace(path="x"),
        needs_weight=needs_weight,
        has_bias=delta.bias is not None,
        down=lambda: delta.down,
        up=lambda: delta.up,
        at=lambda strength, weight_of: delta.times(strength),
    )


def by_layer(*entries):
    found = {}
    for e, t in entries:
        found.setdefault(t.layer, []).append((e, t))
    return found


def loaded(strength, *entries):
    return Loaded(SimpleNamespace(path="x"), strength, by_layer(*entries))


def dense(rows, *entries):
    w = torch.zeros(rows.n, rows.k)
    for e, t in entries:
        at = rows.first[t.layer] + t.start
        w[at : at + t.rows] += e.up()[t.source : t.source + t.rows] @ e.down()
    return w


def unit_factors(by_layer, rows, dtype):
    down, up, lost = with_loss(by_layer, rows, dtype, 64)
    assert lost == 0
    return down, up


def product(down, up):
    return up.float() @ down.float()


def close(got, want, tolerance=2e-3):
    assert (got - want).norm() <= tolerance * want.norm()


def test_linears_of_a_node_stand_block_diagonally():
    entries = [entry("to_q", 64, 4, 1), entry("to_v", 64, 8, 2)]
    down, up = unit_factors(by_layer(*entries), QKV, torch.float16)
    assert down.shape == (12, K) and up.shape == (192, 12)
    assert not up[:64, 4:].any() and not up[64:128].any() and not up[128:, :4].any()
    close(product(down, up), dense(QKV, *entries))


def test_a_shared_down_factor_takes_its_rank_once():
    """What kohya trains for a fused q/k/v: one down, an up of all rows; and the same split into three linears."""
    a = torch.randn(4, K, generator=torch.Generator().manual_seed(5))
    whole, _ = entry("qkv", 192, 4, 3, down=a)
    fused = [(whole, Target(layer, 0, 64 * i, 64)) for i, layer in enumerate(("to_q", "to_k", "to_v"))]
    split = [entry(layer, 64, 4, i, down=a.clone()) for i, layer in enumerate(("to_q", "to_k", "to_v"))]
    for entries in (fused, split):
        down, up = unit_factors(by_layer(*entries), QKV, torch.float16)
        assert down.shape == (4, K)
        close(product(down, up), dense(QKV, *entries))


def test_swapped_halves():
    """The original FLUX's last modulation: its first half acts on our second."""
    rows = NodeRows("norm_out.linear", {"norm_out.linear": 0}, 64, K)
    whole, _ = entry("x", 64, 4)
    entries = [(whole, Target("norm_out.linear", 32, 0, 32)), (whole, Target("norm_out.linear", 0, 32, 32))]
    down, up = unit_factors(by_layer(*entries), rows, torch.float16)
    delta = whole.up() @ whole.down()
    assert down.shape[0] == 4
    close(product(down, up), torch.cat([delta[32:], delta[:32]]))


def test_columns_of_a_split_linear():
    e = entry("proj_out", 64, 4)
    parts = []
    for start, stop in ((0, 64), (64, K)):
        rows = NodeRows("half", {"proj_out": 0}, 64, stop - start, (start, stop))
        parts.append(product(*unit_factors(by_layer(e), rows, torch.float16)))
    close(torch.cat(parts, 1), e[0].up() @ e[0].down())


def test_rows_of_a_linear_whose_gate_comes_first():
    """One node has the first 16 rows, the other value and gate, which the linear has as gate and value."""
    e = entry("in", 64, 4)
    whole = e[0].up() @ e[0].down()
    for rows in (((0, 16),), ((40, 64), (16, 40))):
        node = NodeRows("node", {"in": 0}, sum(b - a for a, b in rows), K, rows=rows)
        close(product(*unit_factors(by_layer(e), node, torch.float16)), torch.cat([whole[a:b] for a, b in rows]))


def test_a_change_of_some_rows_reaches_the_node_that_has_them():
    part, target = entry("in", 8, 4, start=36)  # rows 36 to 44
    node = NodeRows("node", {"in": 0}, 48, K, rows=((40, 64), (16, 40)))
    want = torch.zeros(64, K)
    want[36:44] = part.up() @ part.down()
    got = product(*unit_factors(by_layer((part, target)), node, torch.float16))
    close(got, torch.cat((want[40:64], want[16:40])))


def test_k_with_zeros_behind_the_linears_features():
    e = entry("point", 64, 4)
    down, up = unit_factors(by_layer(e), NodeRows("point", {"point": 0}, 64, K + 64), torch.float16)
    close(product(down[:, :K], up), e[0].up() @ e[0].down())
    assert not down[:, K:].any()


def test_factors_far_from_one_do_not_leave_f16():
    """down of 1e-7 and up of 1e3: rounded as they are, down would be 0 or subnormal."""
    g = torch.Generator().manual_seed(0)
    e = entry("to_q", 64, 4, down=torch.randn(4, K, generator=g) * 1e-7, size=1e3)
    close(product(*unit_factors(by_layer(e), QKV, torch.float16)), dense(QKV, e))


def test_product_beyond_f16_is_refused():
    e = entry("to_q", 64, 4, down=torch.full((4, K), 3e9), size=1e9)
    with pytest.raises(RangeError, match="to_qkv: a LoRA that overflows"):
        unit_factors(by_layer(e), QKV, torch.float16)


@pytest.mark.parametrize("strengths", [(0.75,), (-0.5,), (1.0, 0.25), (0.5, -2.0)])
def test_extended_branch_is_base_plus_loras(strengths):
    g = torch.Generator().manual_seed(9)
    base_down, base_up = torch.randn(16, K, generator=g).half(), torch.randn(192, 16, generator=g).half()
    loras = [loaded(s, entry("to_q", 64, 4, i), entry("to_k", 64, 3, 10 + i)) for i, s in enumerate(strengths)]
    extended = extend(base_down, base_up, loras, QKV)
    down, up = extended.down, extended.up
    assert extended.error == 0
    assert down.shape[0] % 16 == 0 and down.shape[0] - 16 - 7 * len(strengths) < 16
    assert torch.equal(down[:16], base_down) and torch.equal(up[:, :16], base_up)
    want = sum(
        s * dense(QKV, *(e for es in lora.by_layer.values() for e in es))
        for s, lora in zip(strengths, loras, strict=True)
    )
    close(product(down[16:], up[:, 16:]), want)


def test_rank_limit_and_strength_limit():
    base = torch.zeros(1008, K).half(), torch.zeros(192, 1008).half()
    assert extend(*base, [loaded(1.0, entry("to_q", 64, 16))], QKV).error == 0
    with pytest.raises(ShapeError, match=r"rank 1025 with the LoRAs, and \d+ % of them lost without, want at"):
        extend(*base, [loaded(1.0, entry("to_q", 64, 17))], QKV)
    # 24 ranks of which the last eight hardly matter: cut to the 16 that there are
    e, t = entry("to_q", 64, 24)
    e.up()[:, 16:] *= 1e-3
    new = extend(*base, [loaded(1.0, (e, t))], QKV)
    want = dense(QKV, (e, t))
    left_out = (product(new.down, new.up) - want).norm() / want.norm()
    assert new.down.shape[0] == 1024 and 0 < new.error < 2e-3
    assert abs(left_out - new.error) < 5e-4  # and the rounding of the factors
    with pytest.raises(RangeError, match=r"at strength 1e\+06 overflows"):
        extend(*base, [loaded(1e6, entry("to_q", 64, 16))], QKV)


def test_dense_merge_rounds_once():
    e, linear = entry("proj", 64, 4), torch.randn(64, K, generator=torch.Generator().manual_seed(4)).half()
    want = (linear.double() - 0.5 * (e[0].up().double() @ e[0].down().double())).half()
    got = merge_dense(linear, "proj", [loaded(-0.5, e), loaded(0.0, e)])
    assert (got != want).float().mean() < 0.01  # a tie in f32 here and there
    assert merge_dense(linear, "proj", [loaded(0.0, e)]) is linear
    assert merge_dense(linear, "other", [loaded(1.0, e)]) is linear
    with pytest.raises(RangeError, match="proj: its weight with the LoRAs overflows"):
        merge_dense(linear, "proj", [loaded(1e6, e)])


def test_full_changes_become_factors_of_the_smallest_rank_that_keeps_them():
    """In extend for a build, in unit_factors for slots; bias and rows' factors go where they belong."""
    g = torch.Generator().manual_seed(3)
    w = torch.randn(64, 20, generator=g) @ torch.randn(20, K, generator=g)
    scale, bias = torch.rand(64, generator=g) * 0.1, torch.randn(64, generator=g)
    whole = change("to_k", Delta(full=w, row_scale=scale, bias=bias))
    low = entry("to_k", 64, 4, 5)
    lora = Loaded(SimpleNamespace(path="x"), 0.5, {"to_k": [(whole, Target("to_k", 0, 0, 64)), low]})
    base_down, base_up = torch.randn(16, K, generator=g).half(), torch.randn(192, 16, generator=g).half()
    new = extend(base_down, base_up, [lora], QKV)
    assert new.error < 0.02 and len(new.down) == 16 + 48  # 4 and, of 20 ranks, 32: the next multiple of 16
    want = torch.zeros(192, K)
    want[64:128] = 0.5 * (w + low[0].up() @ low[0].down())
    close(product(new.down[16:], new.up[:, 16:]), want)
    rows = torch.zeros(192)
    rows[64:128] = 0.5 * scale
    assert torch.equal(new.row_scale, rows) and torch.equal(new.bias[64:128], 0.5 * bias) and not new.bias[:64].any()
    close(new.up[:, :16].float(), base_up.float() * (1 + rows)[:, None])
    down, up, lost = with_loss({"to_k": [(whole, Target("to_k", 0, 0, 64))]}, QKV, torch.float16, 16)
    assert down.shape == (16, K) and 0.05 < lost < 0.5
    assert abs((product(down, up)[64:128] - w).norm() / w.norm() - lost) < 1e-3


def test_the_best_factors_and_what_they_lose():
    g = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(96, 96, generator=g))
    v, _ = torch.linalg.qr(torch.randn(K, 96, generator=g))
    s = 0.8 ** torch.arange(96.0)
    down, _up, lost = approximate(u * s @ v.T, 256, torch.float16, "n", "Fix.")
    assert len(down) == 32 and abs(lost - float(s[32:].norm() / s.norm())) < 1e-4  # rank 16 loses 2.8 %
    with pytest.raises(
        ShapeError, match=r"n: a change of full rank of which rank 16 loses \d\d %, want at most 50 %\. F"
    ):
        approximate(torch.randn(96, K, generator=g), 16, torch.float16, "n", "Fix.")
    zero = approximate(torch.zeros(96, K), 16, torch.float16, "n", "Fix.")
    assert zero[2] == 0 and not product(*zero[:2]).any()


def test_a_bias_is_changed_where_there_is_one():
    change_of = change("proj", Delta(bias=torch.ones(64)))
    lora = Loaded(SimpleNamespace(path="x"), 0.5, {"proj": [(change_of, Target("proj", 0, 0, 64))]})
    assert torch.equal(merge_bias(torch.zeros(64).half(), "proj", [lora], None), torch.full((64,), 0.5).half())
    with pytest.raises(ShapeError, match="x: 'proj': a change of a bias, want a layer that has one"):
        merge_bias(None, "proj", [lora], None)
