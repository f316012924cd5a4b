"""The parts of bench_serving.py: clients side by side, what disturbs them, and the server's memory meanwhile."""
