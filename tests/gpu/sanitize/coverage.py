"""Which kernels of the library did the driver launch? Prints those it did not; exit status 1 if there are any.

``coverage.py DRIVER LIBRARY [case ...]``: ncu lists the launches, cuobjdump what the library holds for this GPU.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def launched(driver: str, cases: list[str]) -> set[str]:
    """Mangled names of the kernels that the driver ran."""
    text = output(
        "ncu",
        "--csv",
        "--clock-control",
        "none",
        "--print-kernel-base",
        "mangled",
        "--metrics",
        "launch__block_size",
        driver,
        *cases,
    )
    rows = [line for line in text.splitlines() if line.startswith('"')]
    return {row["Kernel Name"] for row in csv.DictReader(rows)}


def held(library: str) -> set[str]:
    """Mangled names of the kernels in the library, whatever their architecture."""
    return set(re.findall(r"^\s*Function (\w+):", output("cuobjdump", "--dump-resource-usage", library), re.M))


def readable(name: str) -> str:
    full = output("c++filt", name).strip()
    return re.sub(r"\(svdq::.*", "", full).replace("svdq::", "").replace("void ", "")


def main() -> int:
    driver, library, *cases = sys.argv[1:]
    have, ran = held(library), launched(driver, cases)
    missed = sorted(readable(name) for name in have - ran)
    print(f"coverage: {len(have & ran)} of {len(have)} kernels launched")
    for name in missed:
        print(f"  not launched: {name}")
    return 1 if missed or not have else 0


if __name__ == "__main__":
    sys.exit(main())
