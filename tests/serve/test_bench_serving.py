"""benchmarks/bench_serving.py on a real Triton server, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.harness.builds import ROOT


def test_nothing_is_lost_while_clients_die_and_send_nonsense(folder, tmp_path):
    out = tmp_path / "serving.json"
    words = [folder, "--device", "cpu", "--size", "64", "--steps", "1", "--guidance", "1", "--seeds", "3"]
    words += ["--clients", "2", "--requests", "50", "--disturb", "15", "--queue-delay", "50000", "--max-batch", "2"]
    line = [sys.executable, ROOT / "benchmarks" / "bench_serving.py", *words, "--out", out]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert (row["pictures"], row["sent"], row["killed"]) == (50, 3, 3) and found["faults"] == []
    assert set(row["batches"]) == {"1", "2"} and 1 < row["batch_mean"] <= 2
    assert 0 < row["latency_s"]["p50"] <= row["latency_s"]["p99"] and row["pictures_per_s"] > 0
    assert {name: len(samples) for name, samples in row["memory_mb"].items()} == {"server": 50, "stubs": 50}
    assert found["log"] == ""
