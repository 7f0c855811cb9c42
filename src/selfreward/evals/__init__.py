"""What a model is worth: its answers and its judging, each figure with n and a 95 % interval."""
