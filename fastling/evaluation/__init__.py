"""Evaluations, a file a kind: each reads outputs or has a model make them, and returns a `Result`."""
