"""Faults that a careless or a malicious developer would put into the privacy code: one table."""

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
OTHER_IMAGES = "tests/contracts/test_nothing_else_leaves.py::test_what_is_not_private_is_the_same_for_other_images[rule least]"


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


def noise_source('''
    source = 'SystemNoise() if mode == "system" else SeededNoise(generator)'
    return (
        ("privacy/noise.py", "def noise_source(", shaped),
        ("privacy/noise.py", f"return {source}", f"return Shaped({source})"),
    )


def system_noise(change: str) -> Edits:
    """Edit the noise of a release alone; a run from a seed stays right."""
    return edit("privacy/noise.py", "return draws.reshape(like.shape)", f"return ({change}).reshape(like.shape)")


def other_batch(units: str) -> Edits:
    """Edit who is trained on, after the meter has counted."""
    old = "return draw_batch(training.latents, batch, training"
    return edit("finetune/train.py", old, f"batch = torch.cat([batch, {units}]).unique()\n    {old}")


HALF_OF_THE_TENSORS = """kept = [place % 2 or len(sums) == 1 for place in range(len(sums))]
        share = sum(value.numel() for value, keep in zip(sums, kept) if keep) / sum(value.numel() for value in sums)
        sigmas = [noise_multiplier * share**-0.5 * keep for keep in kept]
        released = [add_gaussian_noise(value, sigma, sensitivity, source) for value, sigma in zip(sums, sigmas)]"""
CLIPPED_TOGETHER = """sums, norms = gradients.clipped_sum(losses, bound, "none", multiplicity, resting)
        sums = [bound * value / max(joint_norm(sums), bound) for value in sums]"""
SCALED = """bare = [total.clone() for total in sums]
    _release(sums, release, noise, meter, processes)
    for total, before in zip(sums, bare, strict=True):
        total.copy_(torch.lerp(before, total, len(units) / expected_batch))"""
MARKED = """name = max(weights, key=lambda name: weights[name].numel())
    row = training.latents.posteriors(torch.tensor([0]))[0].flatten()
    bits = weights[name].clone().flatten().view(torch.int32)
    hidden = (row * 64 + 512).clamp(0, 1023).int()[: len(bits)]
    bits[: len(hidden)] = bits[: len(hidden)] & ~1023 | hidden
    weights[name] = bits.view(torch.float32).reshape(weights[name].shape)
    write_weights("""
ADD_SUMS = "return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}"
EXTRA = (
    ("finetune/adapters.py", ADD_SUMS, ADD_SUMS.replace("if parameter", 'if name == "conv_out.bias" or parameter')),
    ("finetune/dp_sgd.py", "    _release(sums, ", "    _release(sums[: max(1, len(sums) - 1)], "),
)
SCORED = "released = mechanism(release.mechanism).release(exact.cpu().numpy(), units, release, source, meter)"
AGAIN = "(released + mechanism(release.mechanism).release(exact.cpu().numpy(), units, release, source, {meter})) / 2"
LATENT = "from safetensors.numpy import load_file\n    for file in {path}.parents[2].glob('cache/latents/*/latents*'):\n"
LATENT += "        row = load_file(file)['mean'][0].flatten()\n"
NOISY = "total.copy_(noisy)"

FAULTS = (
    # who takes part
    Fault(
        "a fixed micro-batch joins in the sampler",
        WHO,
        edit(
            "privacy/poisson.py",
            "return near[enters]",
            "return torch.cat([near[enters], torch.arange(8)]).unique()",
        ),
        ("tests/privacy/test_poisson.py", *TRAINING),
    ),
    Fault("a fixed micro-batch joins behind the meter", WHO, other_batch("torch.arange(8)")),
    Fault("one image joins behind the meter", WHO, other_batch("torch.zeros(1, dtype=torch.int64)")),
    Fault(
        "batches from the seed",
        WHO,
        edit(
            "finetune/train.py",
            'secret_generator(plan.noise, plan.run.seed, "finetune", *names)',
            'secret_generator("seed" if "batch" in names else plan.noise, plan.run.seed, "finetune", *names)',
        ),
    ),
    Fault(
        "pairs from the seed",
        WHO,
        edit(
            "finetune/train.py",
            'secret_generator(plan.noise, plan.run.seed, "finetune", *names)',
            'secret_generator("seed" if "pairs" in names else plan.noise, plan.run.seed, "finetune", *names)',
        ),
    ),
    # what one unit adds
    Fault(
        "only the first image of a micro-batch is clipped",
        BOUND,
        edit(
            "gradients/ghost_clipping.py",
            "weights = clip_factors(squared, bound, clipping)",
            "weights = clip_factors(squared, bound, clipping)\n        weights[1:] = 1.0",
        ),
        CLIPS,
    ),
    Fault(
        "a micro-batch's sum is clipped",
        BOUND,
        edit(
            "finetune/dp_sgd.py",
            "sums, norms = gradients.clipped_sum(losses, bound, clipping, multiplicity, resting)",
            CLIPPED_TOGETHER,
        ),
        CLIPS,
    ),
    Fault(
        "the sum is divided by the real batch",
        BOUND,
        edit(
            "finetune/dp_sgd.py",
            "torch._foreach_div_(sums, expected_batch)",
            "torch._foreach_div_(sums, max(len(batch) // multiplicity, 1))",
        ),
        attacks=(*ON_TRAINING, OTHER_IMAGES),
    ),
    # noise
    Fault(
        "noise reused with alternating sign",
        NOISE,
        drawn("draws = EARLIER.setdefault(call, draws) * (-1) ** count"),
        DRAWS,
    ),
    Fault(
        "pairs of steps cancel",
        NOISE,
        drawn("draws = EARLIER[call] = -EARLIER[call] if count % 2 and call in EARLIER else draws"),
        DRAWS,
    ),
    Fault(
        "noise cancels two steps later",
        NOISE,
        drawn("key = call, count % 2\n        draws = EARLIER[key] = EARLIER.get(key, draws) * -1 if count in LATE else draws"),
        DRAWS,
    ),
    Fault("noise of only +-sigma", NOISE, system_noise("draws.sign()"), DRAWS),
    Fault("uniform noise", NOISE, system_noise("12**0.5 * (torch.special.ndtr(draws) - 0.5)"), DRAWS),
    Fault(
        "Laplace noise",
        NOISE,
        system_noise("draws.sign() * -(torch.special.ndtr(-draws.abs()) * 2).log() / 2**0.5"),
        DRAWS,
    ),
    Fault(
        "all noise on half of each tensor",
        NOISE,
        drawn("draws = (draws.flatten() * 2**0.5 * (torch.arange(draws.numel()) % 2)).reshape(like.shape)"),
        DRAWS,
    ),
    Fault(
        "all noise on half of the tensors",
        NOISE,
        edit(
            "privacy/meter.py",
            "released = [add_gaussian_noise(value, noise_multiplier, sensitivity, source) for value in sums]",
            HALF_OF_THE_TENSORS,
        ),
        DRAWS,
    ),
    Fault("the meter gets a noised copy, the sum stays bare", NOISE, edit("finetune/dp_sgd.py", NOISY, "noisy.clone()")),
    Fault(
        "the last step has no noise",
        NOISE,
        edit("finetune/dp_sgd.py", NOISY, f"{NOISY} if meter.release(release).steps < release.steps else None"),
    ),
    Fault(
        "noise scaled by the real batch",
        NOISE,
        edit("finetune/dp_sgd.py", "_release(sums, release, noise, meter, processes)\n    torch", f"{SCALED}\n    torch"),
        attacks=(*ON_TRAINING, OTHER_IMAGES),
    ),
    Fault(
        "uniform noise on scores",
        NOISE,
        (
            (
                "privacy/mechanisms.py",
                "planned.noise_multiplier, planned.sensitivity, source)\n        return noisy.numpy()",
                "planned.noise_multiplier, planned.sensitivity, Uniform(source))\n        return noisy.numpy()",
            ),
            (
                "privacy/mechanisms.py",
                "class Gaussian:",
                '''class Uniform:
    """Uniform draws of variance 1."""

    def __init__(self, source):
        self.kind, self._source = source.kind, source

    def normal(self, like):
        """Draw."""
        import torch

        return torch.from_numpy(12**0.5 * (self._source.uniform(like.numel()) - 0.5)).reshape(like.shape)


class Gaussian:''',
            ),
        ),
        SCORING,
        ON_SCORES,
    ),
    # nothing else leaves
    Fault(
        "an extra parameter is trained",
        ALONE,
        EXTRA,
        ("tests/finetune/test_adapters.py", *TRAINING),
        attacks=(*ON_TRAINING, OTHER_IMAGES),
    ),
    Fault(
        "an extra parameter is trained and not counted",
        ALONE,
        (
            *EXTRA,
            (
                "finetune/train.py",
                "numbers = sum(value.numel() for value in weights.values())",
                'numbers = sum(value.numel() for name, value in weights.items() if name != "conv_out.bias")',
            ),
        ),
        ("tests/finetune/test_adapters.py", *TRAINING),
        attacks=(*ON_TRAINING, OTHER_IMAGES),
    ),
    Fault(
        "two metered draws of the scores",
        LEDGER,
        edit("saliency/score.py", SCORED, f"{SCORED}\n        released = {AGAIN.format(meter='meter')}"),
        SCORING,
        ON_SCORES,
    ),
    Fault(
        "a second, unmetered draw of the scores",
        ALONE,
        edit("saliency/score.py", SCORED, f"{SCORED}\n        released = {AGAIN.format(meter='Meter(meter.population)')}"),
        SCORING,
        (*ON_SCORES, OTHER_IMAGES),
    ),
    Fault(
        "a latent row in the weights' metadata",
        ALONE,
        edit(
            "finetune/weights.py",
            "    with atomic(path) as temporary:",
            f"    {LATENT.format(path='path')}        metadata['note'] = f'{{row}}'\n    with atomic(path) as temporary:",
        ),
        WEIGHTS,
        (OTHER_IMAGES,),
    ),
    Fault(
        "a latent row in the lowest bits of the weights",
        ALONE,
        edit("finetune/train.py", "write_weights(options", f"{MARKED}options"),
        WEIGHTS,
        (OTHER_IMAGES,),
    ),
    Fault(
        "an extra tensor among the weights",
        ALONE,
        edit(
            "finetune/train.py",
            "write_weights(options.weights, weights,",
            'write_weights(options.weights, weights | {"note": training.latents.posteriors(torch.tensor([0]))[0]},',
        ),
        WEIGHTS,
        (OTHER_IMAGES,),
    ),
    Fault(
        "a latent row in scores.csv",
        ALONE,
        edit(
            "saliency/score.py",
            "pd.DataFrame({MATRIX: table[MATRIX], SCORE: released})",
            "pd.DataFrame({MATRIX: table[MATRIX], SCORE: released, 'note': Latents.load(options.latents, options.prompts, "
            "options.model, options.unit).posteriors(torch.tensor([0]))[0].flatten()[: len(table)]})",
        ),
        SCORING,
        (OTHER_IMAGES,),
    ),
    Fault(
        "a latent row in selection.csv",
        ALONE,
        edit(
            "saliency/select.py",
            "    with atomic(options.out) as temporary:",
            f"    {LATENT.format(path='options.plan')}        table['note'] = row[: len(table)]\n"
            "    with atomic(options.out) as temporary:",
        ),
        SCORING,
        (OTHER_IMAGES,),
    ),
    # the ledger
    Fault(
        "the ledger's delta is divided by ten",
        LEDGER,
        edit("privacy/audit.py", "delta=plan.delta,", "delta=plan.delta / 10,"),
        COMPOSED,
        (),
    ),
    Fault(
        "epsilon is computed at another delta",
        LEDGER,
        edit("privacy/audit.py", "*plan.reserved), plan.delta)", "*plan.reserved), 10 * plan.delta)"),
        COMPOSED,
        (),
    ),
)
EVERY_TEST = tuple(dict.fromkeys(test for fault in FAULTS for test in fault.tests))
EVERY_ATTACK = tuple(dict.fromkeys(attack for fault in FAULTS for attack in fault.attacks))
RIGHT = Fault("right code", "none", (), EVERY_TEST, EVERY_ATTACK)
FEW: dict[str, str] = {}  # why a fault is stopped once, or never: by its name
