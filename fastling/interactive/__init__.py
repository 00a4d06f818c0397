"""Builds interactive-translation dialogues from parallel text: by rules, or with a model that writes."""
