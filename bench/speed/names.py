"""The models that are measured, by name: known without loading what makes them."""

DEMO = "demo"
MODELS = (DEMO, "15M", "90M", "tiny")
"""The demo's, and random ones; `tiny` is for tests."""
OWN = "own"
PEERS = ("generate", "generate_batch", "vllm", OWN)
"""Who ours is measured beside; `own` are votes that ours samples, beside expected scores."""
