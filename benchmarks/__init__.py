"""Every performance claim of the project, as numbers measured side by side; `python -m benchmarks.run` measures them all."""
