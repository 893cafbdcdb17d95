rule draw_figures:
    input:
        tables=[
            LAYOUT.table(f"{name}.csv") for name in ("runs", "summary", "selections")
        ],
        comparisons=COMPARISONS,
    output:
        report(
            directory(LAYOUT.figures),
            patterns=[
                "{name}.png",
                "{name,main_table|all_metrics|differences|privacy_cost|resources|selection_regret|selection_table|stability_edges|tuned_differences|verdicts}.csv",
            ],
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{name}"},
        ),
    log:
        LAYOUT.log("draw_figures", "all"),
    benchmark:
        LAYOUT.benchmark("draw_figures", "all")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
    params:
        results=LAYOUT.root,
        code=code_digest("draw-figures"),
    shell:
        "python -m dpsapf draw-figures --results {params.results} --figures {output} --log {log}"


rule write_report:
    input:
        tables=[
            LAYOUT.table(f"{name}.csv") for name in ("runs", "summary", "selections")
        ],
        figures=LAYOUT.figures,
        captions=f"{workflow.basedir}/workflow/report/figure.rst",
        ledgers=[
            LAYOUT.run(run, "ledger.json")
            for run in RUNS
            if run not in CONFIG.made_elsewhere
        ],
    output:
        report=LAYOUT.report,
        configfile=LAYOUT.config,
    log:
        LAYOUT.log("write_report", "all"),
    benchmark:
        LAYOUT.benchmark("write_report", "all")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
    params:
        results=LAYOUT.root,
        config=yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False),
        code=code_digest("write-report"),
    shell:
        "printf %s {params.config:q} > {output.configfile}; "
        "python -m dpsapf write-report --results {params.results} --configfile {output.configfile}"
        " --captions {input.captions} --report {output.report} --log {log}"
