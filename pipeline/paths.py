"""Paths a person gives: absolute, because a submitted job's working directory is thrown away."""

from pathlib import Path

from pipeline.storage import Place

NOT_GIVEN = Path()
"""Default of a path that a recipe cannot know."""


def require(**paths: Path) -> None:
    """Refuse paths that were not given or are relative; names are those of the flags.

    Raises:
        ValueError: one line naming the flag, what was given and what to give.
    """
    for name, path in paths.items():
        flag = f"--{name.replace('_', '-')}"
        if path == NOT_GIVEN:
            raise ValueError(f"{flag} is missing; give an absolute path")
        if not path.is_absolute():
            raise ValueError(
                f"{flag} is {path}, a relative path: a submitted job's folder is thrown away; give {path.absolute()}"
            )


def require_places(**places: str | None) -> None:
    """Refuse places that were not given or are relative: absolute paths and ``s3://`` addresses pass, so does None.

    Raises:
        ValueError: one line naming the flag, what was given and what to give.
    """
    for name, place in places.items():
        if place is None:
            continue
        if place and Place.of(place).is_absolute:
            continue
        require(**{name: Path(place)})
