rule score_saliency:
    input:
        dataset=lambda w: LAYOUT.dataset(SCORES[w.scores].dataset, "dataset.json"),
        model=lambda w: LAYOUT.model(SCORES[w.scores].public_model, "model.json"),
        candidates=lambda w: LAYOUT.model(SCORES[w.scores].public_model, "candidates.csv"),
        latents=lambda w: LAYOUT.latents(SCORES[w.scores].dataset, SCORES[w.scores].public_model, "latents.safetensors"),
    output:
        scores=LAYOUT.scores("{scores}", "scores.csv"),
        spend=LAYOUT.scores("{scores}", "spend.json"),
    params:
        files=lambda w, input: given(input),
        run=lambda w: flags(SCORES[w.scores], only=("sigma_s", "seed")),
        options=flags(CONFIG.saliency, CONFIG.compute),
        code=code_digest("saliency"),
    log:
        LAYOUT.log("score_saliency", "{scores}"),
    benchmark:
        LAYOUT.benchmark("score_saliency", "{scores}")
    threads: THREADS
    resources:
        **TORCH,
    shell:
        "dpsapf score-saliency {params.files} {params.run} {params.options}"
        " --scores {output.scores} --spend {output.spend} --log {log}"


def selection_inputs(wildcards):
    """The plan, the candidates and, for methods that select, the released scores."""
    run = RUNS[wildcards.run]
    files = {"plan": LAYOUT.run(run.id, "plan.json"), "candidates": LAYOUT.model(run.public_model, "candidates.csv")}
    return files | ({"scores": LAYOUT.scores(run.scores_id, "scores.csv")} if method(run.method).selects else {})


rule select_matrices:
    input:
        unpack(selection_inputs),
    output:
        LAYOUT.run("{run}", "selection.csv"),
    params:
        files=lambda w, input: given(input),
        code=code_digest("saliency"),
    log:
        LAYOUT.log("select_matrices", "{run}"),
    benchmark:
        LAYOUT.benchmark("select_matrices", "{run}")
    threads: 1
    resources:
        mem_mb=1000,
    shell:
        "dpsapf select-matrices {params.files} --out {output} --log {log}"
