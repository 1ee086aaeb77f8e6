"""What torch.compile makes, without its C++ compiler where that is not wanted."""

import contextlib
import functools
from unittest import mock

import torch

from conve_tracin.model.loss import choose_score_terms

# What torch traced runs as it is.
TRACING_ALONE = "aot_eager"


@contextlib.contextmanager
def compiling_by(backend):
    """Let torch.compile use a backend of torch's; yields the list of the functions that were compiled."""
    compile_function = functools.partial(torch.compile, backend=backend)
    compiled = []

    def compile_and_note(function, **options):
        compiled.append(function)
        return compile_function(function, **options)

    torch._dynamo.reset()
    choose_score_terms.cache_clear()
    # Else a function with too many versions would be left as it is, without a word.
    with (
        mock.patch.object(torch, "compile", compile_and_note),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
    ):
        yield compiled
    choose_score_terms.cache_clear()
