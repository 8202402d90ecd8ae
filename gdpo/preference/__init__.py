"""Group preferences: rollouts, the objective, the fine-tuning loop."""
