"""What `generate.py` makes the conformance vectors with; it shares no code with any reader or writer."""
