"""The laboratory behind ``bstk eval``: one model, its .bstk files and its baselines, all measured alike."""
