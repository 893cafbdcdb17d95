rule score_saliency:
    input:
        unpack(score_inputs),
    output:
        scores=LAYOUT.scores("{scores}", "scores.csv"),
        spend=LAYOUT.scores("{scores}", "spend.json"),
        private=LAYOUT.scores("{scores}", "private.json"),
    log:
        LAYOUT.log("score_saliency", "{scores}"),
    benchmark:
        LAYOUT.benchmark("score_saliency", "{scores}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("score_saliency"),
    params:
        files=lambda w, input: given(input),
        run=lambda w: score_flags(SCORES[w.scores]),
        options=f"{flags(CONFIG.saliency)} {PRECISION}",
        privacy=flags(CONFIG.privacy, only=("delta", "unit", "noise")),
        code=code_digest("score-saliency"),
    shell:
        "$LAUNCH dpsapf score-saliency {params.files} {params.run} {params.options} $SPEED --threads ${{GRANTED:-{threads}}} {params.privacy}"
        " --scores {output.scores} --spend {output.spend} --private {output.private} --log {log}"


rule compare_scores:
    input:
        dataset=LAYOUT.dataset("{dataset}", "dataset.json"),
        model=LAYOUT.model("{public_model}", "model.json"),
        candidate_table=LAYOUT.model("{public_model}", "candidates.csv"),
        latents=LAYOUT.latents("{dataset}", "{public_model}", "latents.safetensors"),
        prompts=LAYOUT.latents("{dataset}", "{public_model}", "prompts.safetensors"),
    output:
        LAYOUT.table("saliency_agreement--{dataset}--{public_model}.csv"),
    log:
        LAYOUT.log("compare_scores", "{dataset}--{public_model}"),
    benchmark:
        LAYOUT.benchmark("compare_scores", "{dataset}--{public_model}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("compare_scores"),
    params:
        files=lambda w, input: given(input),
        options=flags(CONFIG.saliency),
        code=code_digest("compare-scores"),
    shell:
        "python -m dpsapf compare-scores {params.files} {params.options} $SPEED --threads ${{GRANTED:-{threads}}} --out {output} --log {log}"


rule compare_rankings:
    input:
        dataset=LAYOUT.dataset("{dataset}", "dataset.json"),
        model=LAYOUT.model("{public_model}", "model.json"),
        candidate_table=LAYOUT.model("{public_model}", "candidates.csv"),
        latents=LAYOUT.latents("{dataset}", "{public_model}", "latents.safetensors"),
        prompts=LAYOUT.latents("{dataset}", "{public_model}", "prompts.safetensors"),
    output:
        LAYOUT.table("ranking_stability--{dataset}--{public_model}.csv"),
    log:
        LAYOUT.log("compare_rankings", "{dataset}--{public_model}"),
    benchmark:
        LAYOUT.benchmark("compare_rankings", "{dataset}--{public_model}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("compare_rankings"),
    params:
        files=lambda w, input: given(input),
        options=flags(CONFIG.saliency),
        code=code_digest("compare-rankings"),
    shell:
        "python -m dpsapf compare-rankings {params.files} {params.options} $SPEED --threads ${{GRANTED:-{threads}}} --out {output} --log {log}"


rule measure_fragility:
    input:
        dataset=LAYOUT.dataset("{dataset}", "dataset.json"),
        model=LAYOUT.model("{public_model}", "model.json"),
        candidate_table=LAYOUT.model("{public_model}", "candidates.csv"),
    output:
        LAYOUT.fragility("{dataset}", "{public_model}", "{candidates}"),
    log:
        LAYOUT.log("measure_fragility", "{dataset}--{public_model}--{candidates}"),
    benchmark:
        LAYOUT.benchmark("measure_fragility", "{dataset}--{public_model}--{candidates}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("measure_fragility"),
    params:
        files=lambda w, input: given(input),
        adapter=flags(CONFIG.finetune, only=("lora_rank", "lora_alpha")),
        code=code_digest("measure-fragility"),
    shell:
        "python -m dpsapf measure-fragility {params.files} --candidates {wildcards.candidates} {params.adapter} $SPEED --threads ${{GRANTED:-{threads}}} --out {output} --log {log}"


rule measure_gradients:
    input:
        dataset=LAYOUT.dataset("{dataset}", "dataset.json"),
        model=LAYOUT.model("{public_model}", "model.json"),
        candidate_table=LAYOUT.model("{public_model}", "candidates.csv"),
    output:
        LAYOUT.gradients("{dataset}", "{public_model}", "{candidates}"),
    log:
        LAYOUT.log("measure_gradients", "{dataset}--{public_model}--{candidates}"),
    benchmark:
        LAYOUT.benchmark("measure_gradients", "{dataset}--{public_model}--{candidates}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("measure_gradients"),
    params:
        files=lambda w, input: given(input),
        code=code_digest("measure-gradients"),
    shell:
        "python -m dpsapf measure-gradients {params.files} --candidates {wildcards.candidates} $SPEED --threads ${{GRANTED:-{threads}}} --out {output} --log {log}"


rule select_matrices:
    input:
        unpack(selection_inputs),
    output:
        out=LAYOUT.run("{run}", "selection.csv"),
        record=LAYOUT.run("{run}", "selection.json"),
    log:
        LAYOUT.log("select_matrices", "{run}"),
    benchmark:
        LAYOUT.benchmark("select_matrices", "{run}")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        files=lambda w, input: given(input),
        adapter=flags(CONFIG.finetune, only=UPDATES),
        rate=CONFIG.finetune.learning_rate_lora,
        code=code_digest("select-matrices"),
    shell:
        "python -m dpsapf select-matrices {params.files} {params.adapter} --learning-rate {params.rate} --out {output.out} --record {output.record} --log {log}"
