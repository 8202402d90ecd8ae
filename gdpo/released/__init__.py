"""The authors' released files: read without pickle, converted to our model folders and back."""
