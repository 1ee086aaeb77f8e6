"""A stand-in for the recording of CUDA graphs."""

import torch


class Recorder:
    """Computes where a GPU records; a replay that is left out leaves numbers that are none."""

    def __init__(self):
        self.recordings = self.replays = 0

    def __call__(self, compute):
        self.recordings += 1
        results = compute()
        for result in results:
            result.fill_(torch.nan)

        def replay():
            self.replays += 1
            for result, anew in zip(results, compute(), strict=True):
                result.copy_(anew)

        return replay, results
