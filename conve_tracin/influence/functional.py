"""A scorer as a function of its parameters, for torch.func."""

from collections import defaultdict

from torch import Tensor, nn
from torch.func import functional_call


class FunctionalScorer:
    """Scores triples with other values in the place of some parameters.

    Args:
        scorer: module in eval mode, triples (B, 3) to scores (B,), see `reference`.

    Attributes:
        parameters: {name in the scored model: its value, without gradient tracking}.
    """

    def __init__(self, scorer: nn.Module) -> None:
        self._scorer = scorer
        self.parameters: dict[str, Tensor] = {}
        # A parameter may be held by several modules, and one module may be reached by several ways. functional_call
        # handles the first by itself, but with the second it leaves its substitutes behind in the module.
        self._places: dict[str, list[str]] = defaultdict(list)
        names: dict[nn.Parameter, str] = {}
        for path, module in scorer.named_modules():
            for attribute, parameter in module.named_parameters(recurse=False):
                place = f"{path}.{attribute}" if path else attribute
                name = names.setdefault(parameter, place.removeprefix("model."))
                self._places[name].append(place)
                self.parameters[name] = parameter.detach()

    def __call__(self, values: dict[str, Tensor], triples: Tensor) -> Tensor:
        """Score triples (B, 3) with `values` for the parameters of these names; returns (B,)."""
        substitutes = {place: value for name, value in values.items() for place in self._places[name]}
        return functional_call(self._scorer, substitutes, (triples,), tie_weights=False)
