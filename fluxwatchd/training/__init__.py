"""The programs that made the bundled weights, and the adapter trainer for FLUX.1."""
