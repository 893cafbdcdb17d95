def run_records(wildcards):
    """Every record of a run that its metrics come from."""
    run = RUNS[wildcards.run]
    names = {"plan": "plan.json", "ledger": "ledger.json", "timing": "timing.json"}
    names |= {"fidelity": "fidelity.json", "utility": "utility.json"}
    return {
        **{name: LAYOUT.run(run.id, file) for name, file in names.items()},
        "candidates": LAYOUT.model(run.public_model, "candidates.csv"),
        "ceiling": LAYOUT.reference(run.dataset, PROTOCOL, "ceiling.json"),
    } | trained_files(LAYOUT, run, "selection", "spend", "training_log")


rule collect_metrics:
    input:
        unpack(run_records),
    output:
        LAYOUT.run("{run}", "metrics.json"),
    params:
        files=lambda w, input: given(input),
        code=code_digest("aggregation"),
    log:
        LAYOUT.log("collect_metrics", "{run}"),
    benchmark:
        LAYOUT.benchmark("collect_metrics", "{run}")
    threads: 1
    resources:
        mem_mb=1000,
    shell:
        "dpsapf collect-metrics {params.files} --out {output} --log {log}"


rule aggregate:
    input:
        metrics=[LAYOUT.run(run, "metrics.json") for run in RUNS],
    output:
        runs=LAYOUT.table("runs.csv"),
        summary=LAYOUT.table("summary.csv"),
        selections=LAYOUT.table("selections.csv"),
    params:
        code=code_digest("aggregation"),
    log:
        LAYOUT.log("aggregate", "all"),
    benchmark:
        LAYOUT.benchmark("aggregate", "all")
    threads: 1
    resources:
        mem_mb=1000,
    shell:
        "dpsapf aggregate --metrics {input.metrics} --runs {output.runs} --summary {output.summary}"
        " --selections {output.selections} --log {log}"
