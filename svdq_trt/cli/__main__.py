"""``python -m svdq_trt.cli``."""

import sys

from svdq_trt.cli.main import main

sys.exit(main())
