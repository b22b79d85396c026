"""Find the rule that derives mask names from image names, using only the names.

A rule is valid if every image that needs a mask gets one, no mask is left over, and no two images share one. Candidates
come from samples: the part that varies among image names (or mask names) is searched for in the names on the other
side, and the text around it on both sides makes a rule. The rules with the most votes are tried on all names.

A names of images, M names of masks: paths in their folder without suffix, in composed form (NFC).
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice

from shards.images.mask_names import EXACT, NUMBERS, MaskRule, exchange

SAMPLES = 8
"""Number of names on either side that vote for rules."""
TRIED = 24
"""Number of top-voted rules to try on all names."""
FIRST_TRIED = 100
"""Number of images on which rules are tried first."""
TELLING = 4
"""Number of common characters that is more than chance."""
MOST_PLACES = 4
"""Maximum number of places in a name to look for a short part."""

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's names of the channels of one image."""


@dataclass(frozen=True)
class Pairing:
    """The result of applying a rule to all names."""

    rule: MaskRule
    masks: Mapping[str, str]
    """The mask of each image that has one; each mask once."""
    without: tuple[str, ...]
    """Images that need a mask but get none."""
    unused: tuple[str, ...]
    """Masks of no image."""
    shared: tuple[str, ...] = ()
    """Images whose mask also belongs to another image."""

    @property
    def counts(self) -> bool:
        return bool(self.masks) and not (self.without or self.unused or self.shared)

    @property
    def missing(self) -> int:
        """Number of images and masks that the rule leaves over."""
        return len(self.without) + len(self.unused) + len(self.shared)


def apply(rule: MaskRule, images: Sequence[str], masks: Collection[str], needed: Collection[str]) -> Pairing:
    """Pair by one rule. If no mask has the exact name, ignore case, provided that this leaves one mask."""
    by_numbers = _by_numbers(images, masks) if rule.text == NUMBERS else None
    known = set(masks)
    folded: dict[str, str | None] = {}
    for each in masks:
        folded[each.casefold()] = None if each.casefold() in folded else each
    found = {}
    for image in images:
        name = rule.mask_of(image) if by_numbers is None else by_numbers.get(image)
        if name is None:
            continue
        mask = name if name in known else folded.get(name.casefold())
        if mask is not None:
            found[image] = mask
    uses = Counter(found.values())
    shared = tuple(image for image, mask in found.items() if uses[mask] > 1)
    without = tuple(image for image in images if image in needed and image not in found)
    return Pairing(rule, found, without, tuple(mask for mask in masks if mask not in uses), shared)


def best_rules(images: Sequence[str], masks: Sequence[str], needed: Collection[str]) -> list[Pairing]:
    """The pairings of likely rules, best first: the valid ones, then those that leave the fewest names over."""
    exact = apply(MaskRule(EXACT), images, masks, needed)
    if exact.counts:
        return [exact]
    texts = [EXACT, _around(images, masks), *_promising(_likely(images, masks), images, masks), NUMBERS]
    tried = [apply(MaskRule(text), images, masks, needed) for text in dict.fromkeys(texts)]
    found = [pairing for pairing in tried if pairing.masks]
    return sorted(found, key=lambda pairing: (not pairing.counts, pairing.missing, *_clumsiness(pairing.rule.text)))


def _clumsiness(text: str) -> tuple[bool, bool, int, str]:
    """Sort key for equivalent rules: the one that a human would write comes first.

    The order is the same in every process, because the rule becomes part of the set's recipe.
    """
    return text == NUMBERS, not (text.startswith(EXACT) or text.endswith(EXACT)), len(text), text


def channels(images: Collection[str], masks: Collection[str]) -> list[tuple[str, ...]]:
    """The groups of names that are channels of one image in nnU-Net's naming (`a_0000`, `a_0001`).

    Picture numbers (`IMG_0001`) look the same, but channels count from 0, and no mask carries their numbers.
    """
    cases: dict[str, dict[str, str]] = {}
    for image in sorted(images):
        if match := CHANNEL.fullmatch(image):
            cases.setdefault(match[1], {})[match[2]] = image
    groups = {
        case: numbers
        for case, numbers in cases.items()
        if len(numbers) > 1 and [*numbers] == [f"{number:04}" for number in range(len(numbers))]
    }
    called = {_numbers(mask) for mask in masks}
    if any(_numbers(image) in called for numbers in groups.values() for image in numbers.values()):
        return []
    return [tuple(numbers.values()) for numbers in groups.values()]


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", posixpath.basename(name)))


def _promising(texts: Iterable[str], images: Sequence[str], masks: Sequence[str]) -> list[str]:
    """The rules that find masks for about as many of the sampled images as the best rule."""
    known = {mask.casefold() for mask in masks}
    some = _samples(images, FIRST_TRIED)
    hits = {}
    for text in texts:
        rule = MaskRule(text)
        hits[text] = sum((name := rule.mask_of(image)) is not None and name.casefold() in known for image in some)
    return [text for text, count in hits.items() if 2 * count >= max(hits.values())]


def _around(images: Sequence[str], masks: Sequence[str]) -> str:
    """The rule that replaces the longest common prefix and suffix of the image names with those of the mask names.

    If any replacement of prefix and suffix pairs all images with all masks, this one does.
    """
    if min(len(images), len(masks)) < 2:
        return EXACT
    ends = []
    for names in (images, masks):
        stems = [posixpath.basename(name) for name in names]
        before = _start(stems)
        ends += [before, _start([stem[len(before) :][::-1] for stem in stems])[::-1]]
    return exchange(ends[0], ends[1], ends[2], ends[3])


def _likely(images: Sequence[str], masks: Sequence[str]) -> Iterator[str]:
    """Rules by their votes."""
    votes: Counter[str] = Counter()
    image_samples, mask_samples = _samples(images), _samples(masks)
    for names, samples, others, rule in (
        (images, image_samples, masks, _exchange),
        (masks, mask_samples, images, lambda mask, image: _exchange(image, mask)),
    ):
        cut = _common(names)
        for sample in samples:
            votes.update(_rules_of(sample, others, cut, rule))
    if len(image_samples) == 1 or len(mask_samples) == 1:
        votes.update(_rules_of_one(image_samples, mask_samples))
    ranked = sorted(votes, key=lambda text: (-votes[text], *_clumsiness(text)))
    return iter(ranked[:TRIED])


Split = tuple[str, str, str, str]
"""A name split into its folder and, within its last component, the text before a part, the part, and the text after
it."""


def _rules_of(
    sample: str, others: Sequence[str], cut: tuple[str, str], rule: Callable[[Split, Split], str | None]
) -> set[str]:
    """All rules that map `sample` to one of `others`, based on a part that both contain."""
    folder, stem = posixpath.split(sample)
    parts = [(folder, "", stem, "")]
    before, behind = cut
    if before or behind:
        core = stem[len(before) : len(stem) - len(behind)]
        parts.append((folder, before, core, behind))
    rules = set()
    for part in parts:
        if not part[2]:
            continue
        for other in others:
            if part[2] in other:
                for place in _places(other, part[2]):
                    if (text := rule(part, place)) is not None:
                        rules.add(text)
    return rules


def _places(name: str, part: str) -> Iterator[Split]:
    folder, stem = posixpath.split(name)
    starts = (match.start() for match in re.finditer(f"(?={re.escape(part)})", stem))
    for start in islice(starts, MOST_PLACES):
        yield folder, stem[:start], part, stem[start + len(part) :]


def _rules_of_one(images: Sequence[str], masks: Sequence[str]) -> Iterator[str]:
    """Rules for a single name: it has no varying part, so the text it shares with the other side takes its place."""
    for image in images:
        for mask in masks:
            (folder, stem), (mask_folder, mask_stem) = posixpath.split(image), posixpath.split(mask)
            match = SequenceMatcher(None, stem, mask_stem, autojunk=False).find_longest_match()
            if match.size < TELLING and len(images) == len(masks) == 1:
                yield f"{re.escape(image)} -> {mask}" if "/" in image else f"{re.escape(stem)} -> {mask_stem}"
                continue
            end, mask_end = match.a + match.size, match.b + match.size
            core = stem[match.a : end]
            text = _exchange(
                (folder, stem[: match.a], core, stem[end:]),
                (mask_folder, mask_stem[: match.b], core, mask_stem[mask_end:]),
            )
            if text is not None:
                yield text


def _exchange(image: Split, mask: Split) -> str | None:
    """The rule that derives the mask's name from the image's, given their common part."""
    text = exchange(image[1], image[3], mask[1], mask[3])
    if image[0] == mask[0]:
        return text
    folders = _folder_exchange(image[0], mask[0])
    if folders is None:
        return None
    left, arrow, right = text.partition(" -> ")
    if not arrow:  # {stem} with something around it
        before, _, behind = text.partition(EXACT)
        left, right = "(.*)", f"{before}\\g<1>{behind}"
    # The folders' groups come first, so the name's own is the last one.
    count = re.compile(folders[0]).groups
    right = right.replace("\\g<1>", f"\\g<{count + 1}>").replace("\\1", f"\\g<{count + 1}>")
    return f"{folders[0]}{left.replace('(.*)', '([^/]*)')} -> {folders[1]}{right}"


def _folder_exchange(image: str, mask: str) -> tuple[str, str] | None:
    """Expression and replacement, each ending in a slash, that replace one folder of a path, or remove all."""
    if not mask:
        return "(?:.*/)?", ""
    one, other = image.split("/") if image else [], mask.split("/")
    if len(one) != len(other):
        return None
    different = [number for number in range(len(one)) if one[number] != other[number]]
    if len(different) != 1:
        return None
    place = different[0]
    left, right = "", ""
    if place > 0:
        left, right = "(.*/)", "\\g<1>"
    left, right = f"{left}{re.escape(one[place])}/", f"{right}{other[place]}/"
    if place < len(one) - 1:
        left, right = f"{left}(.*/)", f"{right}\\g<{2 if place > 0 else 1}>"
    return left, right


def _by_numbers(images: Sequence[str], masks: Collection[str]) -> dict[str, str]:
    """Masks matched by the numbers in which the names differ; names with no or duplicate numbers are left out."""
    sides = []
    for names in (images, list(masks)):
        before, behind = _common(names)
        by_key: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            stem = posixpath.basename(name)
            key = tuple(int(digits) for digits in re.findall(r"\d+", stem[len(before) : len(stem) - len(behind)]))
            if key:
                by_key.setdefault(key, []).append(name)
        sides.append(by_key)
    return {
        names[0]: sides[1][key][0]
        for key, names in sides[0].items()
        if len(names) == 1 and len(sides[1].get(key, ())) == 1
    }


def _common(names: Collection[str]) -> tuple[str, str]:
    """The common prefix and suffix of the last components of all names; numbers are never split."""
    stems = [posixpath.basename(name) for name in names]
    if len(set(stems)) < 2:
        return "", ""
    before = re.sub(r"\d+$", "", _start(stems))
    rest = [stem[len(before) :] for stem in stems]
    return before, re.sub(r"^\d+", "", _start([stem[::-1] for stem in rest])[::-1])


def _start(texts: Sequence[str]) -> str:
    """The common prefix of all texts, which is that of the first and the last in alphabetical order."""
    first, last = min(texts), max(texts)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]


def _samples(names: Sequence[str], count: int = SAMPLES) -> list[str]:
    """Some names, evenly spaced."""
    if len(names) <= count:
        return list(names)
    return [names[number * (len(names) - 1) // (count - 1)] for number in range(count)]
