"""The layers that first and second stages are made of."""
