"""Write docs/manifest.md: the meaning of every field of manifest.json.

    python tools/gen_manifest.py            # write
    python tools/gen_manifest.py --check    # exit 1 when the file differs

The source is svdq_trt/artifact/manifest.py. Runs from any folder and needs only msgspec.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from svdq_trt.artifact.entry import Entry  # noqa: E402
from svdq_trt.artifact.manifest import Manifest  # noqa: E402
from svdq_trt.artifact.manifest_fields import fields  # noqa: E402

PAGE = ROOT / "docs" / "manifest.md"
_INTRODUCTION = """\
# manifest.json

Every engine folder has one; `svdq-trt verify FOLDER` checks the folder's files against it. In Python,
`Session.manifest` and `svdq_trt.artifact.manifest.read(folder)` are a `Manifest`, whose attributes have these names,
`K` and `N` in lower case. A part that an engine lacks is `{}` in the file and `None` in Python.

This page is written by tools/gen_manifest.py.
"""


def render() -> str:
    """Render the whole page: a table for each class, the manifest's own first."""
    todo: list[type[Entry]] = [Manifest]
    text = [_INTRODUCTION]
    for entry in todo:  # grows by the entries that each one holds
        text.append(f"## {entry.__name__}\n\n{str(entry.__doc__).replace('``', '`')}\n\n| field | meaning |\n|---|---|")
        for name, meaning, parts in fields(entry):
            links = "".join(f" ([{part.__name__}](#{part.__name__.lower()}))" for part in parts)
            text.append(f"| `{name}` | {meaning}{links} |")
            todo += [part for part in parts if part not in todo]
        text.append("")
    return "\n".join(text)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when the page is stale")
    args = parser.parse_args(argv)
    if not args.check:
        PAGE.write_text(render(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != render():
        print(
            "docs/manifest.md: stale, want the fields of Manifest. Run python tools/gen_manifest.py.", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
