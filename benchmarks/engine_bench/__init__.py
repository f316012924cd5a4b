"""The parts of bench_engine.py: each job runs in a process of its own, one JSON object in, one out."""
