"""Files that come with the program (presets, profiles, templates), however it is installed."""

from importlib import resources


def shipped_files(package: str, folder: str, suffix: str) -> dict[str, str]:
    """Text of each file with `suffix` in a folder of a package, by its name without the suffix, in order."""
    files = [file for file in (resources.files(package) / folder).iterdir() if file.name.endswith(suffix)]
    return {
        file.name.removesuffix(suffix): file.read_text("utf-8") for file in sorted(files, key=lambda file: file.name)
    }
