"""How the stages are trained."""
