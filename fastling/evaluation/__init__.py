"""Evaluations, one file per kind: each reads outputs or generates them, and returns a `Result`."""
