"""What `selfreward eval` does beside reading annotations: it generates, compares, ranks and grades, each as stages of a run."""
