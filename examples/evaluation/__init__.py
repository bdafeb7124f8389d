"""How models and tokenizers are measured."""
