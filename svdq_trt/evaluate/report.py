"""From an engine folder to report.html and its pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from svdq_trt.artifact import manifest, svdq_file
from svdq_trt.artifact.allocation import describe
from svdq_trt.artifact.calibration import Calibration
from svdq_trt.artifact.held import Held
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, own_folder, refuse_link
from svdq_trt.base.progress import Progress
from svdq_trt.checkpoint import identify_weights, open_weights
from svdq_trt.evaluate import figures
from svdq_trt.evaluate.analyse import NodeReport, analyse, error_split, representative
from svdq_trt.evaluate.page import render
from svdq_trt.lora.apply import without_loras
from svdq_trt.models import get_model, read_members
from svdq_trt.nn.restore import restore_model

PAGE = "report.html"
PICTURES = "report"


def write_report(engine: Path, layers: int, progress: Progress) -> Path:
    """Write `engine`/report.html, self-contained, and its pictures as PNG in `engine`/report/.

    Args:
        engine: folder that a build wrote. Its calibration is read from the shared folder beside it, and every node's
            original weights from the build's own source: each node's error is split by cause.
        layers: how many nodes get a closer look (spectra, a rank sweep); with 0, errors are not split either, and
            only the engine's folder is read.

    Raises:
        ArtifactError: no manifest, no quantized model, or no calibration of these nodes any more; or report/ is
            a link.
    """
    refuse_link(engine / PICTURES)
    progress(0, 1, "reading svdq.safetensors")
    data = manifest.verify(engine, parts=("artifact",))
    artifact = "svdq.safetensors" if data.artifact is None else Path(data.artifact.file).name
    loaded = svdq_file.load(engine / artifact)
    quantized = without_loras(loaded)  # a LoRA is not an error of the quantizer
    chosen = representative(quantized.nodes, layers)
    reports, splits = _closer(engine, data, loaded, quantized, chosen, progress) if chosen else ([], {})
    kept = len(data.allocation.kept) if data.allocation else 0
    progress(0, 1, "drawing")
    pictures = {
        "layers": figures.layers(loaded.nodes),
        "bytes": figures.sizes(_parts(loaded), data.fp16_weight_bytes),
    }
    if any(node.trials for node in loaded.nodes):
        pictures["alphas"] = figures.alphas(loaded.nodes)
    if kept or len({node.rank for node in loaded.nodes}) > 1:
        pictures["ranks"] = figures.ranks(loaded.nodes, kept)
    if reports:
        pictures |= {"split": figures.split(quantized.nodes, splits), "rank_sweep": figures.rank_sweep(reports)}
    closer = [(report, figures.one_layer(report)) for report in reports]
    folder = own_folder(engine, PICTURES)
    named = pictures | {re.sub(r"[^\w.-]", "_", r.node.name): png for r, png in closer}
    for old in folder.glob("*.png"):
        if old.stem not in named:  # from an earlier report, which looked closer at other nodes
            old.unlink()
    for name, png in named.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    ranks = f"rank{'s up to' if data.allocation else ''} {data.rank}"
    title = f"{data.model} for {data.arch}: {data.format}, {ranks}"
    chosen_ranks = describe(data.allocation) if data.allocation else ""
    page = render(title, _facts(data), pictures, closer, loaded.nodes, data.kept_16bit, splits, chosen_ranks)
    with atomic_write(engine / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return engine / PAGE


def _closer(
    engine: Path,
    data: Manifest,
    whole: svdq_file.Artifact,
    loaded: svdq_file.Artifact,
    chosen: list[svdq_file.Node],
    progress: Progress,
) -> tuple[list[NodeReport], dict[str, dict[str, float]]]:
    """Figures and pictures of the chosen nodes, and every node's error split; `loaded` is `whole` without LoRAs."""
    spec, options = get_model(data.source), data.options
    if options.quantized:
        raise ArtifactError(str(engine), "a model that came quantized, so there was no calibration", "--layers 0")
    calib = engine.resolve().parent / f"{spec.name}-shared" / "calib.safetensors"
    if not calib.is_file():
        raise ArtifactError(
            str(calib),
            "missing",
            "the calibration that the build left beside its engines",
            "Run the build again, or use --layers 0.",
        )
    progress(0, 1, "opening the original weights")
    _check_sources(engine, data, calib)
    restore_model(whole, spec)  # its nodes are the model's
    groups = {g.node: g for g in spec.groups(spec.build(), options.skip)}
    if odd := next((node.name for node in loaded.nodes if node.name not in groups), ""):
        raise ArtifactError(
            str(engine), f"node {odd}, which the manifest's --skip leaves out", "one model", "--layers 0"
        )
    calibration = Calibration.load(calib, [group.node for group in groups.values()])
    weights = open_weights(spec, options.checkpoint, options.random_weights)
    reports, splits = {}, {}
    for index, node in enumerate(loaded.nodes):
        progress(index, len(loaded.nodes), node.name)
        w = torch.cat(read_members(groups[node.name], [False] * len(node.members), weights.read)[0])
        x = calibration.x[node.name]
        if node in chosen:
            reports[node.name] = analyse(node, loaded.tensors, w, x, calibration.amax[node.name])
            splits[node.name] = reports[node.name].split
        else:
            splits[node.name] = error_split(node, loaded.tensors, w, x)
    return [reports[node.name] for node in chosen], splits


def _check_sources(engine: Path, data: Manifest, calib: Path) -> None:
    """Check that calibration and weights are those of this engine; earlier releases did not record which they were.

    Raises:
        ArtifactError: another build has written the calibration since, or the checkpoint has changed.
    """
    inputs, weights = (data.origin.calibration, data.origin.weights) if data.origin else (None, None)
    if inputs is not None:
        if not inputs.collected:
            want = "the calibration that this engine was made from"
            raise ArtifactError(str(calib), "another build's", want, "Build it again with --force, or use --layers 0.")
        Held(calib.name, None, inputs.collected).check(
            calib.parent, "Run this engine's build again, or use --layers 0."
        )
    if weights is not None:
        spec, options = get_model(data.source), data.options
        if identify_weights(spec, options.checkpoint, options.random_weights).digest != weights.digest:
            got = f"weights that have changed since the engine was built ({weights.source})"
            raise ArtifactError(str(engine), got, "those it was built from", "Build it again, or use --layers 0.")


def _parts(loaded: svdq_file.Artifact) -> dict[str, int]:
    """Bytes of the quantized model by kind."""
    own = {f"{node.name}.": node for node in loaded.nodes}
    parts = dict.fromkeys(("4-bit codes", "scales", "low-rank branch", "rest of the nodes", "kept in 16 bit"), 0)
    for name, tensor in loaded.tensors.items():
        parts[_part(name, own)] += _bytes(tensor)
    return parts


def _part(name: str, own: Mapping[str, svdq_file.Node]) -> str:
    stem, _, leaf = name.rpartition(".")
    if f"{stem}." not in own:
        return "kept in 16 bit"
    table = {
        "qweight": "4-bit codes",
        "wscale": "scales",
        "wscale2": "scales",
        "lora_down": "low-rank branch",
        "lora_up": "low-rank branch",
    }
    return table.get(leaf, "rest of the nodes")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _facts(data: Manifest) -> list[tuple[str, str]]:
    """The overview's lines."""
    fp16, ours = data.fp16_weight_bytes, data.quantized_weight_bytes
    accuracy, options = data.accuracy, data.options
    share = f" ({100 * ours / fp16:.0f} %)" if fp16 else ""
    facts = [
        ("weights", f"{ours / 1e9:.3f} GB of {fp16 / 1e9:.3f} GB in 16 bit{share}"),
        ("from", options.weights),
        ("preset", options.preset),
        ("calibration", options.inputs),
        ("nodes", f"{len({q.node for q in data.quantized})}, from {len(data.quantized)} linears"),
    ]
    facts += [
        ("LoRA", f"{lora.file} at {lora.strength:g}; not in the figures of the nodes' errors") for lora in data.loras
    ]
    if accuracy:
        if accuracy.mean_layer_sqnr_db is not None:  # unknown for an imported model
            facts.append(("layers", f"{accuracy.mean_layer_sqnr_db:.1f} dB, mean"))
        for out in accuracy.outputs:
            spread = f" ({out.spread})" if out.spread else ""
            facts.append((f"output {out.name}", f"{out.sqnr_db:.1f} dB against {accuracy.against}{spread}"))
    return facts
