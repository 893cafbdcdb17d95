rule plan_privacy:
    input:
        unpack(plan_inputs),
    output:
        LAYOUT.run("{run}", "plan.json"),
    log:
        LAYOUT.log("plan_privacy", "{run}"),
    benchmark:
        LAYOUT.benchmark("plan_privacy", "{run}")
    wildcard_constraints:
        run=OWN,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        files=lambda w, input: given(input),
        run=lambda w: flags(RUNS[w.run], only=("public_model", "method", "seed", *AXES)),
        options=flags(CONFIG.privacy),
        saliency=flags(CONFIG.saliency, prefix="saliency."),
        evolution=flags(CONFIG.evolution, only=("iterations",), prefix="evolution."),
        calibrations=LAYOUT.calibrations,
        code=code_digest("plan-privacy"),
    shell:
        "python -m dpsapf plan-privacy {params.files} {params.run} {params.options} {params.saliency} {params.evolution}"
        " --calibrations {params.calibrations} --out {output} --log {log}"


rule plans_made:
    input:
        [
            LAYOUT.run(run.id, "plan.json")
            for run in ASKED
            if run.id not in CONFIG.made_elsewhere
        ],
    output:
        f"{LAYOUT.root}/{{place}}/{PLANNED}",
    log:
        LAYOUT.log("plans_made", "{place}"),
    benchmark:
        LAYOUT.benchmark("plans_made", "{place}")
    wildcard_constraints:
        place=UNPLANNED,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=500,
    shell:
        "echo every plan that was asked for is made | tee {output} > {log}"


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
        mem_mb=4000,
    params:
        files=lambda w, input: given(input),
        settings=audit_settings,
        code=code_digest("audit-privacy"),
    shell:
        "python -m dpsapf audit-privacy {params.files} {params.settings} --out {output} --log {log}"
