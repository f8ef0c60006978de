"""Language-model research in JAX: one experiment, one file, one command."""

__version__ = "0.1.0"
