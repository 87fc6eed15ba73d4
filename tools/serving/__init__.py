"""The server behind ``bstk serve``: OpenAI's API over a model that is resized while it runs.

`engine` makes tokens in one thread; `app` speaks HTTP in another; `service` is what both know.
"""
