"""The part of manifest.json that says what an engine was made from, by what, and when."""

from __future__ import annotations

from typing import Annotated

from svdq_trt.artifact.entry import DIGEST, Entry, FileEntry, says


class WeightsEntry(Entry, frozen=True):
    """The 16-bit weights."""

    source: Annotated[str, says("--checkpoint as given, the hub id, or the seed")]
    digest: Annotated[str, says("of config and files, or of the seed: the same weights have the same")]
    files: Annotated[tuple[FileEntry, ...], says("what was read, in this order; none for made-up weights")] = ()
    commit: Annotated[str, says("of a hub id's snapshot; empty for anything else")] = ""


class InputsEntry(Entry, frozen=True):
    """The inputs that the quantizer was calibrated on."""

    source: Annotated[str, says("the file, the pipeline, or that they are synthetic")]
    digest: Annotated[str, says("of the file, or of pipeline, prompts and settings; empty for synthetic ones")] = ""
    collected: Annotated[
        str, says("digest of calib.safetensors in the shared folder, which report reads", **DIGEST)
    ] = ""


class OriginEntry(Entry, frozen=True, kw_only=True):
    """What the engine was made from, by what, and when."""

    date: Annotated[str, says("when this manifest was first written, UTC: 2026-11-29T18:00:00Z")]
    platform: Annotated[str, says("the machine: Linux-6.8-x86_64-with-glibc2.39")]
    code: Annotated[str, says("digest of svdq-trt's own source files, which tells two states of one version apart")]
    weights: Annotated[WeightsEntry | None, says("the 16-bit weights; null where nothing read them")] = None
    quantized: Annotated[str, says("digest of --quantized; empty without it")] = ""
    calibration: Annotated[InputsEntry | None, says("the calibration inputs; null with --quantized")] = None
    sensitivity: Annotated[str, says("digest of --sensitivity; empty without it", **DIGEST)] = ""
