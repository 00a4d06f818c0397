"""Builds interactive-translation dialogues from parallel text: by rules, or by a model that writes."""
