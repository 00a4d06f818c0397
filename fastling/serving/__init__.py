"""Talking to a model: in the terminal, over an OpenAI-compatible endpoint, and on a page."""
