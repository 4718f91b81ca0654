"""Bench: what survived the move from teacher to student. Probes, downstream tasks, latency, statistics, report.

Last room of the chain; it may import every other room. Import the part you need:

    from bench.tasks import scanqa, vsibench
    from bench.probes import evaluate
"""
