"""The page of ``bstk demo``: one prompt written at two budgets, and what each of them holds."""
