"""The build: stages in processes of their own, artifacts that are reused, one manifest."""
