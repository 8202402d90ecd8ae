"""RealSR-R1 (VLCoT-GRPO), the second system: words and images of a chain of thought as tokens."""
