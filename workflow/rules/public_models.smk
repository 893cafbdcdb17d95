localrules:
    fetch_public_model,


rule fetch_public_model:
    input:
        registry=ancient(CONFIG.public_models_file),
    output:
        LAYOUT.model("{public_model}", "fetched.txt"),
    log:
        LAYOUT.log("fetch_public_model", "{public_model}"),
    benchmark:
        LAYOUT.benchmark("fetch_public_model", "{public_model}")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=500,
    params:
        entry=lambda w: entry_digest(
            CONFIG.public_models_file, w.public_model, ModelEntry
        ),
        code=code_digest("fetch-public-model"),
    shell:
        "python -m dpsapf fetch-public-model --name {wildcards.public_model} --registry {input.registry} --out {output} --log {log}"


rule pretrain_public_model:
    output:
        out=directory("results/pretrained/public-mini"),
        network="results/pretrained/public-mini-features.safetensors",
    log:
        "results/pretrained/pretrain.log",
    benchmark:
        "results/pretrained/pretrain.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=8000,
    params:
        code=code_digest("pretrain-public-model"),
    shell:
        "python -m dpsapf pretrain-public-model --out {output.out} --feature-network {output.network}"
        " --threads {threads} --log {log}"


rule prepare_public_model:
    input:
        unpack(model_inputs),
        registry=ancient(CONFIG.public_models_file),
    output:
        record=LAYOUT.model("{public_model}", "model.json"),
        candidates=LAYOUT.model("{public_model}", "candidates.csv"),
    log:
        LAYOUT.log("prepare_public_model", "{public_model}"),
    benchmark:
        LAYOUT.benchmark("prepare_public_model", "{public_model}")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        **NEEDS.light(4000, 60),
    params:
        entry=lambda w: entry_digest(
            CONFIG.public_models_file, w.public_model, ModelEntry
        ),
        code=code_digest("prepare-public-model"),
    shell:
        "python -m dpsapf prepare-public-model --name {wildcards.public_model} --registry {input.registry}"
        " --record {output.record} --candidates {output.candidates} --log {log}"


rule encode_dataset:
    input:
        archive=LAYOUT.dataset("{dataset}", "dataset.safetensors"),
        dataset=LAYOUT.dataset("{dataset}", "dataset.json"),
        model=LAYOUT.model("{public_model}", "model.json"),
        planned=ancient(LAYOUT.latents("{dataset}", "{public_model}", PLANNED)),
    output:
        LAYOUT.latents("{dataset}", "{public_model}", "latents.safetensors"),
    log:
        LAYOUT.log("encode_dataset", "{dataset}--{public_model}"),
    benchmark:
        LAYOUT.benchmark("encode_dataset", "{dataset}--{public_model}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("encode_dataset"),
    params:
        code=code_digest("encode-dataset"),
    shell:
        "python -m dpsapf encode-dataset --archive {input.archive} --dataset {input.dataset} --model {input.model}"
        " --out {output} $SPEED --threads ${{GRANTED:-{threads}}} --log {log}"


rule embed_prompts:
    input:
        dataset=LAYOUT.dataset("{dataset}", "dataset.json"),
        model=LAYOUT.model("{public_model}", "model.json"),
    output:
        LAYOUT.latents("{dataset}", "{public_model}", "prompts.safetensors"),
    log:
        LAYOUT.log("embed_prompts", "{dataset}--{public_model}"),
    benchmark:
        LAYOUT.benchmark("embed_prompts", "{dataset}--{public_model}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("embed_prompts"),
    params:
        code=code_digest("embed-prompts"),
    shell:
        "python -m dpsapf embed-prompts --dataset {input.dataset} --model {input.model} --out {output} $SPEED --threads ${{GRANTED:-{threads}}} --log {log}"
