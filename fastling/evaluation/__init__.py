"""Evaluations, a file for each kind: it reads outputs or has a model make them, and returns a `Result`."""
