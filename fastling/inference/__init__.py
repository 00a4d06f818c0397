"""A trained model and its words: what chat and evaluation share."""
