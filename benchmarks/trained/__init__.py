"""Small diffusion models trained on generated pictures, so that quantization can be judged by pictures."""
