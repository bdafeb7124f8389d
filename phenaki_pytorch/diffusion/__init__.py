"""Models of continuous latents, which remove noise step by step."""
