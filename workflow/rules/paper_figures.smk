rule draw_figures:
    input:
        tables=[LAYOUT.table(f"{name}.csv") for name in ("runs", "summary", "selections")],
    output:
        report(
            directory(LAYOUT.figures),
            patterns=["{name}.png"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{name}"},
        ),
    params:
        results=LAYOUT.root,
        code=code_digest("paper_figures"),
    log:
        LAYOUT.log("draw_figures", "all"),
    benchmark:
        LAYOUT.benchmark("draw_figures", "all")
    threads: 1
    resources:
        mem_mb=2000,
    shell:
        "dpsapf draw-figures --results {params.results} --figures {output} --log {log}"
