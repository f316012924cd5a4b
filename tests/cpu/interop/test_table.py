"""The table of formats in docs/interop.md is made of what the tests here run."""

from __future__ import annotations

import tomllib
from pathlib import Path

from svdq_trt.interop.convert import WRITERS
from svdq_trt.interop.makers import MAKERS
from tests.cpu.interop import test_comfy, test_families, test_lite, test_makers, test_round_trip
from tests.harness import nunchaku_peer

ROOT = Path(__file__).resolve().parents[3]
DOC = (ROOT / "docs" / "interop.md").read_text()
PEERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["peers"]
VERSIONS = dict(peer.split("==") for peer in PEERS)
FP4 = "int4, nvfp4"


def names(models) -> str:
    return ", ".join(f"`{model}`" for model in models)


#: maker -> rows of (read, written, models, checked against)
ROWS = {
    "nunchaku": (
        (
            f"{FP4}, old and new key names",
            FP4,
            names(test_round_trip.MODELS),
            f"its Python classes, which load strictly ({names(nunchaku_peer.LOADERS)})",
        ),
        ("int4", "no", names([test_families.SANA]), "names and layouts of its source"),
    ),
    "nunchaku-lite": ((FP4, FP4, names(test_lite.MODELS), "`from_pretrained` of diffusers"),),
    "cache-dit": ((FP4, "no", names(test_makers.MODELS), f"cache-dit {VERSIONS['cache-dit']}'s converter"),),
    "comfy-kitchen": (("int4", "int4", names(test_comfy.MODELS), f"comfy-kitchen {VERSIONS['comfy-kitchen']}, eager"),),
    "vllm-omni": ((FP4, "no", "a toy of FLUX", "names and order of its source"),),
    "modelopt": (("nvfp4", "no", names(test_makers.MODELS), f"ModelOpt {VERSIONS['nvidia-modelopt']}'s exporter"),),
}


def test_every_maker_has_its_rows_and_no_other():
    assert list(ROWS) == [maker.name for maker in MAKERS]
    assert {name for name, rows in ROWS.items() if any(row[1] != "no" for row in rows)} == set(WRITERS)
    table = DOC.partition("| file of | read |")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == [f"| {name} | {' | '.join(row)} |" for name, rows in ROWS.items() for row in rows]
