"""The data's way, from captioned URLs to a report; `pipeline.flow` tells it in order."""
