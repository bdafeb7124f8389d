"""First stages: video to latents and back, and what they are trained with."""
