"""Readers: one kind of source each, made into the rows of `pipeline.schema`."""
