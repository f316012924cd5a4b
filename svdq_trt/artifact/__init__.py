"""The files that pass between the stages, and their checks; no algorithm is imported here."""
