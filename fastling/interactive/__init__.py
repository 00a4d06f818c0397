"""Builds interactive-translation dialogues from parallel text, by rules: true by construction."""
