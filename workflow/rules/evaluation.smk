localrules:
    fetch_evaluation_weights,


rule fetch_evaluation_weights:
    input:
        registry=ancient(CONFIG.protocols_file),
    output:
        LAYOUT.network("{protocol}", "fetched.txt"),
    log:
        LAYOUT.log("fetch_evaluation_weights", "{protocol}"),
    benchmark:
        LAYOUT.benchmark("fetch_evaluation_weights", "{protocol}")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        entry=lambda w: entry_digest(CONFIG.protocols_file, w.protocol, ProtocolEntry),
        code=code_digest("fetch-evaluation-weights"),
    shell:
        "python -m dpsapf fetch-evaluation-weights --protocol {wildcards.protocol} --registry {input.registry} --out {output} --log {log}"


rule reference_features:
    input:
        **NETWORK,
        archive=LAYOUT.dataset("{dataset}", "dataset.safetensors"),
        dataset=LAYOUT.dataset("{dataset}", "dataset.json"),
    output:
        features=LAYOUT.reference("{dataset}", PROTOCOL, "features.safetensors"),
        ceiling=LAYOUT.reference("{dataset}", PROTOCOL, "ceiling.json"),
    log:
        LAYOUT.log("reference_features", "{dataset}"),
    benchmark:
        LAYOUT.benchmark("reference_features", "{dataset}")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("reference_features"),
    params:
        options=EVALUATION,
        entry=entry_digest(CONFIG.protocols_file, PROTOCOL, ProtocolEntry),
        code=code_digest("reference-features"),
    shell:
        "python -m dpsapf reference-features --archive {input.archive} --dataset {input.dataset} {params.options} --device $DEVICE --threads ${{GRANTED:-{threads}}}"
        " --features {output.features} --ceiling {output.ceiling} --log {log}"


rule evaluate:
    input:
        **NETWORK,
        synthetic=LAYOUT.run("{run}", "samples.npz"),
        archive=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.safetensors"),
        dataset=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.json"),
        features=lambda w: LAYOUT.reference(
            RUNS[w.run].dataset, PROTOCOL, "features.safetensors"
        ),
    output:
        fidelity=LAYOUT.run("{run}", "fidelity.json"),
        utility=LAYOUT.run("{run}", "utility.json"),
    log:
        LAYOUT.log("evaluate", "{run}"),
    benchmark:
        LAYOUT.benchmark("evaluate", "{run}")
    group:
        "images"  # one job of a cluster for both
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("evaluate"),
    params:
        files=lambda w, input: given(input, besides=("fetched",)),
        options=EVALUATION,
        entry=entry_digest(CONFIG.protocols_file, PROTOCOL, ProtocolEntry),
        run=lambda w: flags(RUNS[w.run], only=("seed",)),
        code=code_digest("evaluate"),
    shell:
        "python -m dpsapf evaluate {params.files} {params.options} --device $DEVICE --threads ${{GRANTED:-{threads}}} {params.run}"
        " --fidelity {output.fidelity} --utility {output.utility} --log {log}"
