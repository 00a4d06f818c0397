"""Turn parallel text into small translation dialogues, for trying things on real sentences.

python tests/pairs_to_dialogues.py SOURCE TARGET OUT.jsonl PAIR
"""

import json
import sys
from pathlib import Path


def dialogues(source: Path, target: Path, pair: str):
    """Two sentences a dialogue, the second one asked for in the first one's wake."""
    lines = list(
        zip(*(path.read_text(encoding="utf-8").splitlines() for path in (source, target)), strict=True)
    )
    for (first, first_out), (second, second_out) in zip(lines[::2], lines[1::2], strict=False):
        if all(text.strip() for text in (first, first_out, second, second_out)):
            contents = (f"Translate ({pair}): {first}", first_out, f"And this: {second}", second_out)
            roles = ("user", "assistant") * 2
            messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
            yield {"messages": messages, "pair": pair}


def main(source: str, target: str, out: str, pair: str) -> None:
    with open(out, "w", encoding="utf-8") as file:
        for row in dialogues(Path(source), Path(target), pair):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
