#!/usr/bin/env bash
# lycoris-lora 4.1.3 with torch 2.13.0
#
# Expected: get_merged_weight() returns the weight that the adapted layer computes with, so that merging changes nothing.
# What happens: for LoHa (alpha 2, rank 8) the merged change is a quarter of the one that runs: it has alpha / rank twice,
#   once in get_weight() and once more in get_diff_weight(). A plain LoRA (LoCon) has it once, merged and running.
# Why it matters: a file that is merged this way is alpha / rank too weak, and nothing says so; whoever takes the merged
#   weight as the truth adopts another strength. The running layer and get_weight() are what other readers agree with.
source "$(dirname "$0")/common.sh"
install lycoris-lora==4.1.3 torch==2.13.0 numpy==2.4.6
run_python <<'PY'
import torch
from lycoris.modules import LoConModule, LohaModule
from seen import seen

torch.manual_seed(0)
x = torch.randn(5, 32)
for kind, adapter, share in (("LoCon", LoConModule, 1.0), ("LoHa", LohaModule, 0.25)):
    linear = torch.nn.Linear(32, 32, bias=False)
    lora = adapter("lora", linear, 1.0, 8, 2.0)  # multiplier, rank, alpha
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    lora.apply_to()
    with torch.no_grad():
        running = linear(x)
        lora.restore()
        merged = x @ lora.get_merged_weight()[0].T
        change = (merged - linear(x)).norm() / (running - linear(x)).norm()
    seen(f"{kind}: merged change / running change", round(float(change), 4), share)
PY
