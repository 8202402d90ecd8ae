"""Picture files: what they hold besides 8-bit RGB (colour profile, alpha, 16 bits, EXIF)."""
