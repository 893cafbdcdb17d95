"""Work on a GPU that is recorded once, as a CUDA graph, and then replayed: its thousands of launches become one.

A GPU that does a pass of a denoiser faster than Python asks for its parts waits for Python most of the time.
"""

import functools
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

LOG = logging.getLogger(__name__)
RECORDINGS = 2  # of a kind of work: each keeps its memory; a unit alone, and a whole micro-batch

_ALLOWED = ContextVar("replay allowed", default=True)

Tensors = tuple[torch.Tensor, ...]
Work = Callable[..., Tensors]


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors

    def replay(self, inputs: Tensors) -> Tensors:
        for place, given in zip(self.inputs, inputs, strict=True):
            place.copy_(given)
        self.graph.replay()
        return self.outputs


class Replay:
    """Calls functions of tensors; on a GPU, from the second time that inputs have their shapes, as a recording.

    What is done is the same, launch by launch; results agree to rounding. On a CPU, and where recording fails, functions are
    just called.

    Attributes:
        records: whether work is recorded: inputs that are filled up to one shape are then quicker than those that vary.

    Args:
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.records = device == "cuda"
        self._seen: set[Hashable] = set()
        self._recordings: dict[Hashable, dict[Hashable, _Recording]] = {}

    def __call__(self, work: Work, inputs: Tensors, kind: Hashable = ()) -> Tensors:
        """Call ``work(*inputs)``.

        Args:
            work: makes the CPU wait for nothing on the GPU, draws nothing, and leaves no tensor behind but its results, which
                depend on nothing that changes from call to call but the inputs and what tensors hold.
            inputs: tensors.
            kind: all else that the results depend on: another kind is recorded apart.

        Returns:
            Its results; the next call may overwrite them.
        """
        if not (self.records and _ALLOWED.get()):
            return work(*inputs)
        recordings, shapes = self._recordings.setdefault(kind, {}), tuple((part.shape, part.dtype) for part in inputs)
        if shapes in recordings:
            return recordings[shapes].replay(inputs)
        if (kind, shapes) not in self._seen or len(recordings) == RECORDINGS:
            self._seen.add((kind, shapes))
            return work(*inputs)
        try:
            recordings[shapes] = _recorded(work, inputs)
        except RuntimeError as error:  # too little memory is one
            LOG.warning("not recorded as a CUDA graph, which only costs time: %s", error)
            self.records = False
            self._recordings.clear()
            return work(*inputs)
        return recordings[shapes].replay(inputs)


NO_REPLAY = Replay("cpu")


@contextmanager
def without_replay() -> Iterator[None]:
    """Record and replay nothing meanwhile: for who counts what is launched."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def _recorded(work: Work, inputs: Tensors) -> _Recording:
    places, graph = tuple(part.to("cuda", copy=True) for part in inputs), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = work(*places)
    return _Recording(graph, places, outputs)


def replayed(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """Let a module, of which nothing is trained, replay its forward pass where it is called with ``return_dict=False``.

    Args:
        module: changed in place; takes and gives tensors, also in lists and dictionaries.
        device: see `Replay`.
    """
    forward, replay = module.forward, Replay(device)
    if not replay.records:
        return module

    given_back: dict[Hashable, pytree.TreeSpec] = {}  # how results are nested, by kind of call

    @functools.wraps(forward)
    def called(*arguments: object, **named: object) -> object:
        if named.get("return_dict", True) or torch.is_grad_enabled():
            return forward(*arguments, **named)
        leaves, structure = pytree.tree_flatten((arguments, named))
        kind = str(structure), tuple((place, leaf) for place, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

        def work(*tensors: torch.Tensor) -> Tensors:
            given = dict(enumerate(leaves)) | dict(zip(places, tensors, strict=True))
            positional, by_name = pytree.tree_unflatten(list(given.values()), structure)
            found, shape = pytree.tree_flatten(forward(*positional, **by_name))
            given_back[kind] = shape
            return tuple(found)

        found = replay(work, tuple(leaves[place] for place in places), kind)
        return pytree.tree_unflatten([part.clone() for part in found], given_back[kind])

    module.forward = called
    return module
