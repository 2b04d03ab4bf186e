"""Costs of networks counted convolution by convolution from operation names; imports nothing of the package."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Counter:
    """Adds up scalar costs while a network is walked through."""

    params: int = 0
    macs: int = 0
    size: int = 0

    def conv(self, cin: int, cout: int, k: int = 1, stride: int = 1, groups: int = 1, bn: bool = True) -> None:
        self.size = (self.size + 2 * (k // 2) - k) // stride + 1
        for _ in range(cout):
            per_output = cin // groups * k * k
            self.params += per_output
            self.macs += per_output * self.size * self.size
        self.params += 2 * cout if bn else 0

    def aside(self) -> Counter:
        """A counter for a branch that starts at the same size."""
        return Counter(size=self.size)

    def add(self, other: Counter, resize: bool = False) -> None:
        self.params += other.params
        self.macs += other.macs
        if resize:
            self.size = other.size

    def squeeze(self, width: int, reduced: int) -> None:
        self.params += width * reduced + reduced + reduced * width + width
        self.macs += width * reduced + reduced * width


def operation(c: Counter, name: str, cin: int, cout: int, stride: int, shuffle_se: bool, res_se: int) -> None:
    if name == "ID":
        if stride != 1 or cin != cout:
            c.conv(cin, cout, 1, stride)
    elif name.startswith("MB"):
        inverted_residual(c, name, cin, cout, stride)
    elif name.startswith("Shuffle"):
        shuffle(c, name[-1], cin, cout, stride, shuffle_se)
    else:
        bottleneck(c, name, cin, cout, stride, res_se)


def inverted_residual(c: Counter, name: str, cin: int, cout: int, stride: int) -> None:
    expansion = int(name[2:].split("_")[0])
    wide = cin * expansion
    if expansion != 1:
        c.conv(cin, wide)
    if "MIX" in name:
        third = math.ceil(wide / 3)
        after = c.size
        for width, k in ((third, 3), (third, 5), (wide - 2 * third, 7)):
            group = c.aside()
            group.conv(width, width, k, stride, groups=width)
            c.add(group)
            after = group.size
        c.size = after
    else:
        c.conv(wide, wide, int(re.search(r"K(\d+)", name)[1]), stride, groups=wide)
    if name.endswith("_SE"):
        c.squeeze(wide, max(1, wide // 4))
    c.conv(wide, cout)


def shuffle(c: Counter, kind: str, cin: int, cout: int, stride: int, se: bool) -> None:
    main, k = c.aside(), 3 if kind == "x" else int(kind)
    inside = cin if stride == 2 else cin // 2
    made = cout // 2 if stride == 2 else cout - cin // 2
    mid = cout // 2
    if kind == "x":
        main.conv(inside, inside, 3, stride, groups=inside)
        main.conv(inside, mid)
        main.conv(mid, mid, 3, groups=mid)
        main.conv(mid, mid)
        main.conv(mid, mid, 3, groups=mid)
        main.conv(mid, made)
    else:
        main.conv(inside, mid)
        main.conv(mid, mid, k, stride, groups=mid)
        main.conv(mid, made)
    if se:
        main.squeeze(made, max(1, made // 4))
    if stride == 2:
        other = c.aside()
        other.conv(cin, cin, k, 2, groups=cin)
        other.conv(cin, cout // 2)
        c.add(other)
    c.add(main, resize=True)


def bottleneck(c: Counter, name: str, cin: int, cout: int, stride: int, reduction: int) -> None:
    kind, kernel, factor = re.fullmatch(r"(Res|ResNeXt)_K(\d)_(.*)x", name).groups()
    planes, f = cout // 4, float(factor)
    width, groups = (math.floor(planes * f * 4 / 64) * 32, 32) if kind == "ResNeXt" else (math.floor(planes * f), 1)
    main = c.aside()
    main.conv(cin, width)
    main.conv(width, width, int(kernel), stride, groups)
    main.conv(width, cout)
    if reduction:
        main.squeeze(cout, cout // reduction)
    if stride != 1 or cin != cout:
        shortcut = c.aside()
        shortcut.conv(cin, cout, 1, stride)
        c.add(shortcut)
    c.add(main, resize=True)


MOBILE = [(32, 2, 4), (40, 2, 4), (80, 2, 4), (96, 1, 4), (192, 2, 4), (320, 1, 1)]
RES50 = [(256, 1, 3), (512, 2, 4), (1024, 2, 6), (2048, 2, 3)]
MACRO = [(64, 2, 2), (128, 2, 3), (256, 2, 3)]
SAMPLE = [(24, 1, 1), (24, 1, 2), (48, 2, 1), (48, 1, 2)]


def shapes(cin: int, stages: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    for cout, stride, count in stages:
        for i in range(count):
            yield cin, cout, stride if i == 0 else 1
            cin = cout


def network(
    space: str, path: list[str], resolution: int, classes: int, shuffle_se: bool = False, res_se: int = 8
) -> tuple[int, int]:
    """Parameters and MACs of a stand-alone network."""
    c = Counter(size=resolution)
    if space == "nas-bench-macro":
        c.conv(3, 32, 3, 1)
        layers, head, last = shapes(32, MACRO), 1280, 256
    elif space == "res50-se":
        c.conv(3, 64, 7, 2)
        c.size = (c.size + 2 - 3) // 2 + 1
        layers, head, last = shapes(64, RES50), None, 2048
    elif space == "sample":
        c.conv(1, 16, 3, 2)
        inverted_residual(c, "MB1_K3", 16, 16, 1)
        layers, head, last = shapes(16, SAMPLE), 256, 48
    else:
        c.conv(3, 32, 3, 2)
        inverted_residual(c, "MB1_K3", 32, 16, 1)
        layers, head, last = shapes(16, MOBILE), 1280, 320
    for name, (cin, cout, stride) in zip(path, layers, strict=True):
        operation(c, name, cin, cout, stride, shuffle_se, res_se)
    if head is not None:
        c.conv(last, head)
        last = head
    c.params += last * classes + classes
    c.macs += last * classes
    return c.params, c.macs
