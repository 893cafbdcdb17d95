"""The contract: plan, accounting, noise, clipping, sampling, audit.

In: N, settings, releases as their stages describe them, spend records.
Out: plan.json, ledger.json, noise. Open `plan` first, then `accounting`, `noise`, `clipping`, `audit`.
"""
