"""Tables for people: what was built, and what can be."""

from __future__ import annotations

from collections.abc import Sequence

from svdq_trt.artifact.allocation import describe
from svdq_trt.artifact.manifest import Manifest, OutputEntry
from svdq_trt.build.console import Console
from svdq_trt.build.run import Built
from svdq_trt.build.tables import print_table
from svdq_trt.contract.archs import AUTO_FORMAT, KERNELS
from svdq_trt.models import BUILT_TWINS, MODELS, ModelSpec

_GB = 1e9


def print_summary(built: Sequence[Built], console: Console | None = None) -> None:
    """One row per engine, on stdout unless `console` is given."""
    rows = []
    for one in built:
        m = one.manifest
        sqnr = _lowest(m) or "not checked"
        nodes = {q.node: q.sqnr_db for q in m.quantized if q.sqnr_db is not None}
        mean = f"{sum(nodes.values()) / len(nodes):.1f} dB" if nodes else "unknown" if m.quantized else "none"
        lowest = min((q.rank for q in m.quantized), default=0)
        rank = str(m.rank) if m.allocation is None else f"{lowest} to {m.rank}"
        ours, original = (f"{n / _GB:.3f} GB" for n in (m.quantized_weight_bytes, m.fp16_weight_bytes))
        seconds = f"{sum(m.timings_s.values()):.0f} s"
        rows.append((one.engine.folder.name, m.format, rank, _plan(m), ours, original, mean, sqnr, seconds))
    console = console or Console()
    columns = ("engine", "format", "rank", "plan", "weights", "in FP16", "layers", "output", "stages")
    print_table(console, columns, rows, left=("engine", "format"))
    console.print(
        "layers, output: SQNR against FP16, mean over layers and lowest over outputs. "
        "stages: the sum of their times, shared ones counted for each engine.",
        style="dim",
        soft_wrap=True,
    )
    for one in built:
        m = one.manifest
        kept = len(m.kept_16bit)
        reasons = sorted({k.reason for k in m.kept_16bit})
        peak = max(m.peak_rss_bytes.values()) / _GB
        console.print(
            f"{one.engine.folder.name}: {len(m.quantized)} linears quantized in "
            f"{len({q.node for q in m.quantized})} nodes; {kept} layers kept in 16 bit; "
            f"peak memory {peak:.1f} GB. Details: {one.engine.folder / 'manifest.json'}",
            soft_wrap=True,
        )
        if m.allocation is not None:
            console.print(f"    --rank auto: {describe(m.allocation)}", style="dim", soft_wrap=True)
        for out in _outputs(m):
            kind = "recorded" if m.accuracy is not None and m.accuracy.recorded else "synthetic"
            line = f"    {out.name}: {out.sqnr_db:.1f} dB over {kind} inputs together ({out.spread})"
            console.print(line, style="dim", soft_wrap=True)
        for lora in m.loras:
            notes = [f"{len(lora.quantized_layers)} quantized and {len(lora.dense_layers)} 16-bit layers"]
            if lora.text_encoder_tensors:
                notes.append(f"{lora.text_encoder_tensors} text encoder tensors are the pipeline's business")
            if lora.left_out:
                notes.append(f"{len(lora.left_out)} layers left out (--allow-partial)")
            if lora.cut:
                lost = max(one.error for one in lora.cut)
                notes.append(f"up to {100 * lost:.1f} % of it lost in {len(lora.cut)} nodes, as their rank is limited")
            console.print(f"    LoRA {lora.file} at {lora.strength:g}: {'; '.join(notes)}", style="dim", soft_wrap=True)
        if m.lora_slots is not None:
            console.print(
                f"    LoRA slots: rank {m.lora_slots.rank} a linear, filled by Session.set_lora",
                style="dim",
                soft_wrap=True,
            )
        for part in one.parts:
            said = [f"plan {_plan(part)}"]
            if sqnr := _lowest(part):
                said.append(f"output {sqnr}")
            if part.quantized and part.kept_16bit:
                said.append(f"{len(part.kept_16bit)} layers kept in 16 bit")
            console.print(f"    {part.model}, {part.format}: {', '.join(said)}", style="dim", soft_wrap=True)
        for reason in reasons:
            count = sum(k.reason == reason for k in m.kept_16bit)
            console.print(f"    {count:4d}  {reason}", style="dim", soft_wrap=True)


def _plan(m: Manifest) -> str:
    """The plan's size."""
    return "missing" if m.plan is None else f"{m.plan.bytes / _GB:.3f} GB"


def _outputs(m: Manifest) -> Sequence[OutputEntry]:
    """What the check says of each output; nothing where there was none."""
    return () if m.accuracy is None else m.accuracy.outputs


def _lowest(m: Manifest) -> str:
    """The lowest SQNR of an output; "" where nothing was checked."""
    outputs = _outputs(m)
    return f"{min(o.sqnr_db for o in outputs):.1f} dB" if outputs else ""


def print_models(console: Console | None = None) -> None:
    """Print the support table, from the data that the builder uses."""
    console = console or Console()
    columns = ("model", "what", "parameters", "in", *(f"sm_{a} {f.name}" for a, (f, _) in AUTO_FORMAT.items()))
    rows = []
    for spec in MODELS.values():
        size = f"{spec.parameters / 1e9:.2f} G" if spec.parameters > 1e8 else f"{spec.parameters / 1e6:.1f} M"
        states = [support(spec, arch) for arch in AUTO_FORMAT]
        rows.append((spec.name, spec.title, size, spec.act_dtype.replace("float", "f"), *states))
    print_table(console, columns, rows, left={*columns} - {"parameters"})
    console.print(
        "built: at full size, plan and all. CI: this model is built and compared with its 16-bit outputs in every test "
        "run. twin: so is a small model of its structure. -: the same code, never run for it. "
        "No column says that the engine has run on that GPU: see the README, Limits.",
        style="dim",
        soft_wrap=True,
    )
    for spec in MODELS.values():
        weights = spec.hub_id or "--random-weights or --checkpoint"
        twin = f"; its twin is {spec.twin}" if spec.twin else ""
        option = "; also --controlnet" if spec.residuals else ""
        console.print(f"{spec.name}: {weights}{twin}{option}", style="dim", soft_wrap=True)
    columns = ("arch", "formats with kernels", "auto", "why")
    chosen = [(arch, formats, *AUTO_FORMAT[arch]) for arch, formats in KERNELS.items()]
    rows = [(f"sm_{arch}", ", ".join(formats), fmt.name, why) for arch, formats, fmt, why in chosen]
    print_table(console, columns, rows, left=columns)


def support(spec: ModelSpec, arch: int) -> str:
    """One cell of the support table: how far this model has been built for this arch, in its auto format."""
    if arch in spec.built:
        return "built"
    if (spec.twin or spec.name) in BUILT_TWINS.get(arch, ()):
        return "twin" if spec.twin else "CI"
    return "-"
