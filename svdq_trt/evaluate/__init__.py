"""How good a result is, in figures and pictures: the check, ``svdq-trt diff`` and ``svdq-trt report``."""
