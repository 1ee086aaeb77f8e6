"""The name of an epoch's checkpoint, checkpoint_epoch_N.pt; the pipeline asks for it without importing torch."""

import re
from pathlib import Path

EPOCH_CHECKPOINTS = "checkpoint_epoch_*.pt"

# The second form is what convert_checkpoint.py makes of the first.
_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_pykeen)?\.pt")


def epoch_checkpoint(directory: Path, epoch: int) -> Path:
    """Return the path of an epoch's checkpoint."""
    return directory / EPOCH_CHECKPOINTS.replace("*", str(epoch))


def epoch_in(path: Path) -> int:
    """Read N out of the name of a checkpoint, converted or not; −1 if it has another name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1
