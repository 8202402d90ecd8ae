"""Image quality metrics, one name per variant."""
