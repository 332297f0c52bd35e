"""The measurements behind `fluxwatchd bench`."""
