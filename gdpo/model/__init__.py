"""The networks: schedule, adapters, the one-step model, checkpoints."""
