"""A device that is not the CPU, and that every machine has: its tensors say so, and are computed on the CPU.

As on a GPU, an operation on tensors of both devices is an error. "meta" is the one other device whose name torch takes
without its hardware; here it holds numbers.
"""

from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from conve_tracin.influence.engine import folding
from conve_tracin.model.conve import ConvE
from conve_tracin.training import resume

DEVICE = torch.device("meta")
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class TensorElsewhere(torch.Tensor):
    """A tensor that says it is on DEVICE; `here` has its numbers."""

    @staticmethod
    def __new__(cls, here):
        settings = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, device=DEVICE, **settings)

    def __init__(self, here):
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    def tolist(self):
        return self.here.tolist()

    def __reduce_ex__(self, protocol):
        return self.here.__reduce_ex__(protocol)


class OtherDevice(TorchDispatchMode):
    """While it is on, tensors can be made on DEVICE and moved there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args, kwargs):
    """Compute an operation; its result is where its tensors are, or where it is asked for.

    Raises RuntimeError where the tensors are on two devices; as on a GPU, single numbers may be on the CPU.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    elsewhere = [tensor for tensor in tensors if isinstance(tensor, TensorElsewhere)]
    others = [tensor for tensor in tensors if not isinstance(tensor, TensorElsewhere) and tensor.dim() > 0]
    if elsewhere and others and function not in MOVES:
        raise RuntimeError(f"{function}: tensors are on two devices")
    on_device = bool(elsewhere)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]) == DEVICE
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = function(*here(args), **here(kwargs))
    # What is changed in place stays the same object.
    changed = {id(tensor.here): tensor for tensor in elsewhere}
    return tree_map_only(
        torch.Tensor, lambda one: changed.get(id(one), TensorElsewhere(one) if on_device else one), result
    )


def here(value):
    """Bring the tensors in a value to the CPU; they share their numbers."""
    return tree_map_only(TensorElsewhere, lambda tensor: tensor.here, value)


def there(value):
    """Bring the tensors in a value to DEVICE."""
    return tree_map_only(torch.Tensor, lambda tensor: TensorElsewhere(tensor.detach()), value)


def model_here(model):
    """Copy a model to the CPU."""
    copied = ConvE(**model.config.as_dict()).to(model.fc.weight.dtype).eval()
    copied.load_state_dict(here(dict(model.state_dict())))
    return copied


def make_usable(monkeypatch):
    """Help over what torch does with known devices only; what is replaced does the same on the CPU."""
    make_tensor, adam = torch.tensor, torch.optim.Adam

    def tensor(data, *, device=None, **settings):
        made = make_tensor(data, **settings)
        return made if device is None else made.to(device)

    def adam_of_any_device(parameters, *, fused, **settings):
        return adam(parameters, foreach=False, **settings)

    def is_plain_tensor(value, *, known=resume.is_plain_tensor):
        return known(here(value))

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch.optim, "Adam", adam_of_any_device)
    monkeypatch.setattr(resume, "is_plain_tensor", is_plain_tensor)

    # torch.func knows no tensors of other classes.
    def folded_tangent(model, direction, *, known=folding.folded_tangent):
        with _disable_current_modes():
            found = known(model_here(model), replace(direction, dense=here(direction.dense)))
            return found and folding.Convolution(there(found.kernel), there(found.bias))

    def unfolded_gradients(model, *gradients, known=folding.unfolded_gradients):
        with _disable_current_modes():
            return there(known(model_here(model), *here(gradients)))

    monkeypatch.setattr(folding, "folded_tangent", folded_tangent)
    monkeypatch.setattr(folding, "unfolded_gradients", unfolded_gradients)
