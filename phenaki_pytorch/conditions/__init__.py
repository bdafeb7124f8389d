"""Conditions of a generation: texts and their embeddings."""
