"""What a picture is asked for with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from svdq_trt.base.errors import UsageError


@dataclass(frozen=True)
class Request:
    """What is asked for; None is the pipeline's own default, of sizes what the denoiser's engine is tuned for.

    Attributes:
        prompt, negative: the text, and what to keep away from. steps: of denoising. guidance: its scale.
        seed: of the first picture's noise; the next one's is one more. width, height: pixels. batch: pictures.
        image: file of a picture to start from. strength: share of the steps by which it is changed.
        mask: file of a picture that is white where `image` is painted anew, and black where it stays.
    """

    prompt: str
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    width: int | None = None
    height: int | None = None
    batch: int = 1
    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if value is not None and value < 1:
                raise UsageError(name, str(value), "at least 1")
        if not 0 <= self.seed < 1 << 62:
            raise UsageError("seed", str(self.seed), "0 to 2^62")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise UsageError("guidance", str(self.guidance), "a finite number")
        for name, text in (("prompt", self.prompt), ("negative", self.negative)):
            try:
                (text or "").encode()
            except UnicodeEncodeError:  # bytes of a command line that are none
                raise UsageError(name, "bytes that are not UTF-8", "text in UTF-8") from None
        for name in ("strength", "mask"):
            if getattr(self, name) is not None and self.image is None:
                raise UsageError(name, "given alone", "an image with it")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UsageError("strength", str(self.strength), "above 0, at most 1")

    @property
    def common(self) -> Request:
        """What is equal in requests that can run together: they differ in prompts and seed."""
        return replace(self, prompt="", negative=self.negative and "", seed=0)  # an absent one is not an empty one
