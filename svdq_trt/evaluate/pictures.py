"""matplotlib as the project's pictures want it: no window, the same everywhere, and names drawn as they are.

matplotlib reads a ``matplotlibrc`` of the current folder, which may be anyone's: its settings, LaTeX among them, are
put back to the defaults. A dollar sign in a name is no formula.
"""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

matplotlib.rcdefaults()
matplotlib.rcParams["text.parse_math"] = False

__all__ = ["plt"]
