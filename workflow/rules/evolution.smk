rule evolve:
    input:
        **NETWORK,
        plan=LAYOUT.run("{run}", "plan.json"),
        model=lambda w: LAYOUT.model(RUNS[w.run].public_model, "model.json"),
        archive=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.safetensors"),
        dataset=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.json"),
        planned=ancient(LAYOUT.run("{run}", PLANNED)),
    output:
        population=LAYOUT.run("{run}", "population.safetensors"),
        spend=LAYOUT.run("{run}", "spend.json"),
        private=LAYOUT.run("{run}", "private.json"),
    log:
        LAYOUT.log("evolve", "{run}"),
    benchmark:
        LAYOUT.benchmark("evolve", "{run}")
    wildcard_constraints:
        run=EVOLVED,
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("evolve"),
    params:
        files=lambda w, input: given(input, besides=("fetched", "planned")),
        options=f"{flags(CONFIG.sampling)} {PRECISION}",
        evolution=flags(CONFIG.evolution, only=VARIATIONS),
        protocol=f"--protocol {PROTOCOL} --registry {CONFIG.protocols_file}",
        entry=entry_digest(CONFIG.protocols_file, PROTOCOL, ProtocolEntry),
        code=code_digest("evolve"),
    shell:
        "python -m dpsapf evolve {params.files} {params.options} $SPEED --threads ${{GRANTED:-{threads}}} {params.evolution} {params.protocol}"
        " --population {output.population} --spend {output.spend} --private {output.private} --log {log}"


rule publish_population:
    input:
        ledger=LAYOUT.run("{run}", "ledger.json"),
        dataset=lambda w: LAYOUT.dataset(RUNS[w.run].dataset, "dataset.json"),
        population=LAYOUT.run("{run}", "population.safetensors"),
    output:
        archive=LAYOUT.run("{run}", "samples.npz"),
        contact_sheet=LAYOUT.run("{run}", "contact_sheet.png"),
        timing=LAYOUT.run("{run}", "timing.json"),
    log:
        LAYOUT.log("publish_population", "{run}"),
    benchmark:
        LAYOUT.benchmark("publish_population", "{run}")
    wildcard_constraints:
        run=EVOLVED,
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=CONFIG.resources.memory_mb,
    params:
        files=lambda w, input: given(input),
        code=code_digest("publish-population"),
    shell:
        "python -m dpsapf publish-population {params.files} --archive {output.archive}"
        " --contact-sheet {output.contact_sheet} --timing {output.timing} --log {log}"
