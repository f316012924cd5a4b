"""The build: stages in processes of their own, reusable artifacts, one manifest per engine."""
