"""Fuzzing of `bsformat`: a mutator that repairs digests, and what every execution must hold to."""
