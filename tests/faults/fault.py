"""What a fault in the privacy code is, and helpers to write one."""

from dataclasses import dataclass

WHO = "who takes part, and with what rate"
BOUND = "what one unit adds"
NOISE = "noise: Gaussian, independent, of the planned size, on all that leaves"
ALONE = "nothing else leaves"
LEDGER = "the ledger composes exactly these numbers at this delta"
REQUIREMENTS = (WHO, BOUND, NOISE, ALONE, LEDGER)

END_TO_END = "tests/contracts/test_end_to_end.py"
TRAINING = (END_TO_END, "tests/privacy/test_meter.py", "tests/finetune/test_dp_sgd.py", "tests/finetune/test_train.py")
DRAWS = ("tests/privacy/test_noise.py", "tests/privacy/test_meter.py", "tests/privacy/test_mechanisms.py", *TRAINING)
CLIPS = ("tests/privacy/test_clipping.py", "tests/gradients/test_ghost_clipping.py", *TRAINING)
SCORING = (END_TO_END, "tests/saliency/test_score.py", "tests/saliency/test_select.py", "tests/privacy/test_mechanisms.py")
WEIGHTS = ("tests/finetune/test_weights.py", "tests/sampling/test_sample.py", *TRAINING)
COMPOSED = ("tests/privacy/test_audit.py", "tests/privacy/test_compose.py", "tests/privacy/test_accounting.py", "tests/release")
ON_TRAINING = ("fine-tuning, rate 1", "fine-tuning, rate 0.1")
ON_SCORES = ("scores",)
OTHER_IMAGES = "tests/contracts/test_nothing_else_leaves.py::test_what_no_audit_has_seen_is_the_same_for_other_images[rule least]"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what goes wrong.
        breaks: the requirement of the guarantee that it breaks.
        edits: (file below ``dpsapf/``, text that occurs there once, what replaces it).
        tests: test files and folders that should notice, in order.
        attacks: subjects of `tests.contracts.one_run_audit.SUBJECTS`, or other attacks as pytest names them.
    """

    name: str
    breaks: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...] = TRAINING
    attacks: tuple[str, ...] = ON_TRAINING


Edits = tuple[tuple[str, str, str], ...]


def edit(file: str, old: str, new: str) -> Edits:
    """Edit one place."""
    return ((file, old, new),)


def drawn(body: str) -> Edits:
    """Edit the place that gives every source: ``body`` changes ``draws``, the call-th of the count-th source, like ``like``."""
    shaped = f'''EARLIER = {{}}
COUNT = [-1]
LATE = {{count for count in range(6, 10**4) if count & 2}}


class Shaped:
    """Draws that are changed."""

    def __init__(self, source):
        self.kind, self.uniform, self._source, self._call = source.kind, source.uniform, source, -1
        COUNT[0] += 1

    def normal(self, like):
        """Draw."""
        self._call += 1
        draws, count, call = self._source.normal(like), COUNT[0], (self._call, like.shape)
        {body}
        return draws


@dataclass(frozen=True)
class Draws:'''
    return (
        ("privacy/noise.py", "@dataclass(frozen=True)\nclass Draws:", shaped),
        ("privacy/noise.py", "return SystemNoise()", "return Shaped(SystemNoise())"),
        ("privacy/noise.py", "return SeededNoise(torch", "return Shaped(SeededNoise(torch"),
        ("privacy/noise.py", "device=device), dtype)", "device=device), dtype))"),
    )


def system_noise(change: str) -> Edits:
    """Edit the noise of a release alone; a run from a seed stays right."""
    return edit("privacy/noise.py", "return draws.reshape(like.shape)", f"return ({change}).reshape(like.shape)")
