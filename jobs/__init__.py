"""Entry points: choose a recipe, call the pipeline, exit. Always ``python -m jobs.<name> <recipe> [flags]``."""
