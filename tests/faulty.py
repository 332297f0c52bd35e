"""A daemon whose device breaks: ``faulty.py STAGE FILE ... fluxwatchd ARGUMENTS`` runs the command.

Once FILE exists, the next piece of work of that stage raises what CUDA raises for a broken device.
"""

from __future__ import annotations

import sys
from pathlib import Path

PLACES = {
    "text": ("fluxwatchd.engine.encoders", "load_t5"),
    "encode": ("fluxwatchd.engine.vae", "Vae.encode"),
    "dino": ("fluxwatchd.engine.dino", "DinoEncoder.features"),
    "denoise": ("fluxwatchd.engine.flux", "velocity"),
    "guide": ("fluxwatchd.engine.dino", "DinoEncoder.layer_features"),
    "decode": ("fluxwatchd.engine.vae", "Vae.decode"),
}
"""Where each stage of the engine does its work."""


def break_at(stage, fails):
    """Have the work of ``stage`` call ``fails()`` first, which raises or does not."""
    import importlib

    module, path = PLACES[stage]
    owner = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    whole = getattr(owner, name)

    def work(*args, **kwargs):
        fails()
        return whole(*args, **kwargs)

    setattr(owner, name, work)
    return lambda: setattr(owner, name, whole)


def main():
    """Arm the fault and run the command."""
    import torch

    stage, armed = sys.argv[1], Path(sys.argv[2])
    sys.argv = sys.argv[sys.argv.index("fluxwatchd") :]

    def fails():
        if armed.exists():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    break_at(stage, fails)
    from fluxwatchd.cli import main as command

    command()


if __name__ == "__main__":
    main()
