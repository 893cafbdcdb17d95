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
    wildcard_constraints:
        run=run_pattern(run for run in CONFIG.runs if run not in COUNTED),
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


rule evaluate_and_count:
    input:
        **NETWORK,
        ledger=LAYOUT.run("{run}", "ledger.json"),
        synthetic=LAYOUT.run("{run}", "samples.npz"),
        archive=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.safetensors"),
        dataset=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.json"),
        features=lambda w: LAYOUT.reference(
            RUNS[w.run].dataset, PROTOCOL, "features.safetensors"
        ),
    output:
        fidelity=LAYOUT.run("{run}", "fidelity.json"),
        utility=LAYOUT.run("{run}", "utility.json"),
        counts=LAYOUT.run("{run}", "validation.csv"),
        spend=LAYOUT.run("{run}", "validation_spend.json"),
        private=LAYOUT.run("{run}", "private_validation.json"),
    log:
        LAYOUT.log("evaluate_and_count", "{run}"),
    benchmark:
        LAYOUT.benchmark("evaluate_and_count", "{run}")
    wildcard_constraints:
        run=run_pattern(COUNTED),
    group:
        "images"
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
        " --fidelity {output.fidelity} --utility {output.utility}"
        " --counts {output.counts} --spend {output.spend} --private {output.private} --log {log}"
