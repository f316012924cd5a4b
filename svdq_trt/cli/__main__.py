"""``python -m svdq_trt.cli``."""

import sys

from svdq_trt.base.child import forget_current_folder
from svdq_trt.cli.main import main

forget_current_folder()
sys.exit(main())
