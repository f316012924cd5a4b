"""What a quantized linear is: formats, op types, architectures, numerics in torch, and the fp64 reference."""
