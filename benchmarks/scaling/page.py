"""docs/scaling.md, and the study's part of a folder's tables, from the JSON of ``benchmarks.scaling``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common.markdown import table

Record = dict[str, Any]
SHOWN = (1, 2, 8, 16, 64, 256, 1024)
ABOUT = """\
# Scaling

Generated from {source} by `python -m benchmarks.report {source} --markdown docs/scaling.md --png {png}`; not to be
edited. `python -m benchmarks.scaling --out FOLDER` repeats the measurements. Figures are *measured*, *projected* from
measurements, or *predicted* from data sheets and cost models, and are labelled so everywhere."""
MEANING = """\
*Weak*: the batch of each process is constant. *Strong*: the global batch is constant. *Side by side*: {most}
independent single-process trainings without communication, an upper bound of *weak* on this machine. Efficiency is
the rate divided by that of one process and by the number of processes, window by window: median (smallest to
largest); 1 is ideal. *Exposed* is communication not overlapped with computation, with the wait for slower processes."""
MODEL = """\
An all-reduce of S bytes among n processes, alpha seconds a message and beta seconds a byte:

    ring    2 (n - 1) alpha + 2 (n - 1) / n S beta      Thakur, Rabenseifner, Gropp (2005)
    tree    2 ceil(log2 n) alpha + 2 S beta             two trees with half of S each: Sanders, Speck, Träff (2009)"""
GPUS = """\
Nothing here is measured: step times are those of the kernels' cost model, fitted to one H200 (docs/kernels.md), and of
a lower bound for a product per time step, a third of cuDNN's time there; all-reduces are those of NCCL's cost model,
on nodes of 8 GPUs. The formulas are in `benchmarks/scaling/small_batch.py` and `benchmarks/scaling/nccl_model.py`.

The argument is that of Diamos et al., [Persistent RNNs](https://proceedings.mlr.press/v48/diamos16.html) (ICML 2016):
more GPUs at the same global batch have fewer sequences each, and a product per time step takes as long for 4 as for
64, since it reads all weights each time; persistent kernels do not. DDP sends gradients in buckets of 25 MiB as soon
as the backward pass has computed them. For a recurrent layer that is the end of its pass through time: the last
bucket, which contains the first layer, is never overlapped, and a network of one layer overlaps nothing."""


def render(record: Record, source: str, png: str) -> str:
    """The page; ``source`` and ``png`` are the files' names as seen from the repository's root."""
    parts = [ABOUT.format(source=source, png=png)]
    projection = png.removesuffix(".png") + "_projection.png"
    if "tasks" in record:
        parts += ["## Measured, and projected from it", where(record), f"![measured and projected](../{png})"]
        parts += measured(record)
    parts += ["## Predicted for GPUs", f"![predicted](../{projection})", *predicted(record["gpu"])]
    return "\n\n".join(parts) + "\n"


def where(record: Record) -> str:
    machine = record["machine"]
    return (
        f"{machine['processor']}; one thread per process; torch {machine['torch']}; load {machine['load']} before; "
        f"commit {machine['commit']}. {record['repeats']} runs of each, interleaved, "
        f"{record['windows']} windows of each."
    )


def tables(record: Record) -> Iterator[str]:
    """For a folder's markdown: what was measured, and the headline of the rest."""
    if "tasks" in record:
        yield from measured(record)
    yield from predicted(record["gpu"])


def measured(record: Record) -> Iterator[str]:
    most = max(row["processes"] for row in record["tasks"][0]["rows"])
    yield MEANING.format(most=most)
    for task in record["tasks"]:
        yield (
            f"**{task['task']}** (`{' '.join(task['settings'])}`; {task['data']}; windows of {task['window_steps']} "
            f"steps). Gradients of {task['gradient_bytes'] / 1024:,.0f} KiB; {task['overlap']}. With the same global "
            f"batch the relative difference of the first losses is {task['check']['loss']:.1g}, of gradient norms "
            f"{task['check']['grad_norm']:.1g}."
        )
        head = ("scaling", "processes", "per second", "ms a step", "exposed", "efficiency")
        yield table(head, map(_task_row, task["rows"]))
        yield f"Weak scaling, target {task['goal']:g}: {_verdict(task['met'])}."
    yield "### gloo's all-reduce"
    yield MODEL
    yield from _fit(record)
    yield "### Projected: these trainings on more processes"
    yield (
        "Weak scaling by the fitted link, with separate cores for every process and one such link between "
        "neighbours; exposed milliseconds a step and efficiency. Shared memory and slower processes are not modelled."
    )
    counted = ("processes", *(f"{t['task']}, {name}" for t in record["tasks"] for name in ("ring", "tree")))
    counts = [row["processes"] for row in record["tasks"][0]["projection"]]
    yield table(counted, (_projected(record["tasks"], i) for i, n in enumerate(counts) if n in SHOWN))
    yield from (_beside(task) for task in record["tasks"])


def _task_row(row: Record) -> list[str]:
    exposed = "" if row["exposed_comm"] is None else f"{row['exposed_ms']:.2f} ms, {row['exposed_comm']['median']:.1%}"
    efficiency = ("{median:.3f} ({min:.3f} to {max:.3f})".format(**row["efficiency"])) if "efficiency" in row else ""
    name = row["scaling"] if row["processes"] > 1 else "one process"
    mark = " (more than cores)" if row["oversubscribed"] else ""
    rate, step = row["tokens_per_second"]["median"], row["step_ms"]["median"]
    return [name, f"{row['processes']}{mark}", f"{rate:,.0f}", f"{step:.2f}", exposed, efficiency]


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "not judged, there were fewer cores than processes"}[met]


def _fit(record: Record) -> Iterator[str]:
    fit = record["fit"]
    yield (
        f"Fitted as a ring on 2 processes and every other size: alpha {fit['alpha_us']:.1f} us, beta "
        f"{fit['beta_ns']:.3f} ns "
        f"a byte. Relative error on the points fitted: median {fit['fit']['median']:.0%}, largest "
        f"{fit['fit']['max']:.0%}; "
        "on held-out points:"
    )
    rows = (
        [f"{h['processes']}{' (more than cores)' if h['oversubscribed'] else ', the other sizes'}", str(h["points"]),
         *(f"{h[key]:.0%}" for key in ("median", "max")),
         f"{h['shared_cores']['median']:.0%}, {h['shared_cores']['max']:.0%}" if "shared_cores" in h else ""]
        for h in fit["held_out"]
    )  # fmt: skip
    yield table(("processes", "points", "median", "largest", "with n / cores times the time"), rows)
    sizes = sorted({p["bytes"] for p in record["points"]})
    among = sorted({p["processes"] for p in record["points"]})
    times = {(p["processes"], p["bytes"]): p["milliseconds"] for p in record["points"]}
    yield (
        "Milliseconds, measured: median (smallest to largest). More processes than cores are not bound to any "
        "(docs/distributed.md)."
    )
    yield table(
        ("bytes", *(f"{n} processes" for n in among)),
        ([_size(s), *("{median:.3g} ({min:.3g} to {max:.3g})".format(**times[n, s]) for n in among)] for s in sizes),
    )


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _projected(tasks: list[Record], index: int) -> list[str]:
    rows = [task["projection"][index] for task in tasks]
    cells = (
        f"{row[name]['exposed_ms']:.2f}, {row[name]['efficiency']:.3f}" for row in rows for name in ("ring", "tree")
    )
    return [f"{rows[0]['processes']:,}", *cells]


def _beside(task: Record) -> str:
    """The model's exposed time at 2 processes against the measured one, if available."""
    row = next((row for row in task["rows"] if row["scaling"] == "weak" and row["processes"] == 2), None)
    if row is None:
        return f"{task['task']}: not measured with 2 processes."
    model = next(row for row in task["projection"] if row["processes"] == 2)["ring"]
    return (
        f"{task['task']}, 2 processes: exposed {model['exposed_ms']:.2f} ms by the model, {row['exposed_ms']:.2f} ms "
        f"measured; efficiency {model['efficiency']:.3f} by the model, {row['efficiency']['median']:.3f} measured."
    )


def predicted(gpu: Record) -> Iterator[str]:
    yield GPUS
    for net in gpu["nets"]:
        yield f"**{net['net']}**. Predicted us a time step of one layer, by sequences a GPU:"
        launches = net["product_us_by_launch"]
        kinds = [f"product per step, {us} us a launch, each way" for us in launches]
        yield table(
            ("sequences", "persistent, forward", "backward", *kinds),
            ([str(b), *(f"{us:.2f}" for us in net["persistent_us"][i]), *(f"{us[i]:.2f}" for us in launches.values())]
             for i, b in enumerate(net["batches"])),
        )  # fmt: skip
        yield (
            f"Predicted strong scaling at {net['global_batch']:,} sequences: ms a step (exposed), sequences a second, "
            f"and "
            "the efficiency relative to the cheapest row of the table."
        )
        kinds = list(net["strong"])
        yield table(("GPUs x sequences", *kinds), _strong(net, kinds))
        yield "Predicted weak scaling: efficiency over one GPU."
        yield table(
            ("GPUs", *(f"{kind}, {batch} each" for kind in kinds for batch in net["weak"][kind])), _weak(net, kinds)
        )
        yield _reading(net)
    yield "Assumptions:"
    yield table(("what", "value", "source"), ([a["what"], a["value"], a["source"]] for a in gpu["assumptions"]))


def _strong(net: Record, kinds: list[str]) -> Iterator[list[str]]:
    for rows in zip(*(net["strong"][kind] for kind in kinds), strict=True):
        cells = (
            f"{r['step_ms']:.1f} ({r['exposed_ms']:.2f}); {r['sequences_per_second']:,.0f}; {r['efficiency']:.2f}"
            for r in rows
        )
        yield [f"{rows[0]['gpus']:,} x {rows[0]['batch']}", *cells]


def _weak(net: Record, kinds: list[str]) -> Iterator[list[str]]:
    columns = [net["weak"][kind][batch] for kind in kinds for batch in net["weak"][kind]]
    for rows in zip(*columns, strict=True):
        if rows[0]["gpus"] in SHOWN:
            yield [f"{rows[0]['gpus']:,}", *(f"{row['efficiency']:.3f}" for row in rows)]


def _reading(net: Record) -> str:
    """A summary of the tables in words, generated from their figures."""
    ours, theirs = (net["strong"][kind] for kind in net["strong"])
    at = {row["batch"]: (row, other) for row, other in zip(ours, theirs, strict=True)}
    (few, few_other), (many, many_other) = at[min(at)], at[64]
    gain, product, persistent, ahead = (
        a[key] / b[key]
        for a, b, key in (
            (few, many, "gpus"),
            (many_other, few_other, "step_ms"),
            (many, few, "step_ms"),
            (few_other, few, "step_ms"),
        )
    )
    return (
        f"Predicted: from {many['batch']} to {few['batch']} sequences a GPU, with {gain:.0f} times the GPUs, the "
        f"speedup of a product per step is {product:.2f}, of persistent kernels {persistent:.1f}. At "
        f"{few['batch']} the latter are {ahead:.1f} times as fast as the product, with an efficiency of "
        f"{few['efficiency']:.2f} against {few_other['efficiency']:.2f}. Communication, {few['exposed_ms']:.2f} ms, is "
        f"{few['exposed_ms'] / few['step_ms']:.1%} of such a step; the rest of the loss is the "
        "latency of the time step."
    )
