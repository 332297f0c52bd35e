"""TOML -> frozen Settings, Folder, Profile; every problem reported at once."""

from fluxwatchd.config.layers import Explained, Layer, Layers, Origin
from fluxwatchd.config.load import find, load, parse, parse_assignments, search_path, state_folder
from fluxwatchd.config.schema import (
    DaemonSettings,
    EngineSettings,
    Folder,
    Lora,
    Profile,
)
from fluxwatchd.config.settings import Settings

__all__ = [
    "DaemonSettings",
    "EngineSettings",
    "Explained",
    "Folder",
    "Layer",
    "Layers",
    "Lora",
    "Origin",
    "Profile",
    "Settings",
    "find",
    "load",
    "parse",
    "parse_assignments",
    "search_path",
    "state_folder",
]
