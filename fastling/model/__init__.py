"""The network (llama), its files in and out (huggingface, meta_format), and generation."""
