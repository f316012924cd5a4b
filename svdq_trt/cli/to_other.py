"""``svdq-trt to-nunchaku``, ``to-lite`` and ``to-comfy``: our artifact -> another tool's checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from svdq_trt.base.errors import EXIT_OK
from svdq_trt.base.terminal import say

_EXACT = "What is exact and what is not: docs/interop.md.\n"


@dataclass
class ToOther:
    """The command that writes one maker's checkpoint; see commands.Command.

    Attributes:
        maker: its name in svdq_trt.interop. out: metavar and help of --out.
    """

    NAME: str
    HELP: str
    EPILOG: str
    maker: str
    out: tuple[str, str]

    def add_options(self, p: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        p.add_argument("artifact", type=Path, help="svdq.safetensors, or an engine folder that holds one")
        p.add_argument("--out", type=Path, required=True, metavar=self.out[0], help=self.out[1])

    def run(self, args: argparse.Namespace) -> int:
        """Write the checkpoint; returns the exit code. Raises SvdqError for bad input."""
        from svdq_trt.interop import export_checkpoint

        report = export_checkpoint(args.artifact, args.out, self.maker)
        say(f"{args.out}: {report.format} rank {report.rank} for {report.kind}, {report.nodes} nodes")
        for note in report.notes:
            say(f"    {note}")
        return EXIT_OK


_FILE = ("FILE", "the .safetensors file to write")
to_nunchaku = ToOther(
    "to-nunchaku",
    "svdq.safetensors -> a checkpoint that nunchaku reads",
    "examples:\n"
    "  svdq-trt to-nunchaku engines/flux1-dev-sm_89 --out svdq-int4_r32-flux.1-dev.safetensors\n"
    f"Formats int4 and nvfp4. {_EXACT}",
    "nunchaku",
    _FILE,
)
to_lite = ToOther(
    "to-lite",
    "svdq.safetensors -> a folder that diffusers loads (Nunchaku Lite)",
    "examples:\n"
    "  svdq-trt to-lite engines/flux1-dev-sm_89 --out flux.1-dev-int4\n"
    'and then FluxTransformer2DModel.from_pretrained("flux.1-dev-int4"), on a GPU that Nunchaku Lite has kernels for.\n'
    f"Formats int4 and nvfp4. {_EXACT}",
    "nunchaku-lite",
    ("FOLDER", "the folder to write, with config.json"),
)
to_comfy = ToOther(
    "to-comfy",
    "svdq.safetensors -> a checkpoint in comfy-kitchen's layout",
    "examples:\n"
    "  svdq-trt to-comfy engines/flux1-dev-sm_89 --out flux.1-dev-int4-kitchen.safetensors\n"
    f"Format int4. Layers have diffusers' names. {_EXACT}",
    "comfy-kitchen",
    _FILE,
)
