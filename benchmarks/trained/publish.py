"""Write the results into the documentation: tables between markers of docs/evidence.md, sheets and JSON beside it.

A marker pair is `<!-- NAME -->` and `<!-- end -->`, each alone on its line; the text between them is replaced.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from trained.sheet import PROGRAM, STEP_CACHE, TILES, gallery_table, program_table, step_cache_table, table, tiles_table

ROOT = Path(__file__).resolve().parents[2]
PAGE, PICTURES, RESULTS = Path("docs/evidence.md"), Path("docs/evidence"), Path("benchmarks/results")


def publish(out: Path, models: list[str], root: Path = ROOT) -> int:
    """Publish the results of trained_models.py and modelopt_compare.py (modelopt.json) in `out`; returns 1 if none."""
    page = (root / PAGE).read_text()
    (root / PICTURES).mkdir(exist_ok=True)
    done = []
    for name in models:
        if (out / f"{name}.json").exists():
            page = replaced(page, name, _model(json.loads((out / f"{name}.json").read_text())))
            shutil.copy(out / f"{name}.png", root / PICTURES / f"{name}.png")
            shutil.copy(out / f"{name}.json", root / RESULTS / f"trained_{name}.json")
            done.append(name)
    if (out / "modelopt.json").exists():
        comparison = _merged(root / RESULTS / "modelopt.json", json.loads((out / "modelopt.json").read_text()))
        page = replaced(page, "modelopt", _modelopt(comparison))
        (root / RESULTS / "modelopt.json").write_text(_lines(comparison))
        done.append("modelopt")
    (root / PAGE).write_text(page)
    print(f"{root / PAGE}: {', '.join(done) or 'nothing to publish'}")
    return 0 if done else 1


def publish_pipelines(out: Path, names: list[str], root: Path = ROOT) -> int:
    """Publish the results of trained_pipeline.py in `out`; returns 1 if there are none."""
    page, done = (root / PAGE).read_text(), []
    (root / PICTURES).mkdir(exist_ok=True)
    kinds = {"": _pipeline, STEP_CACHE: _step_cache, PROGRAM: _program}
    texts = {name + suffix: text for suffix, text in kinds.items() for name in names} | {TILES: _tiles}
    for name, text in texts.items():
        if (out / f"{name}.json").exists():
            page = replaced(page, name, text(json.loads((out / f"{name}.json").read_text())))
            shutil.copy(out / f"{name}.png", root / PICTURES / f"{name}.png")
            shutil.copy(out / f"{name}.json", root / RESULTS / f"trained_{name}.json")
            done.append(name)
    (root / PAGE).write_text(page)
    print(f"{root / PAGE}: {', '.join(done) or 'nothing to publish'}")
    return 0 if done else 1


def replaced(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of `name`; SystemExit where the page has none."""
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->\n)"
    page, count = re.subn(pattern, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{PAGE}: {count} places for '{name}', want one. Add <!-- {name} --> and <!-- end -->.")
    return page


def _model(results: dict[str, Any]) -> str:
    name, trained = results["model"], results["training"]
    return (
        f"{results['parameters'] / 1e6:.1f} M parameters, {trained['steps']} training steps of {trained['batch']} "
        f"pictures in {trained['seconds']:.0f} s (loss {trained['loss']:.3f}) on {results['device']}; linears "
        f"in {results['linears']}.\n\nOf the {results['pictures']} pictures of the 16-bit model, "
        f"{100 * results['fp16']['right_class']:.0f} % show the class that was asked for.\n\n"
        f"![{name}: pictures of every variant](evidence/{name}.png)\n\n{table(results)}"
    )


def _pipeline(results: dict[str, Any]) -> str:
    name, (vae, pipeline, lora) = results["name"], results["training"].values()
    return (
        f"{pipeline['bytes'] / 1e6:.1f} MB in 16 bit. Training on {results['device']}: {pipeline['steps']} steps of "
        f"{pipeline['batch']} scenes in {pipeline['seconds']:.0f} s (loss {pipeline['loss']:.3f}); autoencoder "
        f"{vae['steps']} steps in {vae['seconds']:.0f} s ({vae['psnr_db']:.1f} dB), LoRA {lora['steps']} in "
        f"{lora['seconds']:.0f} s. Of the {len(results['prompts'])} scenes as they are drawn, "
        f"{100 * results['drawn']['whole']:.0f} % are measured as prompted.\n\n"
        f"![{name}: pictures of every way](evidence/{name}.png)\n\n{gallery_table(results)}"
    )


def _step_cache(results: dict[str, Any]) -> str:
    name = results["name"]
    return (
        f"{len(results['prompts'])} pictures, made one by one in {results['steps']} steps on {results['device']}.\n\n"
        f"![{name}: pictures at every threshold](evidence/{name}.png)\n\n{step_cache_table(results)}"
    )


def _program(results: dict[str, Any]) -> str:
    name = results["name"]
    return (
        f"{len(results['prompts'])} pictures in {results['steps']} steps on {results['device']}.\n\n"
        f"![{name}: pictures of Python and C++](evidence/{name}.png)\n\n{program_table(results)}"
    )


def _tiles(results: dict[str, Any]) -> str:
    name = results["name"]
    return (
        f"{len(results['prompts'])} pictures of {results['ways'][0]['section']} on {results['device']}.\n\n"
        f"![{name}: pictures whole and by tiles](evidence/{name}.png)\n\n{tiles_table(results)}"
    )


def _merged(before: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The published results, with new ones replacing those of the same layers, format and rank."""
    old = json.loads(before.read_text()) if before.exists() else new
    if old["rank"] != new["rank"]:
        return new
    results = {(r["source"], r["format"]): r for r in (*old["results"], *new["results"])}
    order = sorted(results, key=lambda key: (not key[0].startswith("trained"), key))
    return {**new, "results": [results[key] for key in order]}


def _lines(comparison: dict[str, Any]) -> str:
    """JSON with one layer per line."""
    text = json.dumps(comparison, indent=1)
    return re.sub(r"\{([^{}]*)\}", lambda m: "{" + " ".join(m[1].split()) + "}", text) + "\n"


def _modelopt(comparison: dict[str, Any]) -> str:
    head = "| layers | format | ours, `fast` | ours, `default` | ModelOpt | `default` is better on |"
    lines = [head, "|" + "---|" * 6]
    for r in comparison["results"]:
        mean, count = r["mean_db"], len(r["layers"])
        lines.append(
            f"| {r['source']} | `{r['format']}` | {mean['fast']:.1f} | **{mean['default']:.1f}** | "
            f"{mean['modelopt']:.1f} | {r['default_better']} of {count} |"
        )
    return "\n".join(lines)
