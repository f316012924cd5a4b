"""The quality of a result in figures and pictures: the check, ``svdq-trt diff`` and ``svdq-trt report``."""
