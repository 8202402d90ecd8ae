"""Super-resolution of a photograph of any size: the inference pipeline, and models of any kind."""
