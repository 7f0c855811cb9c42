"""The speed benchmark: the engine `hf` beside what a user would pick instead. See `cli.py`."""
