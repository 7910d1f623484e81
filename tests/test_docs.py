"""Shell blocks of README.md and docs/ are run as they stand, in order, at reduced size.

A block is run, unless a comment just before it gives a reason: `<!-- not run: needs a TPU -->`, or
`<!-- run by .ci/run -->`. What is made smaller is written in `SMALLER`, so a block cannot drift.
"""

import dataclasses
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
STAGE = "tests/defi_jax/training/real_stages.py"  # the real stages, shrunk

# Document -> what it says and what is typed instead.
SMALLER = {
    "README.md": {
        "configs/gfdm.py:tiny": f"{STAGE}:gfdm",
        "configs/gidm.py:tiny": f"{STAGE}:gidm",
        "configs/joint.py:tiny": f"{STAGE}:joint",
        "configs/gfdm.py ": f"{STAGE}:gfdm ",
        "--config.steps=100": "--config.steps=2",
        ",button-press-topdown-v3,window-open-v3,window-close-v3": "",
        "--episodes=50": "--episodes=2",
        "--benchmark=metaworld": "--benchmark=metaworld --episodes=1",
        "--config.data.mixture=bridge ": "--config.data.mixture=metaworld ",
        "--config.weights.svd_vae=W/vae --config.weights.clip_text=W/clip": "",
        "--steps=10": "--steps=2",
    },
    "docs/benchmarks.md": {
        "configs/gidm.py:small": f"{STAGE}:gidm",
        "configs/joint.py:tiny": f"{STAGE}:joint",
        "--store=DATA/rt1": "--store=runs/data/metaworld",
        "=DATA": "=runs/data",
        "mixture=rt1": "mixture=metaworld",
        "image_size=224": "image_size=16",
        "--copies=100": "--copies=2",
        "--seconds=8": "--seconds=1",
        "--seconds=20": "--seconds=1",
        "--rounds=3": "--rounds=1",
        "--workdir=W": "--workdir=runs/other",
        "init.gfdm=G": "init.gfdm=runs/gfdm",
    },
    "docs/open_x.md": {"configs/gidm.py:tiny": f"{STAGE}:gidm"},
}

_COMMANDS = "python|make|git|pip|bash|cd|tfds|export"
_SHELL = re.compile(rf"(?:\$ )?(?:[A-Z_]+=\S* ?)*(?:{_COMMANDS})\b|[A-Z_]+=\S+$", re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
_BY_CI = "<!-- run by .ci/run -->"


@dataclasses.dataclass(frozen=True)
class Block:
    document: str
    line: int
    text: str
    comment: str  # just before it, "" where there is none
    language: str  # of a fence

    @property
    def is_shell(self) -> bool:
        return self.language in ("sh", "bash", "shell", "console") or bool(_SHELL.match(self.text))

    @property
    def is_python(self) -> bool:
        return self.language == "python" or bool(re.match(r"(from|import) \w", self.text))

    @property
    def is_run(self) -> bool:
        return not self.comment and (self.is_shell or self.is_python)


def blocks(document: str, text: str) -> list[Block]:
    """Returns the fenced blocks and those indented by four blanks after an empty line."""
    found, lines, number, comment = [], text.splitlines(), 0, ""
    while number < len(lines):
        line, start = lines[number], number
        if line.startswith("```"):
            number = lines.index("```", number + 1)
            content, language = lines[start + 1 : number], line[3:].strip()
        elif line.startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            while number + 1 < len(lines) and re.match(r"    |$", lines[number + 1]):
                number += 1
            content, language = [row[4:] for row in lines[start : number + 1]], ""
        else:
            number += 1
            comment = line if line.strip() else comment
            continue
        before = comment if comment.startswith("<!-- ") else ""
        found.append(Block(document, start + 1, "\n".join(content).strip(), before, language))
        number, comment = number + 1, ""
    return found


ALL = [b for name in DOCUMENTS for b in blocks(name, (ROOT / name).read_text())]


@pytest.mark.parametrize("block", [b for b in ALL if b.is_shell or b.is_python], ids=str)
def test_every_block_is_run_or_says_why_not(block):
    if block.comment == _BY_CI:
        script = (ROOT / ".ci" / "run").read_text()
        targets = re.findall(r"\bmake ([a-z-]+)", block.text)
        assert targets, "only targets of make are run there"
        for target in targets:
            assert f"make {target}" in script, f".ci/run does not run `make {target}`"
    elif block.is_run:
        assert block.document in SMALLER, "make it smaller in SMALLER, or say why not"
    else:
        assert _NOT_RUN.fullmatch(block.comment), block.comment


@pytest.mark.parametrize("document", SMALLER)
def test_what_is_made_smaller_is_there(document):
    text = "\n".join(b.text for b in ALL if b.document == document and b.is_run)
    assert [words for words in SMALLER[document] if words not in text] == []


def test_blocks_are_found_with_their_comments():
    text = "a\n\n    make demo\n    more\n\n<!-- not run: no -->\n\n    X=1 python x\n"
    text += "\n```\nfrom a\n```\n"
    found = blocks("d", text)
    assert [(b.line, b.text, b.comment) for b in found] == [
        (3, "make demo\nmore", ""),
        (8, "X=1 python x", "<!-- not run: no -->"),
        (10, "from a", ""),
    ]
    assert [b.is_shell for b in found] == [True, True, False]
