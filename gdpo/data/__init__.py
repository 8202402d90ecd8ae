"""From photographs to LR-HR pairs in shards, and to the patches that are worth a rollout."""
