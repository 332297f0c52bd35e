"""A whole configuration, read and checked, and the profile that it gives to a picture."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field

from fluxwatchd.config import layers as layering
from fluxwatchd.config.layers import Explained, Layer, Layers
from fluxwatchd.config.paths import real
from fluxwatchd.config.schema import DaemonSettings, EngineSettings, Folder, Frozen, Profile
from fluxwatchd.errors import ConfigError


class Settings(Frozen):
    """A whole configuration, read and checked. ``file`` is where it came from."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    file: Path | None = None
    daemon: DaemonSettings = Field(default_factory=DaemonSettings)
    engine: EngineSettings = EngineSettings()
    folders: tuple[Folder, ...] = ()
    layers: Layers = Layers()

    def profile_for(self, folder: Folder, relative: Path) -> Profile:
        """The profile of the picture at ``relative`` below the folder's inbox, resolved.

        Reads the files that lie in the inbox for it. Raises ConfigError where one of them is bad,
        or where values do not fit together: then this picture cannot be done.
        """
        return layering.resolve_whole(self._layers_of(folder, relative))

    def explain_profile(self, folder: Folder, relative: Path) -> dict[str, Explained]:
        """Every key of that profile, with where its value was set. Raises as profile_for."""
        return layering.explain(self._layers_of(folder, relative))

    def folder_profile(self, folder: Folder) -> Profile:
        """The folder's profile without the files that lie in its inbox. Raises ConfigError."""
        return layering.resolve_whole((*self._folder_layers(folder), self.layers.overrides))

    def named_profile(self, name: str | None = None) -> Profile:
        """The profile for pictures that lie in no inbox: defaults, [profile.NAME], overrides.

        Raises ConfigError where there is no such name.
        """
        return layering.resolve((self.layers.defaults, self._named(name), self.layers.overrides))

    def folder_at(self, path: Path) -> Folder | None:
        """The folder whose inbox is, or holds, ``path``; the innermost where two do."""
        where = real(path)
        holding = [folder for folder in self.folders if where.is_relative_to(real(folder.inbox))]
        return max(holding, key=lambda folder: len(real(folder.inbox).parts), default=None)

    def notes(self) -> tuple[str, ...]:
        """What is set for a folder but means nothing to its variant, in sentences."""
        return tuple(
            f"{folder.inbox}: {sentence}"
            for folder in self.folders
            for sentence in self.folder_profile(folder).without_effect()
        )

    def _layers_of(self, folder: Folder, relative: Path) -> tuple[Layer, ...]:
        beside = layering.side_layers(folder.inbox, relative)
        return (*self._folder_layers(folder), *beside, self.layers.overrides)

    def _folder_layers(self, folder: Folder) -> tuple[Layer, ...]:
        own = self.layers.folders.get(folder.inbox, Layer())
        return (self.layers.defaults, self._named(folder.profile), own)

    def _named(self, name: str | None) -> Layer:
        if name is None:
            return Layer()
        try:
            return self.layers.profiles[name]
        except KeyError as error:
            known = ", ".join(self.layers.profiles) or "none is written"
            raise ConfigError(
                f"there is no [profile.{name}]; there are: {known}",
                hint=f"Write a table [profile.{name}] or name another.",
            ) from error
