"""The parts of a training run; `fastling/train.py` is the loop that joins them."""
