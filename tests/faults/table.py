"""Faults that a careless or a malicious developer would put into the privacy code: one table."""

from tests.faults.fault import (
    ALONE,
    BOUND,
    CLIPS,
    COMPOSED,
    DRAWS,
    LEDGER,
    NOISE,
    ON_SCORES,
    ON_TRAINING,
    OTHER_IMAGES,
    SCORING,
    TRAINING,
    WEIGHTS,
    WHO,
    Edits,
    Fault,
    drawn,
    edit,
    system_noise,
)
from tests.faults.unseen import UNSEEN


def other_batch(units: str) -> Edits:
    """Edit who is trained on, after the meter has counted."""
    old = "return draw_batch(training.latents, batch, training"
    return edit("finetune/train.py", old, f"batch = torch.cat([batch, {units}]).unique()\n    {old}")


HALF_OF_THE_TENSORS = """share = sum(part.numel() for part in parts[1::2]) / sum(sizes)
                for place, part in enumerate(parts):
                    sigma = noise_multiplier * (share**-0.5 * (place % 2) if share else 1)
                    noisy = add_gaussian_noise(part, sigma, sensitivity, spacing, source)"""
CLIPPED_TOGETHER = """sums, norms = gradients.clipped_sum(losses, bound, "none", multiplicity, resting)
        sums = [bound * value / max(joint_norm(sums), bound) for value in sums]"""
RELEASED = "released = _released(Private(sums), release, noise, meter, processes)"
LAST_BARE = "released = released if meter.release(release).steps < release.steps else Released(tuple(bare), released.expected)"
SCALED = f"""bare = [part.clone() for part in sums]
    {RELEASED}
    share = len(units) / released.expected
    noisy = zip(bare, released.values, strict=True)
    released = Released(tuple(torch.lerp(before, after, share) for before, after in noisy), released.expected)"""
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
    (
        "finetune/dp_sgd.py",
        "    released = _released(Private(sums), release, noise, meter, processes)",
        """    released = _released(Private(sums[: max(1, len(sums) - 1)]), release, noise, meter, processes)
    released = Released((*released.values, *sums[len(released.values) :]), released.expected)""",
    ),
)
SCORED = "released = mechanism(release.mechanism).release(exact, units, release, source, meter)"
COPY = "copy = Private([part.clone() for part in exact.opened()])"
AGAIN = "again = mechanism(release.mechanism).release(copy, units, release, source, {meter})"
MEAN = "released = Released(((released.values[0] + again.values[0]) / 2,))"
FILES = "[file for folder in {path}.parents for file in folder.glob('cache/latents/*/latents*')]"
LATENT = (
    f"from safetensors.numpy import load_file\n    for file in {FILES}:\n        row = load_file(file)['mean'][0].flatten()\n"
)
WRITTEN = "with writing(path, layout, {HEADER: json.dumps(as_json(header), sort_keys=True)"
NOISY = "part.copy_(noisy)"

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
            "_draws(plan).secret(*names)",
            'Draws("seed" if "batch" in names else plan.noise, plan.run.seed, "finetune").secret(*names)',
        ),
    ),
    Fault(
        "pairs from the seed",
        WHO,
        edit(
            "finetune/train.py",
            "_draws(plan).secret(*names)",
            'Draws("seed" if "pairs" in names else plan.noise, plan.run.seed, "finetune").secret(*names)',
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
            "released.means()",
            "(value / max(len(batch) // multiplicity, 1) for value in released.values)",
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
            "for part in parts:\n"
            "                    noisy = add_gaussian_noise(part, noise_multiplier, sensitivity, spacing, source)",
            HALF_OF_THE_TENSORS,
        ),
        DRAWS,
    ),
    Fault("the meter gets a noised copy, the sum stays bare", NOISE, edit("privacy/meter.py", NOISY, "noisy.clone()")),
    Fault(
        "the last step has no noise",
        NOISE,
        (("finetune/dp_sgd.py", RELEASED, f"bare = [part.clone() for part in sums]\n    {RELEASED}\n    {LAST_BARE}"),),
    ),
    Fault(
        "noise scaled by the real batch",
        NOISE,
        edit("finetune/dp_sgd.py", RELEASED, SCALED),
        attacks=(*ON_TRAINING, OTHER_IMAGES),
    ),
    Fault(
        "uniform noise on scores",
        NOISE,
        (
            (
                "privacy/mechanisms.py",
                "return meter.gaussian(scores, planned.noise_multiplier, planned.sensitivity, source)",
                "return meter.gaussian(scores, planned.noise_multiplier, planned.sensitivity, Uniform(source))",
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

        draws = torch.tensor([float(draw) for draw in self._source.uniform(like.numel())], dtype=torch.float64)
        return 12**0.5 * (draws - 0.5).reshape(like.shape)


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
        edit("saliency/score.py", SCORED, "\n        ".join((COPY, SCORED, AGAIN.format(meter="meter"), MEAN))),
        SCORING,
        ON_SCORES,
    ),
    Fault(
        "a second, unmetered draw of the scores",
        ALONE,
        edit("saliency/score.py", SCORED, "\n        ".join((COPY, SCORED, AGAIN.format(meter="Meter(meter.population)"), MEAN))),
        SCORING,
        (*ON_SCORES, OTHER_IMAGES),
    ),
    Fault(
        "a latent row in the weights' metadata",
        ALONE,
        edit(
            "finetune/weights.py",
            f"    {WRITTEN}",
            f"    {LATENT.format(path='path')}    {WRITTEN}, 'note': f'{{row}}'",
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
            "    _write_scores(options.scores, table, released)",
            "    _write_scores(options.scores, table, released)\n"
            "    latents = Latents.load(options.latents, options.prompts, options.model, options.unit)\n"
            "    row = latents.posteriors(torch.tensor([0]))[0]\n"
            "    pd.read_csv(options.scores).assign(note=row.flatten()[: len(table)]).to_csv(options.scores, index=False)",
        ),
        SCORING,
        (OTHER_IMAGES,),
    ),
    Fault(
        "a latent row in selection.csv",
        ALONE,
        edit(
            "saliency/select.py",
            "    columns = [*table, *selection_columns(run)]",
            f"    {LATENT.format(path='options.plan')}        table['note'] = row[: len(table)]\n"
            "    columns = [*table, *selection_columns(run)]",
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
        edit("privacy/audit.py", "*releases), plan.delta)", "*releases), 10 * plan.delta)"),
        COMPOSED,
        (),
    ),
)
EVERY_TEST = tuple(dict.fromkeys(test for fault in (*FAULTS, *UNSEEN) for test in fault.tests))
EVERY_ATTACK = tuple(dict.fromkeys(attack for fault in (*FAULTS, *UNSEEN) for attack in fault.attacks))
RIGHT = Fault("right code", "none", (), EVERY_TEST, EVERY_ATTACK)
FEW: dict[str, str] = {}  # why a fault is stopped once, or never: by its name
