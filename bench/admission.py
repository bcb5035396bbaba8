"""Which blocks are worth a write to SSD? Hit rate against bytes written, for each way to admit, simulated.

The recorded trace and two synthetic workloads through a simulated memory and a ring below it (`policies/tiers.py`), for a
memory of a twentieth of the different blocks and SSDs of a quarter and of all of them; each way once as it is, once with blocks that
were read since they were written written again when the ring comes to them. What the real tier does with its time
(late writes, waiting for reads, slowdown of memory hits) is bench/tier.py's question.
"""

from __future__ import annotations

from typing import Any

from bench import harness
from bench.policies.simulate import ceiling
from bench.policies.tiers import ADMISSIONS, Tiers
from bench.policies.workload import CONVERSATION, Workload, agents, read_trace, scans

__all__ = ["measure"]

QUESTION = "How many hits does each way to admit blocks to SSD bring for what it writes?"
NOT_SHOWN = (
    "time: writes that come too late, reads that are waited for",
    "reboots: what `evicted` loses that `all` keeps",
)
MEMORY_SHARE = 0.05
SSD_SHARES = (0.25, 1.0)


def measure(options: harness.Options) -> harness.Findings:
    count = options.pick(None, 3000, 300)
    workloads = [read_trace(CONVERSATION, count), scans(count or 6000), agents(count or 6000)]
    rows = [
        row_of(workload, share, admission, readmits)
        for workload in workloads
        for share in SSD_SHARES
        for admission in ADMISSIONS
        for readmits in (False, True)
    ]
    table = harness.table(
        "Hits of blocks with an SSD below a memory of a twentieth, %",
        ("workload", "SSD blocks", "admission", "memory", "SSD", "both", "infinite",
         "written, % of asked", "SSD hits a block written"),
        [
            (row["workload"], row["ssd_blocks"], row["admission"], _percent(row["memory_rate"]),
             _percent(row["ssd_rate"]), _percent(row["memory_rate"] + row["ssd_rate"]),
             _percent(row["ceiling"]), _percent(row["written_share"]), row["hits_a_write"])
            for row in rows
        ],
    )  # fmt: skip
    digest = "".join(workload.digest for workload in workloads)
    return harness.Findings([table], {"results": rows}, digest[:16])


def row_of(workload: Workload, share: float, admission: str, readmits: bool) -> dict[str, Any]:
    name = f"{admission}, hot again" if readmits else admission
    harness.progress(f"{workload.name}: {name}, SSD of {share:.0%}")
    memory = max(int(workload.distinct * MEMORY_SHARE), 64)
    tiers = Tiers(memory, int(workload.distinct * share), admission, readmits=readmits)
    for request in workload.requests:
        tiers.request(request.chain)
    asked = workload.references
    return {
        "workload": workload.name,
        "memory_blocks": memory,
        "ssd_blocks": int(workload.distinct * share),
        "admission": name,
        "memory_rate": round(tiers.hits_memory / asked, 4),
        "ssd_rate": round(tiers.hits_ssd / asked, 4),
        "ceiling": round(ceiling(workload).block_rate, 4),
        "written_share": round(tiers.written / asked, 4),
        "hits_a_write": round(tiers.hits_ssd / max(tiers.written, 1), 3),
    }


def _percent(share: float) -> str:
    return f"{share * 100:.2f}"


if __name__ == "__main__":
    harness.run("admission", QUESTION, not_shown=NOT_SHOWN, measure=measure)
