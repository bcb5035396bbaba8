"""What did the demo see? Rows as they come, one table at the end, and whether it held.

A row is one prompt answered by one engine. It holds when its tokens equal those of an engine that never
heard of PegaShm, and when as many tokens came from the cache as the story says must have.
"""

from dataclasses import dataclass

from processes import Answer
from rich.table import Table

__all__ = ["Row", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt, one engine, beside what the engine without PegaShm made of it."""

    engine: str
    prompt: str
    prompt_tokens: int
    stored_by: str  # who computed and stored this prompt before; empty when nobody had
    attach_ms: float | None
    answer: Answer
    reference: Answer

    @property
    def equal(self) -> bool:
        return self.answer.tokens == self.reference.tokens

    @property
    def loaded_as_told(self) -> bool:
        """From the cache exactly when somebody had stored it; each prompt is new to its engine."""
        return (self.answer.cached > 0) == bool(self.stored_by)

    def sentence(self) -> str:
        source = (
            f"{self.answer.cached} from {self.stored_by}" if self.stored_by else "none in the cache"
        )
        verdict = "same tokens as without PegaShm" if self.equal else "[bold red]OTHER TOKENS[/]"
        return (
            f"{self.engine}, prompt {self.prompt}: {self.prompt_tokens} tokens, {source};"
            f" first token after {self.answer.ttft_ms:.0f} ms; {verdict}"
        )


def table(rows: list[Row]) -> Table:
    """All rows. Cold is the time of the engine without PegaShm on the same prompt."""
    shown = Table(
        title="What came from shared memory, and what it was worth",
        title_style="bold",
        pad_edge=False,
    )
    for header in ("engine", "prompt"):
        shown.add_column(header)
    for header in ("prompt\ntokens", "tokens\nfrom\ncache"):
        shown.add_column(header, justify="right")
    shown.add_column("stored\nby", no_wrap=True)
    for header in ("TTFT\ncold\nms", "TTFT\nwarm\nms", "attach\nms"):
        shown.add_column(header, justify="right")
    shown.add_column("outputs\nequal", justify="center")
    for row in rows:
        cold = row.reference.ttft_ms if row.stored_by else row.answer.ttft_ms
        shown.add_row(
            row.engine,
            row.prompt,
            str(row.prompt_tokens),
            str(row.answer.cached),
            row.stored_by or "-",
            f"{cold:.0f}",
            f"{row.answer.ttft_ms:.0f}" if row.stored_by else "-",
            "-" if row.attach_ms is None else f"{row.attach_ms:.1f}",
            "[green]yes[/]" if row.equal else "[bold red]NO[/]",
        )
    return shown
