"""RAM and DAPE: tags of an image for its prompt."""
