"""The parts of bench_pipeline.py: a pipeline's folder without weights, and its contenders, a process for each."""
