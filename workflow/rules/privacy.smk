rule plan_privacy:
    input:
        dataset=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.json"),
        candidate_table=lambda w: LAYOUT.model(
            RUNS[w.run].public_model, "candidates.csv"
        ),
    output:
        LAYOUT.run("{run}", "plan.json"),
    log:
        LAYOUT.log("plan_privacy", "{run}"),
    benchmark:
        LAYOUT.benchmark("plan_privacy", "{run}")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        run=lambda w: flags(RUNS[w.run], only=("public_model", "method", "seed", *AXES)),
        options=flags(CONFIG.privacy),
        saliency=flags(CONFIG.saliency, prefix="saliency."),
        evolution=flags(CONFIG.evolution, only=("iterations",), prefix="evolution."),
        code=code_digest("privacy"),
    shell:
        "python -m dpsapf plan-privacy --dataset {input.dataset} --candidate-table {input.candidate_table}"
        " {params.run} {params.options} {params.saliency} {params.evolution} --out {output} --log {log}"


rule audit_privacy:
    input:
        unpack(audit_inputs),
    output:
        LAYOUT.run("{run}", "ledger.json"),
    log:
        LAYOUT.log("audit_privacy", "{run}"),
    benchmark:
        LAYOUT.benchmark("audit_privacy", "{run}")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
    params:
        files=lambda w, input: given(input),
        code=code_digest("privacy"),
    shell:
        "python -m dpsapf audit-privacy {params.files} --out {output} --log {log}"
