"""Timing engines on the GPU present, beside each other and beside PyTorch: ``svdq-trt bench``."""
