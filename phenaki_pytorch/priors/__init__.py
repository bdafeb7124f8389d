"""Second stages over ids: how they learn and how they sample."""
