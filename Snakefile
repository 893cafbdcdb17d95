"""DP-SAPF from sensitive images to the paper's tables and figures. Data flows from top to bottom."""

from snakemake.utils import min_version

from dpsapf.support.errors import UserError
from dpsapf.support.yaml_files import load_yaml

min_version("9.27")

CONFIGFILES = workflow.configfiles or ["config/config.yaml"]
try:
    for file in CONFIGFILES:
        load_yaml(file)  # Snakemake's own reader takes the last of two equal keys
except UserError as error:
    raise WorkflowError(str(error)) from None

if not workflow.configfiles:

    configfile: CONFIGFILES[0]


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/public_models.smk"
include: "workflow/rules/privacy.smk"
include: "workflow/rules/saliency.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/sampling.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/external.smk"
include: "workflow/rules/evolution.smk"
include: "workflow/rules/aggregation.smk"
include: "workflow/rules/paper_figures.smk"


onstart:
    try:
        if not workflow.local_exec:
            slurm.mend(LAYOUT.root, SITE)
        HELD.append(alone.hold(LAYOUT.root))
        slurm_queue.end_leftovers(LAYOUT.root, SITE.away_min)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    if WARM and workflow.local_exec:  # which executor it is, is not known before
        warm.start()


rule all:
    default_target: True
    input:
        [LAYOUT.run(run, "metrics.json") for run in RUNS],
        [LAYOUT.run(run, "ledger.json") for run in RUNS if re.fullmatch(OWN, run)],
        LAYOUT.figures,
        LAYOUT.report,
