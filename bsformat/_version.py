"""The version of this distribution, read by the build and written into every packed file."""

__version__ = "0.1.0"
