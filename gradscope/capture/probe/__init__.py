"""The step-quality probe: a step replayed along the update that was made."""
