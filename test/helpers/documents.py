"""The documents as data: the commands in them, and whatever else looks like one."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
PROGRAMS = r"(?:[\w./-]*/)?(?:python3?|pip3?|snakemake|make|torchrun|pytest|ruff|source|bash|git|\S+\.sh)"
# What a reader would paste. A script without python in front names its flags in a sentence; in a block it is a command.
COMMAND = re.compile(rf"(?:\$ )?(?:\w+=\S+ )*{PROGRAMS} \S")
SCRIPT = re.compile(r"(?:\$ )?\S+\.py \S")
# Words in capitals stand for something else: such a command cannot be run as it stands.
PLACEHOLDER = re.compile(r"(?<![\w-])[A-Z]+(?![\w-])")
FENCED = re.compile(r"^(`{3,}|~{3,})(\w*)[^\n]*\n(.*?)^\1[ \t]*$", re.DOTALL | re.MULTILINE)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def commands_in(text: str) -> list[str]:
    """List the commands in a text's bash blocks in their order, continuation lines joined, comments left out."""
    blocks = "\n".join(content for _, language, content in FENCED.findall(text) if language == "bash")
    lines = (re.split(r"\s+# ", line)[0].strip() for line in blocks.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def commands_outside(text: str) -> list[str]:
    """List what looks like a command that can be run, but stands in another block or in a sentence."""
    others = [content for _, language, content in FENCED.findall(text) if language != "bash"]
    rest = FENCED.sub("", text)
    others += re.findall(r"^(?: {4}|\t)(.*)$", rest, re.MULTILINE)
    lines = [line.strip() for content in others for line in content.splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", rest)]
    found = [line for line in lines if COMMAND.match(line) or SCRIPT.match(line)]
    return found + [span for span in spans if COMMAND.match(span) and not PLACEHOLDER.search(span)]


def flags_in(text: str) -> set[str]:
    """Return every flag that is named anywhere in a text."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
