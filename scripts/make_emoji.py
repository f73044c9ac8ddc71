"""Make maskgit/assets/emoji.zip, the embedded data set, from the font Noto Color Emoji.

The zip holds one lossless 64x64 RGB WebP for every distinct bitmap of the font's CBDT table, composited on white,
index.json (name, Unicode group, code points and family of each) and the font's license. The same inputs (and the same
Pillow and libwebp) give the same bytes.

The file that ships with the package was made from Debian 12 (bookworm) packages, read without installing them:

    apt-get download fonts-noto-color-emoji unicode-data iso-codes
    for package in *.deb; do dpkg -x "$package" debian; done
    pip install fonttools pillow
    python scripts/make_emoji.py \
        debian/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf \
        debian/usr/share/unicode/emoji/emoji-test.txt \
        debian/usr/share/iso-codes/json/iso_3166-2.json

(fonts-noto-color-emoji 2.042-0+deb12u1, unicode-data 15.0.0-1, iso-codes 4.15.0-1.)
"""

from __future__ import annotations

import argparse
import collections
import io
import itertools
import json
import re
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image

ASSETS = Path(__file__).resolve().parent.parent / "maskgit" / "assets"
SIZE = 64

Sequence = tuple[int, ...]  # code points, without variation selectors

ZWJ, VS16 = 0x200D, 0xFE0F
TONES = range(0x1F3FB, 0x1F400)
FEMALE, MALE, RIGHT_ARROW = 0x2640, 0x2642, 0x27A1
BLACK_FLAG, CANCEL_TAG = 0x1F3F4, 0xE007F
PERSON, CHILD = 0x1F9D1, 0x1F9D2

# Unicode 15.1 sequences that the font has and Unicode 15.0's emoji-test.txt has not, with their CLDR names.
NEWER = {
    (0x1F642, ZWJ, 0x2194): ("head shaking horizontally", "Smileys & Emotion"),
    (0x1F642, ZWJ, 0x2195): ("head shaking vertically", "Smileys & Emotion"),
    (0x1F426, ZWJ, 0x1F525): ("phoenix", "Animals & Nature"),
    (0x1F34B, ZWJ, 0x1F7E9): ("lime", "Food & Drink"),
    (0x1F344, ZWJ, 0x1F7EB): ("brown mushroom", "Food & Drink"),
    (0x26D3, ZWJ, 0x1F4A5): ("broken chain", "Objects"),
}

# Flags that the font draws once for several regions are named after the country, not after the territory.
TERRITORIES = {"BV", "SJ", "UM", "CP", "MF", "EA", "HM"}

# Code points that show the same thing with another gender, or that stand for a sequence of others.
FAMILY = 0x1F46A
SAME: dict[int, Sequence] = {
    0x1F468: (PERSON,),  # man
    0x1F469: (PERSON,),  # woman
    0x1F466: (CHILD,),  # boy
    0x1F467: (CHILD,),  # girl
    0x1F474: (0x1F9D3,),  # old man
    0x1F475: (0x1F9D3,),  # old woman
    0x1F478: (0x1FAC5,),  # princess
    0x1F934: (0x1FAC5,),  # prince
    0x1F57A: (0x1F483,),  # man dancing
    0x1F930: (0x1FAC4,),  # pregnant woman
    0x1FAC3: (0x1FAC4,),  # pregnant man
    0x1F385: (PERSON, ZWJ, 0x1F384),  # Santa Claus
    0x1F936: (PERSON, ZWJ, 0x1F384),  # Mrs. Claus
    0x1F46B: (PERSON, ZWJ, 0x1F91D, ZWJ, PERSON),  # woman and man holding hands
    0x1F46C: (PERSON, ZWJ, 0x1F91D, ZWJ, PERSON),  # men holding hands
    0x1F46D: (PERSON, ZWJ, 0x1F91D, ZWJ, PERSON),  # women holding hands
    0x1F48F: (PERSON, ZWJ, 0x2764, ZWJ, 0x1F48B, ZWJ, PERSON),  # kiss
    0x1F491: (PERSON, ZWJ, 0x2764, ZWJ, PERSON),  # couple with heart
}
# Pictures that a left-right flip, which training uses, turns into each other, or that differ in a detail only.
ALIKE = (
    (0x1F91B, 0x1F91C),  # left- and right-facing fist
    (0x1F448, 0x1F449),  # backhand index pointing left, right
    (0x1FAF1, 0x1FAF2),  # rightwards, leftwards hand
    (0x1FAF7, 0x1FAF8),  # leftwards, rightwards pushing hand
    (0x1F31B, 0x1F31C),  # first, last quarter moon face
    (0x1F312, 0x1F318),  # waxing, waning crescent moon
    (0x1F313, 0x1F317),  # first, last quarter moon
    (0x1F314, 0x1F316),  # waxing, waning gibbous moon
    (0x1F50D, 0x1F50E),  # magnifying glass tilted left, right
    (0x1F508, 0x1F509, 0x1F50A),  # speaker at low, medium, high volume
    (0x25B6, 0x25C0),  # play, reverse button
    (0x23E9, 0x23EA),  # fast-forward, fast reverse button
    (0x23ED, 0x23EE),  # next, last track button
    (0x2B05, 0x27A1),  # left, right arrow
    (0x2196, 0x2197),  # up-left, up-right arrow
    (0x2198, 0x2199),  # down-right, down-left arrow
    (0x21A9, 0x21AA),  # right arrow curving left, left arrow curving right
    (0x2603, 0x26C4),  # snowman, snowman without snow
    tuple(range(0x1F550, 0x1F568)),  # clock faces
)
SAME |= {other: (first,) for first, *others in ALIKE for other in others}

HANDSHAKE = (0x1F91D,)
TWO_HANDS = (0x1FAF1, ZWJ, 0x1FAF1)  # how a handshake of two skin tones is written, after SAME


def hexes(sequence: Sequence) -> str:
    return "-".join(f"{c:x}" for c in sequence)


def read_unicode(path: Path) -> dict[Sequence, tuple[str, str, Sequence]]:
    """emoji-test.txt: {sequence without selectors: (name, group, fully qualified sequence)}, in CLDR order."""
    table: dict[Sequence, tuple[str, str, Sequence]] = {}
    group = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif match := re.match(r"([0-9A-F ]+?) *; *[a-z-]+ *# \S+ E[0-9.]+ (.+)", line):
            full = tuple(int(c, 16) for c in match[1].split())
            # The fully qualified form comes first in the file, so it is the one that is kept.
            table.setdefault(tuple(c for c in full if c != VS16), (match[2], group, full))
    return table


def read_regions(path: Path) -> dict[str, str]:
    """iso_3166-2.json: {"US-CA": "California", ...}."""
    return {entry["code"]: entry["name"] for entry in json.loads(path.read_text(encoding="utf-8"))["3166-2"]}


class Names:
    """Names and groups of code point sequences."""

    def __init__(self, unicode: dict[Sequence, tuple[str, str, Sequence]], regions: dict[str, str]):
        self.unicode = unicode
        self.regions = regions
        self.rank = {sequence: i for i, sequence in enumerate(unicode)}
        letter_a = ord("🇦")
        for code in TERRITORIES:
            del self.rank[tuple(letter_a + ord(letter) - ord("A") for letter in code)]

    def describe(self, sequence: Sequence) -> tuple[str, str, Sequence] | None:
        """(name, group, fully qualified sequence), or None for what isn't an emoji (a ligature written backwards)."""
        if sequence in self.unicode:
            return self.unicode[sequence]
        if sequence in NEWER:
            return *NEWER[sequence], sequence
        if sequence[-2:] == (ZWJ, RIGHT_ARROW) and (left := self.describe(sequence[:-2])):
            what, colon, tone = left[0].partition(": ")  # "woman kneeling: dark skin tone"
            return f"{what} facing right{colon}{tone}", left[1], (*left[2], ZWJ, RIGHT_ARROW)
        if sequence[0] == BLACK_FLAG and sequence[-1] == CANCEL_TAG:
            code = "".join(chr(c - 0xE0000) for c in sequence[1:-1]).upper()
            if not code:
                return "flag: unknown region", "Flags", sequence
            country, region = code[:2], f"{code[:2]}-{code[2:]}"
            return f"flag: {self.regions.get(region, region)} ({country})", "Flags", sequence  # there are two Georgias
        tones = [c for c in sequence if c in TONES]
        if len(sequence) > 1 and len(tones) == 1:  # a skin tone where Unicode 15.0 has none: wrestlers
            plain = self.describe(tuple(c for c in sequence if c not in TONES))
            tone = self.unicode[(tones[0],)][0]
            return plain and (f"{plain[0]}: {tone}", plain[1], sequence)
        if len(sequence) == 1 and unicodedata.category(chr(sequence[0])) != "Co":  # Co: private use
            return unicodedata.name(chr(sequence[0])).lower(), "Component", sequence
        return None


def family_of(sequence: Sequence) -> str:
    """The key shared by all skin-tone, gender and direction variants of an emoji: its plain code points.

    A split by family so keeps on one side what is nearly one picture.
    """
    plain: list[int] = []
    for c in sequence:
        if c in (FEMALE, MALE, RIGHT_ARROW) and plain[-1:] == [ZWJ]:
            plain.pop()  # the joiner that tied the gender sign or the arrow
        elif c not in TONES and c != VS16:
            plain.extend(SAME.get(c, (c,)))
    if not plain:  # the skin-tone swatches themselves
        return hexes((TONES[0],))
    joined = tuple(plain)
    if len(joined) > 1 and set(joined) <= {PERSON, CHILD, ZWJ}:
        joined = (FAMILY,)
    return hexes(HANDSHAKE if joined == TWO_HANDS else joined)


class Glyphs:
    """The font's bitmaps, and the code point sequences that lead to each."""

    def __init__(self, path: Path):
        font = TTFont(path)
        self.bitmaps: dict[str, bytes] = {n: g.imageData for n, g in font["CBDT"].strikeData[0].items()}
        self.spellings: dict[str, list[list[str] | int]] = collections.defaultdict(list)
        for code, glyph in font.getBestCmap().items():
            self.spellings[glyph].append(code)
        for lookup in font["GSUB"].table.LookupList.Lookup:
            for table in lookup.SubTable:
                for first, ligatures in getattr(table, "ligatures", {}).items():
                    for ligature in ligatures:
                        self.spellings[ligature.LigGlyph].append([first, *ligature.Component])

    def sequences(self, glyph: str) -> Iterator[Sequence]:
        """All spellings of a glyph. The font also has each ligature backwards, for right-to-left text."""
        for spelling in self.spellings[glyph]:
            if isinstance(spelling, int):
                yield () if spelling == VS16 else (spelling,)
            else:
                for parts in itertools.product(*(list(self.sequences(part)) for part in spelling)):
                    yield tuple(itertools.chain(*parts))


def render(png: bytes) -> Image.Image:
    """A 136x128 bitmap of the font -> 64x64 RGB on white, the short side padded equally."""
    bitmap = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(bitmap.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(bitmap, ((side - bitmap.width) // 2, (side - bitmap.height) // 2))
    return canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.HAMMING)


def collect(glyphs: Glyphs, names: Names) -> list[tuple[dict[str, str], Image.Image]]:
    """One (entry of the index, picture) for every distinct bitmap, in Unicode's order, then the rest."""
    by_bitmap: dict[bytes, list[Sequence]] = collections.defaultdict(list)
    for glyph, bitmap in glyphs.bitmaps.items():
        by_bitmap[bitmap] += glyphs.sequences(glyph)

    found = []
    for bitmap, sequences in by_bitmap.items():
        known = [sequence for sequence in sequences if names.describe(sequence)]
        if not known:
            raise SystemExit(f"no name for the bitmap spelled {[hexes(s) for s in sequences]}")
        sequence = min(known, key=lambda s: (names.rank.get(s, len(names.rank)), s))
        found.append((names.rank.get(sequence, len(names.rank)), sequence, render(bitmap)))

    entries = []
    families: dict[bytes, str] = {}  # pictures that became equal (of another bitmap) must share a family
    for _, sequence, picture in sorted(found, key=lambda item: item[:2]):
        described = names.describe(sequence)
        assert described is not None
        name, group, full = described
        entry = {
            "file": f"{hexes(full)}.webp",
            "codepoints": " ".join(f"{c:04X}" for c in full),
            "name": name,
            "group": group,
            "family": families.setdefault(picture.tobytes(), family_of(sequence)),
        }
        entries.append((entry, picture))
    return entries


def write(entries: list[tuple[dict[str, str], Image.Image]], license_text: str, path: Path) -> None:
    groups = list(dict.fromkeys(entry["group"] for entry, _ in entries))
    index = {
        "source": "Noto Color Emoji (https://github.com/googlefonts/noto-emoji), SIL Open Font License 1.1",
        "size": SIZE,
        "groups": groups,
        "emoji": [entry for entry, _ in entries],
    }
    with zipfile.ZipFile(path, "w") as archive:

        def add(name: str, data: bytes, compression: int) -> None:
            # A ZipInfo carries 1980-01-01 unless told otherwise: nothing in the file depends on the clock.
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, 0o644 << 16, compression
            archive.writestr(info, data)

        add("LICENSE.txt", license_text.encode(), zipfile.ZIP_DEFLATED)
        add("index.json", json.dumps(index, ensure_ascii=False, indent=0).encode(), zipfile.ZIP_DEFLATED)
        for entry, picture in entries:
            data = io.BytesIO()
            picture.save(data, "WEBP", lossless=True, quality=100, method=4)
            add(entry["file"], data.getvalue(), zipfile.ZIP_STORED)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded emoji data set.")
    parser.add_argument("font", type=Path, help="NotoColorEmoji.ttf (the CBDT version)")
    parser.add_argument("emoji_test", type=Path, help="emoji-test.txt of Unicode")
    parser.add_argument("regions", type=Path, help="iso_3166-2.json of iso-codes, for the names of regional flags")
    parser.add_argument("--out", type=Path, default=ASSETS / "emoji.zip")
    args = parser.parse_args()

    entries = collect(Glyphs(args.font), Names(read_unicode(args.emoji_test), read_regions(args.regions)))
    write(entries, (ASSETS / "NOTO_EMOJI_LICENSE.txt").read_text(encoding="utf-8"), args.out)
    families = len({entry["family"] for entry, _ in entries})
    print(f"{args.out}: {len(entries)} emoji of {families} families, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
