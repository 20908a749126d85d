"""What a model costs, computed from its configuration alone and without torch, and the numbers that reports print."""
