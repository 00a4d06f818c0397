"""A trained model with its tokenizer and template, shared by chat and evaluation."""
