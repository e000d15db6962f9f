"""Lists of splits, in whatever encoding an editor or a spreadsheet wrote them."""

from __future__ import annotations

import codecs
from pathlib import Path

from mtlbench.errors import DataError

from .decoding import reading


def read_list(path: Path) -> list[str]:
    """Returns the ids of a list, one a line: without comments (``#``), and without a flag 1 behind an id, as VOC has.

    A number behind a word is part of the id, and no flag, if other lines put other numbers behind the same word.

    Raises:
        DataError: The text is in no encoding that editors write, or a line says that its image does not belong.
    """
    rows = [line.partition("#")[0].split() for line in read_text(path).splitlines()]
    numbers: dict[str, set[str]] = {}
    for words in rows:
        if len(words) == 2:
            numbers.setdefault(words[0], set()).add(words[1])
    ids = []
    for number, words in enumerate(rows, 1):
        flag = words[1] if len(words) == 2 and len(numbers[words[0]]) == 1 else None
        if flag in ("0", "-1"):
            raise DataError(
                f"{path}, line {number}: a list names the images of a split. Found {' '.join(words)!r}, a flag that "
                "leaves the image out. Remove the line."
            )
        if words:
            ids.append(words[0] if flag == "1" else " ".join(words))
    return ids


def read_text(path: Path) -> str:
    """Returns a text in UTF-8, with or without a mark, in UTF-16 with one, or in Latin-1.

    Raises:
        DataError: It is no text, or in another encoding.
    """
    content = reading(path, path.read_bytes)
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "latin-1"):
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise DataError(f"{path}: a list is text. Found damaged UTF-16. Save it as UTF-8.")
    for number, line in enumerate(text.splitlines(), 1):
        if odd := next((letter for letter in line if letter < " " and letter != "\t" or letter == "\x7f"), None):
            raise DataError(
                f"{path}, line {number}: a list is text in UTF-8, UTF-16 with a mark, or Latin-1. Found the control "
                f"character U+{ord(odd):04X}. Save the list as UTF-8."
            )
    return text
