"""``python -m svdq_trt.cli``; with ``-P`` nothing at all comes from the current folder."""

import sys

from svdq_trt.cli.main import main

sys.exit(main())
