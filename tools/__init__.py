"""The command ``bstk`` and the demo: what people run."""
