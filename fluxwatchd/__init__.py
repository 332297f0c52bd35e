"""fluxwatchd: a watch-folder upscaler with FLUX, conditioned on DINO features of the picture.

Importing this package imports neither torch nor anything else that is slow.
"""

__version__ = "0.1.0"
