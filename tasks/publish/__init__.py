"""Published runs and promoted models: what goes into the bucket and how people browse it."""
