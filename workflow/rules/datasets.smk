localrules:
    fetch_dataset,


rule fetch_dataset:
    input:
        registry=ancient(CONFIG.datasets_file),
    output:
        LAYOUT.dataset("{dataset}", "fetched.txt"),
    log:
        LAYOUT.log("fetch_dataset", "{dataset}"),
    benchmark:
        LAYOUT.benchmark("fetch_dataset", "{dataset}")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=500,
    params:
        entry=lambda w: entry_digest(CONFIG.datasets_file, w.dataset, DatasetEntry),
        code=code_digest("fetch-dataset"),
    shell:
        "python -m dpsapf fetch-dataset --name {wildcards.dataset} --registry {input.registry} --out {output} --log {log}"


rule prepare_dataset:
    input:
        unpack(dataset_inputs),
        registry=ancient(CONFIG.datasets_file),
    output:
        archive=LAYOUT.dataset("{dataset}", "dataset.safetensors"),
        record=LAYOUT.dataset("{dataset}", "dataset.json"),
        preview=LAYOUT.dataset("{dataset}", "preview.png"),
    log:
        LAYOUT.log("prepare_dataset", "{dataset}"),
    benchmark:
        LAYOUT.benchmark("prepare_dataset", "{dataset}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.light(2000, 240),
    params:
        entry=lambda w: entry_digest(CONFIG.datasets_file, w.dataset, DatasetEntry),
        code=code_digest("prepare-dataset"),
    shell:
        "python -m dpsapf prepare-dataset --name {wildcards.dataset} --registry {input.registry} --archive {output.archive}"
        " --record {output.record} --preview {output.preview} --threads {threads} --log {log}"
