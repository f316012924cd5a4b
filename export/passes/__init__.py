"""Graph passes, one per file: each takes an onnx_ir model and changes it in place."""
