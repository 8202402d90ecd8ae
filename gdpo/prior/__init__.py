"""The tiny Stable-Diffusion-shaped prior that ships in assets/tiny-sd."""
