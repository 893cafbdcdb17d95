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
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **TORCH,
    params:
        files=lambda w, input: given(input),
        options=flags(CONFIG.sampling, CONFIG.compute),
        launch=LAUNCH,
        lora=flags(CONFIG.finetune, only=("lora_rank", "lora_alpha")),
        code=code_digest("sampling"),
    shell:
        "{params.launch} dpsapf sample {params.files} {params.options} {params.lora} --archive {output.archive}"
        " --contact-sheet {output.contact_sheet} --timing {output.timing} --log {log}"
