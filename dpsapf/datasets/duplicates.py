"""Equal images among the training images: what one image is promised, a picture that is there several times is not."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

GROUPS, NAMES = 3, 4  # that are named; of the others only the number is told


def pixel_digest(image: np.ndarray) -> bytes:
    """Return 16 bytes that equal images have in common, and no others."""
    return hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()


def equal_images(digests: Sequence[bytes], training: np.ndarray, users: np.ndarray | None) -> list[list[int]]:
    """Find training images with the same pixels, which count as several units although they show one thing.

    Args:
        digests: of each image, from `pixel_digest`, N of them.
        training: whether it is a training image, bool [N].
        users: name of the person that each image is of, str [N]; None if it is not told. Equal images of one person are one unit.

    Returns:
        Positions of equal images, in groups of two or more, the largest group first.
    """
    groups = defaultdict(list)
    for position in np.flatnonzero(training).tolist():
        groups[digests[position]].append(position)
    apart = [group for group in groups.values() if len(group) > 1 and (users is None or len(set(users[group])) > 1)]
    return sorted(apart, key=len, reverse=True)


def told(groups: list[list[int]], names: Sequence[str] | None, *, by_user: bool) -> str:
    """Say which training images are equal, and what to do about it.

    Args:
        groups: from `equal_images`, at least one.
        names: of the files, N of them; None: images are named by their position.
        by_user: whether the source says who each image is of.
    """
    lines = [_line(group, names) for group in groups[:GROUPS]]
    if len(groups) > GROUPS:
        lines.append(f"  and {len(groups) - GROUPS} more pictures")
    head = (
        f"{sum(map(len, groups))} training images show only {len(groups)} picture(s): pixels are equal. Each image is protected, "
        f"so a picture that is there {len(groups[0])} times is protected {len(groups[0])} times less:"
    )
    remedy = "one user in the CSV of the key users" if by_user else "one user in a CSV (key users), and set privacy: {unit: user}"
    return "\n".join([head, *lines, f"  Remove all but one of each, or give equal images {remedy}."])


def _line(group: list[int], names: Sequence[str] | None) -> str:
    shown = [names[place] if names is not None else f"image {place}" for place in group[:NAMES]]
    more = [f"and {len(group) - NAMES} more"] if len(group) > NAMES else []
    return "  " + ", ".join([*shown, *more])
