"""matplotlib set up for our pictures: no window, the same everywhere, and names drawn as they are.

matplotlib reads a ``matplotlibrc`` in the current folder, which is not to be trusted: its settings, LaTeX among them,
are reset to the defaults. A dollar sign in a name starts no formula.
"""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

matplotlib.rcdefaults()
matplotlib.rcParams["text.parse_math"] = False

__all__ = ["plt"]
