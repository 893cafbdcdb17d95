"""Names of columns and array members that one stage leaves for another, each with its meaning.

Image archives are ``.npz`` files without pickles: ``images`` uint8 [N, H, W, 3] and ``labels`` int64 [N].
"""

SPLITS = ("train", "validation", "test")

# selection.csv and candidates.csv, one row per candidate matrix
MATRIX = "matrix"  # dotted module name in the UNet
LAYER = "layer"  # dotted name of the module that holds it, e.g. an attention module
BLOCK = "block"  # e.g. down_blocks.0
PROJECTION = "projection"  # to_q, to_k, to_v or to_out.0; the module's own name if it is no attention projection
CANDIDATES = "candidates"  # smallest candidate set that has it: attention, attention+proj, attention+ffn or all-params
PARAMETERS = "parameters"  # entries of the matrix
LORA_PARAMETERS = "lora_parameters_per_rank"  # rows + columns of the matrix; a convolution's columns are inputs x kernel
SCORE = "noisy_score"  # released score, or what method proxy selects by; empty if no scores choose
SELECTED = "selected"  # True if the run trains on it
RANK = "rank"  # of its adapter, 0 where it is not selected; only if ranks differ (lora_rank: auto)
SIGNAL_ENERGY = "signal_energy"  # S: energy of the mean clipped gradient in the matrix, without the release's noise; in C^2
PREDICTED_RISE = "predicted_rise"  # R: what noise alone does to the mean squared prediction; see dpsapf.optimization.noise_walk
RISE_DIGITS = 6  # digits that are kept of it: the noise is simulated, and machines differ in the eighth
NOISE_ENERGY = "noise_energy"  # N: energy of DP-SGD's noise in the matrix' trained parameters, in a step; in C^2

# fragility.csv, one row per candidate matrix: the rise of the mean squared prediction per unit of noise energy in its adapter
FRAGILITY = "fragility"  # h: mean over draws
FRAGILITY_ERROR = "fragility_error"  # standard error of it
COLUMNS = "columns"  # of the matrix; a convolution's are inputs x kernel
SCALE = "scale"  # alpha/rank of the LoRA update that it was measured with
FRAGILITY_SHRUNK = "fragility_shrunk"  # h moved towards the model's mean by as much as its error demands; what selection reads

# gradients.csv, one row per candidate matrix, a column for each draw of a public model's own samples: its squared gradient norm

# runs.csv: one row per run, the scalar fields of Metrics under their own names, and of its dictionaries:
CLASSIFIER_PREFIX = "accuracy_of_"  # accuracy_of_<classifier>
SPENT_PREFIX = "spent_epsilon_"  # spent_epsilon_<accountant>
CERTIFIERS = ("pld", "prv")  # accountants that must both be within the target; rdp is looser, gdp no bound: reported only
NEARLY = 0.95  # of a target epsilon: where less of it is spent, plans and tables say so
STATUS = "status"  # of a run: COMPLETE, or MISSING: the config has it, and it has no metrics; all but its axes is empty then
COMPLETE, MISSING = "complete", "missing"
USED_RATE = "used_learning_rate"  # peak learning rate that was used; the axis learning_rate is empty where it is the config's

FIDELITY = (  # what synthetic images were compared with real ones by; all but four are empty where the protocol has not got them
    "fid",
    "fid_low",
    "fid_high",
    "fid_infinity",
    "kid",
    "kid_spread",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
    "inception_score_spread",
    "fld",
)

# summary.csv: one row per setting, over its seeds; of each metric <metric>_mean, <metric>_sd, <metric>_interval95
SPREAD_METRICS = ("accuracy", "macro_f1", "calibration_error", "fid", "kid", "precision", "recall")
OPTIONAL_METRICS = ("fid_infinity", "density", "coverage", "inception_score", "fld")  # likewise, where the protocol has them
SEEDS = "n"  # complete runs in the group
EXPECTED = "expected"  # runs in the group, missing ones with them
MEAN, SD, INTERVAL = "_mean", "_sd", "_interval95"  # half width of the 95 % t-interval; sd and interval empty if n = 1

# saliency_agreement.csv: one row per score, noise, ratio and draw of the noise; computed outside the guarantee
RANK_CORRELATION = "rank_correlation"  # Spearman's, of the noisy with the noiseless order
OVERLAP = "overlap"  # share of the noiseless top k that is in the noisy top k
AGREEMENT_COLUMNS = ("dataset", "public_model", "score", "sigma_s", "ratio", "seed", RANK_CORRELATION, OVERLAP)

# ranking_stability.csv: one row per score, what varies, its value and the draw; computed outside the guarantee
RANKING_COLUMNS = ("dataset", "public_model", "score", "varied", "value", "ratio", "seed", RANK_CORRELATION, OVERLAP)
