"""The reward: how much of an image is detail, and the attribute-aware mix of metrics."""
