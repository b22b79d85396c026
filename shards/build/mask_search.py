"""Find the masks of given images in a folder: by the user's rule, or by the one rule that fits all names."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segdist.core.errors import UserError
from shards.build.pairing import Pairing, apply, best_rules, channels
from shards.images.folders import images_in, name_of
from shards.images.mask_names import EXACT, MaskRule
from shards.images.opening import ZARR_SUFFIX, open_image

SHOWN = 10
"""Maximum number of files named in a message."""
NEAREST = 3
"""Maximum number of rules named in a message if none fits."""
THREADS = 8


@dataclass(frozen=True)
class FoundMasks:
    """Masks of images, and how they were found."""

    masks: Mapping[str, Path]
    """By the name of the image."""
    rule: str
    """The rule, as for `--masks.name`."""
    notes: tuple[str, ...] = ()
    """Messages for the user: the rule if it was searched for, and what is left over."""


def mask_files(folder: Path, below: bool) -> list[Path]:
    """The files of a folder that may be masks."""
    return [path for path in images_in(folder, "**/*" if below else "*") if path.suffix.lower() != ZARR_SUFFIX]


def find_masks(
    images: Mapping[str, Path],
    masks: Sequence[Path],
    folder: Path,
    name: str,
    needed: Collection[str] | None = None,
    job: Literal["make-shards", "infer"] = "make-shards",
) -> FoundMasks:
    """The masks of `images` among the files `masks` in `folder`.

    Args:
        images: their files by name (`shards.images.folders.name_of`).
        name: the rule; empty: look for it.
        needed: images that must have a mask; by default all.
        job: the job whose settings messages name.

    Raises:
        UserError: images without exactly one mask; no rule fits, or several do.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for path in masks:
        files[name_of(path.relative_to(folder))].append(path)
    search = _Search(images, files, folder, set(images) if needed is None else set(needed), job)
    pairing, notes = search.by_rule(MaskRule(name)) if name else search.by_itself()
    doubles = {image: files[mask] for image, mask in pairing.masks.items() if len(files[mask]) > 1}
    if doubles:
        lines = [f"{images[image]}: {', '.join(path.name for path in found)}" for image, found in doubles.items()]
        raise UserError(f"{len(doubles)} images have several masks in {folder}:\n  {_listed(lines)}\nremove the copies")
    return FoundMasks({image: files[mask][0] for image, mask in pairing.masks.items()}, pairing.rule.text, notes)


@dataclass(frozen=True)
class _Search:
    images: Mapping[str, Path]
    files: Mapping[str, list[Path]]
    """The masks by their names."""
    folder: Path
    needed: set[str]
    job: str

    @property
    def csv(self) -> str:
        """The solution that always works."""
        flag = "--images.csv" if self.job == "make-shards" else "--images pairs.csv"
        return f"pair them in a CSV file ({flag})"

    @property
    def skip(self) -> str:
        skip = "; --images.unlabelled skip leaves images without a mask out"
        return skip if self.job == "make-shards" and self.needed else ""

    def by_rule(self, rule: MaskRule) -> tuple[Pairing, tuple[str, ...]]:
        """The pairing by the user's rule; masks may be left over."""
        pairing = apply(rule, list(self.images), self.files, self.needed)
        self._refuse_shared(pairing)
        if pairing.without or not pairing.masks:
            raise UserError(self._without_mask(pairing))
        self._refuse_channels(pairing)
        return pairing, ()

    def by_itself(self) -> tuple[Pairing, tuple[str, ...]]:
        """The one valid pairing, and its rule in words."""
        exact = apply(MaskRule(EXACT), list(self.images), self.files, self.needed)
        if self.needed and not exact.without:
            return exact, (self._in_words(exact), *self._unused(exact))
        ranked = best_rules(list(self.images), list(self.files), self.needed)
        counting = _distinct(pairing for pairing in ranked if pairing.counts)
        if len(counting) > 1:
            counting = [pairing for pairing in counting if self._sizes_agree(pairing)] or counting
        if len(counting) == 1:
            self._refuse_channels(counting[0])
            return counting[0], (self._in_words(counting[0]),)
        raise UserError(self._ambiguous(counting) if counting else self._no_rule(ranked))

    def _in_words(self, pairing: Pairing) -> str:
        pairs = [(self.images[image], self.files[mask][0]) for image, mask in pairing.masks.items()]
        ends = [f"{image.name} with {mask.name}" for image, mask in dict.fromkeys((pairs[0], pairs[-1]))]
        return f"masks by the rule --masks.name '{pairing.rule.text}': {', …, '.join(ends)}"

    def _unused(self, pairing: Pairing) -> tuple[str, ...]:
        if not pairing.unused:
            return ()
        shown = [self.files[mask][0].name for mask in pairing.unused]
        return (f"{len(shown)} masks belong to no image: {', '.join(shown[:3])}{', …' * (len(shown) > 3)}",)

    def _sizes_agree(self, pairing: Pairing) -> bool:
        """True if all images and masks have the same size, allowing a 90° turn."""
        pairs = [(self.images[image], self.files[mask][0]) for image, mask in pairing.masks.items()]
        with ThreadPoolExecutor(THREADS) as pool:
            return all(pool.map(lambda pair: _size(pair[0]) == _size(pair[1]), pairs))

    def _refuse_shared(self, pairing: Pairing) -> None:
        if not pairing.shared:
            return
        lines = [f"{self.images[image]}: {self.files[pairing.masks[image]][0].name}" for image in pairing.shared]
        raise UserError(
            f"--masks.name {pairing.rule.text!r} gives several images the same mask:\n  {_listed(lines)}\n"
            + (self._channel_advice() or f"make the rule tell them apart, or {self.csv}")
        )

    def _refuse_channels(self, pairing: Pairing) -> None:
        """Refuse separate channel files: if one of several channels has the mask, the others aren't images without
        one."""
        if pairing.rule.text == EXACT:
            return
        for names in channels(self.images, self.files):
            if 0 < sum(name in pairing.masks for name in names) < len(names):
                raise UserError(self._channel_advice())

    def _channel_advice(self) -> str:
        groups = channels(self.images, self.files)
        if not groups or len(self.files) >= len(self.images):
            return ""
        shown = " and ".join(self.images[name].name for name in groups[0])
        pattern = f"*_{groups[0][0][-4:]}{self.images[groups[0][0]].suffix}"
        return (
            f"{shown} are named like channels of one image (nnU-Net): they are not separate images. Save the "
            f"channels of each image in one TIFF file, or select one channel with --images.pattern '{pattern}'"
        )

    def _without_mask(self, pairing: Pairing) -> str:
        """The message if the user's rule leaves images without a mask."""
        rule = pairing.rule
        wanted = {image: rule.mask_of(image) for image in pairing.without}
        lines = [
            f"{self.images[image]}: "
            + (f"no {name}.* in {self.folder}" if name else "the rule gives it no mask in " + str(self.folder))
            for image, name in wanted.items()
        ]
        better = [
            other
            for other in best_rules(list(self.images), list(self.files), self.needed)[:1]
            if len(other.masks) > len(pairing.masks) and 2 * len(other.masks) >= len(self.needed or self.files)
        ]
        hint = f"; perhaps --masks.name '{better[0].rule.text}', {self._score(better[0])}" if better else ""
        return (
            f"{len(pairing.without)} images without a mask by --masks.name {rule.text!r}:\n  {_listed(lines)}\n"
            f"give the naming rule with --masks.name and the folder with --masks.folder{hint}{self.skip}"
        )

    def _no_rule(self, ranked: Sequence[Pairing]) -> str:
        """The message if no rule pairs all names."""
        if not self.files:
            return f"no mask in {self.folder}; give the masks' folder with --masks.folder, or {self.csv}"
        head = f"no rule pairs the {len(self.needed)} images with the {len(self.files)} masks in {self.folder} by name"
        if not self.needed:
            head = f"no rule gives each of the {len(self.files)} masks in {self.folder} one of the images"
        if advice := self._channel_advice():
            return f"{head}: {advice}"
        whole = _distinct(pairing for pairing in ranked if not (pairing.without or pairing.shared))
        if len(whole) > 1:
            head = f"{len(whole)} rules give every image a mask in {self.folder}, but each leaves masks unmatched"
        lines = [f"--masks.name '{pairing.rule.text}': {self._score(pairing)}" for pairing in _nearest(ranked)]
        lines += [self._left_over(pairing) for pairing in ranked[:1]]
        near = "the closest:\n  " + "\n  ".join(lines)
        if not ranked:
            image, mask = next(iter(self.images.values())), next(iter(self.files.values()))[0]
            near = f"the names have nothing in common ({image.name}, {mask.name})"
        return (
            f"{head}; {near}" + "\ngive the naming rule with --masks.name (masks "
            f"may then be left over), remove files that are not masks, or {self.csv}"
            + (self.skip if ranked and ranked[0].without else "")
        )

    def _ambiguous(self, counting: Sequence[Pairing]) -> str:
        if advice := self._channel_advice():
            return advice
        lines = [self._in_words(pairing).removeprefix("masks by the rule ") for pairing in counting[:NEAREST]]
        return (
            f"{len(counting)} rules pair all images with the masks in {self.folder}, each differently:\n  "
            + "\n  ".join(lines)
            + f"\nchoose one with --masks.name, or {self.csv}"
        )

    def _score(self, pairing: Pairing) -> str:
        return (
            f"pairs {len(pairing.masks) - len(pairing.shared)} of {len(self.images)} images with one of the "
            f"{len(self.files)} masks each"
        )

    def _left_over(self, pairing: Pairing) -> str:
        kinds = [("images without a mask", [self.images[name] for name in pairing.without])]
        kinds += [("masks without an image", [self.files[name][0] for name in pairing.unused])]
        kinds += [("images that share a mask", [self.images[name] for name in pairing.shared])]
        parts = [
            f"{len(paths)} {kind} ({', '.join(path.name for path in paths[:3])}{', …' * (len(paths) > 3)})"
            for kind, paths in kinds
            if paths
        ]
        return "the first leaves unmatched: " + ", ".join(parts)


def _distinct(pairings: Iterable[Pairing]) -> list[Pairing]:
    """One of each set of equivalent pairings."""
    found: list[Pairing] = []
    for pairing in pairings:
        if all(pairing.masks != other.masks for other in found):
            found.append(pairing)
    return found


def _nearest(ranked: Sequence[Pairing]) -> list[Pairing]:
    """The rules worth showing: those that leave about as few names over as the best."""
    return [pairing for pairing in _distinct(ranked) if pairing.missing <= 1.5 * ranked[0].missing][:NEAREST]


def _size(path: Path) -> tuple[int, ...] | None:
    try:
        with open_image(path) as image:
            return tuple(sorted((image.height, image.width)))
    except UserError:
        return None


def _listed(lines: Sequence[str]) -> str:
    more = f"\n  … and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "\n  ".join(lines[:SHOWN]) + more
