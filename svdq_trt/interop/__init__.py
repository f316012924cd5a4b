"""Quantized checkpoints of other tools: into our artifact and back."""
