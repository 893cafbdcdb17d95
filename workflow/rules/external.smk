rule import_images:
    input:
        images=lambda w: CONFIG.made_elsewhere[w.run][2].images,
        dataset=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.json"),
    output:
        archive=LAYOUT.run("{run}", "samples.npz"),
        contact_sheet=LAYOUT.run("{run}", "contact_sheet.png"),
        record=LAYOUT.run("{run}", "external.json"),
    log:
        LAYOUT.log("import_images", "{run}"),
    benchmark:
        LAYOUT.benchmark("import_images", "{run}")
    wildcard_constraints:
        run=EXTERNAL,
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.light(CONFIG.resources.memory_mb, 240),
    params:
        run=lambda w: flags(
            RUNS[w.run], only=("external", "public_model", "epsilon", "seed")
        ),
        told=lambda w: flags(*CONFIG.made_elsewhere[w.run][1:], only=("label", "delta")),
        code=code_digest("import-images"),
    shell:
        "python -m dpsapf import-images --images {input.images} --dataset {input.dataset} {params.run} {params.told}"
        " --threads ${{GRANTED:-{threads}}} --archive {output.archive} --contact-sheet {output.contact_sheet}"
        " --record {output.record} --log {log}"


rule collect_external:
    input:
        external=LAYOUT.run("{run}", "external.json"),
        fidelity=LAYOUT.run("{run}", "fidelity.json"),
        utility=LAYOUT.run("{run}", "utility.json"),
        ceiling=lambda w: LAYOUT.reference(
            RUNS[w.run].dataset, PROTOCOL, "ceiling.json"
        ),
    output:
        LAYOUT.run("{run}", "metrics.json"),
    log:
        LAYOUT.log("collect_external", "{run}"),
    benchmark:
        LAYOUT.benchmark("collect_external", "{run}")
    wildcard_constraints:
        run=EXTERNAL,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        files=lambda w, input: given(input),
        code=code_digest("collect-external"),
    shell:
        "python -m dpsapf collect-external {params.files} --out {output} --log {log}"
