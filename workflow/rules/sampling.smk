rule sample:
    input:
        unpack(sampling_inputs),
    output:
        archive=LAYOUT.run("{run}", "samples.npz"),
        contact_sheet=LAYOUT.run("{run}", "contact_sheet.png"),
        timing=LAYOUT.run("{run}", "timing.json"),
    log:
        LAYOUT.log("sample", "{run}"),
    benchmark:
        LAYOUT.benchmark("sample", "{run}")
    wildcard_constraints:
        run=SAMPLED,
    group:
        "images"  # one job of a cluster for both
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("sample"),
    params:
        files=lambda w, input: given(input),
        options=f"{flags(CONFIG.sampling)} {PRECISION}",
        code=code_digest("sample"),
    shell:
        "$LAUNCH dpsapf sample {params.files} {params.options} $SPEED --threads ${{GRANTED:-{threads}}} --archive {output.archive}"
        " --contact-sheet {output.contact_sheet} --timing {output.timing} --log {log}"
