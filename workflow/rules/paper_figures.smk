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
                "{name,main_table|all_metrics|paired_differences|privacy_cost|resources|selection_regret|selection_table|stability_edges|tuned_differences|verdicts}.csv",
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
        code=code_digest("paper_figures"),
    shell:
        "python -m dpsapf draw-figures --results {params.results} --figures {output} --log {log}"
