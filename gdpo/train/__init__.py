"""What every training loop shares: the step loop with checkpoints, and the processes that share a
step.
"""
