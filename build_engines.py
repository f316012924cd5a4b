#!/usr/bin/env python3
"""Build engines: ``python build_engines.py --model sdxl --arch sm_89``. The same as ``svdq-trt build``."""

import sys

from svdq_trt.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
