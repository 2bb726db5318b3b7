"""Time and memory beside stock pipelines."""
