"""LoRA without requantization: ranks join a node's low-rank branch, which reads raw x; no 4-bit code changes.

names.py      every spelling of a layer in a LoRA file -> the layer
read.py       a file -> its entries, and the parts of it that cannot be used
factors.py    entries -> the factors of one node, and the dense delta of one 16-bit layer
apply.py      svdq.safetensors + LoRA files -> svdq.safetensors (at build)
slots.py      rank reserved in the graph, to be filled when the engine runs (svdq_trt/runtime/lora.py)
"""

from svdq_trt.lora.read import LoraFile, read_lora

__all__ = ["LoraFile", "read_lora"]
