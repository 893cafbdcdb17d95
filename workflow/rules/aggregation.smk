rule collect_metrics:
    input:
        unpack(run_records),
    output:
        LAYOUT.run("{run}", "metrics.json"),
    log:
        LAYOUT.log("collect_metrics", "{run}"),
    benchmark:
        LAYOUT.benchmark("collect_metrics", "{run}")
    wildcard_constraints:
        run=OWN,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        files=lambda w, input: given(input),
        code=code_digest("collect-metrics"),
    shell:
        "python -m dpsapf collect-metrics {params.files} --out {output} --log {log}"


rule aggregate:
    input:
        metrics=[LAYOUT.run(run, "metrics.json") for run in RUNS],
    output:
        runs=LAYOUT.table("runs.csv"),
        summary=LAYOUT.table("summary.csv"),
        selections=LAYOUT.table("selections.csv"),
    log:
        LAYOUT.log("aggregate", "all"),
    benchmark:
        LAYOUT.benchmark("aggregate", "all")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        code=code_digest("aggregate"),
    shell:
        "python -m dpsapf aggregate --metrics {input.metrics} --runs {output.runs} --summary {output.summary}"
        " --selections {output.selections} --log {log}"
