def sampling_inputs(wildcards):
    """The passed audit, what is needed to sample, and the trained parameters of runs that train."""
    run = RUNS[wildcards.run]
    return {
        "ledger": LAYOUT.run(run.id, "ledger.json"),
        "dataset": LAYOUT.dataset(run.dataset, "dataset.json"),
        "model": LAYOUT.model(run.public_model, "model.json"),
        "latents": LAYOUT.latents(run.dataset, run.public_model, "latents.safetensors"),
    } | trained_files(LAYOUT, run, "selection", "weights")


rule sample:
    input:
        unpack(sampling_inputs),
    output:
        archive=LAYOUT.run("{run}", "samples.npz"),
        contact_sheet=LAYOUT.run("{run}", "contact_sheet.png"),
        timing=LAYOUT.run("{run}", "timing.json"),
    params:
        files=lambda w, input: given(input),
        options=flags(CONFIG.sampling, CONFIG.compute),
        lora=flags(CONFIG.finetune, only=("lora_rank", "lora_alpha")),
        code=code_digest("sampling"),
    log:
        LAYOUT.log("sample", "{run}"),
    benchmark:
        LAYOUT.benchmark("sample", "{run}")
    threads: THREADS
    resources:
        **TORCH,
    shell:
        "dpsapf sample {params.files} {params.options} {params.lora} --archive {output.archive}"
        " --contact-sheet {output.contact_sheet} --timing {output.timing} --log {log}"
