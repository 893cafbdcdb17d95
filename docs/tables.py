"""Tables and numbers of the documentation, out of the records in results/reference.

``python docs/tables.py`` rewrites them; ``--check`` changes nothing, and fails if a text and the records differ, or
if somebody typed a result, or a setting into a caption. In a text, a table and a number stand between markers that a
reader does not see::

    <!-- table: NAME -->
    ...
    <!-- end -->

    It took <!-- n:NAME -->21<!-- /n --> minutes.

`TABLES` and `NUMBERS` say what a name means. Markers in fenced code are left alone: they would be seen there.
"""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from record_numbers import NUMBERS
from record_tables import TABLES
from records import Records

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "docs/*.md", "results/reference/README.md")

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(?P<start><!-- table: (?P<name>\S+) -->\n)(?P<value>.*?)(?P<end><!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"(?P<start><!-- n:(?P<name>\S+) -->)(?P<value>.*?)(?P<end><!-- /n -->)")
LEFT_OVER = re.compile(r"<!-- (?:table:|end|n:|/n).*?-->")

# A decimal number outside markers and fences is a result that somebody typed, unless it is one of these.
ALLOWED = (
    r"Python \d\.\d+(?: (?:or|and) \d\.\d+)?",  # versions
    r"(?:arXiv[: ]|arxiv\.org/abs/)\d{4}\.\d{4,5}",  # papers
    r"`[\w. ]+(?:=|:) ?[\d.e-]+`",  # a setting with its name, such as `C = 0.1` or `ema_decay: 0.8`
)
# A caption is the paragraph before a table, or before a figure if it is no list. It names settings between markers or in a
# command.
CAPTION = re.compile(r"((?:^(?!<!--|[|#]).+\n)+)\n?(<!-- table: |!\[)", re.MULTILINE)
COMMAND = re.compile(r"`[^`]* --[^`]*`")
AMOUNT = r"(?:\d[\d.,]*|one|two|three|four|five|six|seven|eight|nine|ten|twice)"
SETTING = re.compile(
    rf"\b(?:C|N|sigma_s|epsilon|ε|ratio|learning[ _]rate|batch|steps|top|salient)\b[\s`=:]*(?:of |is )?{AMOUNT}(?: %)?"
    rf"|\b{AMOUNT}(?: \w+)? (?:seeds?|steps|images|draws|rounds|cores|repeats|epochs|datasets|learning rates)\b"
)
TYPED = re.compile(r"(?<![\w.])\d+\.\d+")


def rewrite(text: str, records: Records) -> str:
    """Put the records' tables and numbers between the markers of a text.

    Raises:
        SystemExit: a marker has a name that is not known, or no end.
    """

    def fill(known: dict[str, Callable[[Records], str]], match: re.Match) -> str:
        if match["name"] not in known:
            raise SystemExit(f"unknown marker {match['name']}; known: {', '.join(known)}")
        return match["start"] + known[match["name"]](records) + match["end"]

    def outside(part: str) -> str:
        filled = NUMBER.sub(partial(fill, NUMBERS), TABLE.sub(partial(fill, TABLES), part))
        if stray := LEFT_OVER.search(without_marked(filled)):
            raise SystemExit(f"marker without its other half: {stray[0]}")
        return filled

    return _between_fences(text, outside)


def without_marked(text: str) -> str:
    """Remove what stands between markers, and the markers."""
    return NUMBER.sub("", TABLE.sub("", text))


def typed(text: str) -> list[str]:
    """List the results that somebody typed: decimal numbers outside markers and fenced code that are not `ALLOWED`."""
    prose = without_marked(FENCE.sub("", text))
    for pattern in ALLOWED:
        prose = re.sub(pattern, "", prose)
    return [line.strip() for line in prose.splitlines() if TYPED.search(line)]


def typed_settings(text: str) -> list[str]:
    """List the settings that somebody typed into a caption, such as ``C = 1`` or ``three seeds``."""
    found = CAPTION.findall(NUMBER.sub("", FENCE.sub("", text)))
    captions = [caption for caption, shown in found if shown != "![" or not caption.startswith("- ")]
    return [setting for caption in captions for setting in SETTING.findall(COMMAND.sub("", caption))]


def _between_fences(text: str, change: Callable[[str], str]) -> str:
    parts, start = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, change(text[start:])])


def texts(root: Path) -> list[Path]:
    """List the texts of a checkout whose numbers come from records."""
    return [path for pattern in TEXTS for path in sorted(root.glob(pattern))]


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check every text; return 0, or 1 after a line on standard error for every mistake."""
    parser = argparse.ArgumentParser(prog="python docs/tables.py", description="tables and numbers of the docs, from the records")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if texts and records differ")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    options = parser.parse_args(arguments)
    records, wrong = Records(options.root), []
    for path in texts(options.root):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(options.root)
        wrong += [f"{name}: a typed result, put it between markers: {line}" for line in typed(text)]
        wrong += [f"{name}: a caption's setting, put it between markers: {setting}" for setting in typed_settings(text)]
        filled = rewrite(text, records)
        if filled != text and options.check:
            changed = [new for old, new in zip(text.splitlines(), filled.splitlines(), strict=False) if old != new]
            wrong.append(f"{name}: differs from the records, run `python docs/tables.py`: {(changed or ['length'])[0]}")
        elif filled != text:
            path.write_text(filled, encoding="utf-8")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
