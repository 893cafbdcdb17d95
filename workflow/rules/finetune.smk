rule finetune:
    input:
        unpack(training_inputs),
    output:
        weights=LAYOUT.run("{run}", "weights.safetensors"),
        training_log=LAYOUT.run("{run}", "private_log.csv"),
        spend=LAYOUT.run("{run}", "spend.json"),
        private=LAYOUT.run("{run}", "private.json"),
    log:
        LAYOUT.log("finetune", "{run}"),
    benchmark:
        LAYOUT.benchmark("finetune", "{run}")
    wildcard_constraints:
        run=SAMPLED,
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **NEEDS.resources("finetune"),
    params:
        files=lambda w, input: given(input),
        options=f"{flags(CONFIG.finetune)} {PRECISION}",
        code=code_digest("finetune"),
    shell:
        "$LAUNCH dpsapf finetune {params.files} {params.options} $SPEED --threads ${{GRANTED:-{threads}}} --weights {output.weights}"
        " --training-log {output.training_log} --spend {output.spend} --private {output.private}"
        " --log {log}"
