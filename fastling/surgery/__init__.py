"""Work on finished weights, tensor by tensor: differences, longer vocabularies, merged models."""
