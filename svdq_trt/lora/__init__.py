"""LoRA without requantization: ranks join a node's low-rank branch, which reads raw x; no 4-bit code changes.

names.py          every spelling of a layer in a LoRA file -> the layer
tensor_keys.py    a tensor's name -> a layer as spelled, and which part of an adapter it is
alphas.py         how strong a layer's factors are; peft_config.py, peft_pattern.py: by PEFT's configuration
kinds.py          which parts make which kind of adapter: changes.py, products.py, weighted.py
delta.py          the one form of a change that every kind makes and every user takes
read.py           a file -> its changes, and the parts of it that cannot be used
factors.py        changes -> the factors of one node, and one 16-bit layer with them merged
apply.py          svdq.safetensors + LoRA files -> svdq.safetensors (at build)
slots.py          rank reserved in the graph, to be filled when the engine runs (svdq_trt/runtime/lora.py)
"""

from svdq_trt.lora.read import LoraFile, read_lora

__all__ = ["LoraFile", "read_lora"]
