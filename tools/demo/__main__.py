"""Does a KV cache outlive everything that used it? `make demo`: the story of PegaShm on real vLLM engines.

    engine without PegaShm      what every prompt must answer, and how long it takes cold
    A computes, stores          SIGKILL to A
    B, started after            loads what A stored
    SIGKILL to the supervisor   nobody watches the arena now
    C, started with nobody      attaches all the same; B and C load each other's blocks
    a new supervisor            finds the arena and re-adopts it; A's blocks are still there

Everything lives in one temporary folder and one arena with this process's id in its name; both are gone at
the end, however it ends (Ctrl-C, SIGTERM and SIGKILL included). Exit status 1 when an output differs, or when a
prompt that was stored was not loaded.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from processes import Answer, DemoError, Engine, Janitor, Supervisor, command_path
from report import Row, table
from rich.console import Console
from rich.markup import escape

ROOT = Path(__file__).parents[2]
ARENA_SIZE = "256M"
PROMPT_TOKENS = 3900  # thirty blocks of 128 and a tail: 3840 tokens can come from the cache
LAYERS = 8
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Story:
    """Tells each step as it happens, keeps the rows, and knows what must be closed."""

    def __init__(self, folder: Path, arena_name: str, closing: ExitStack) -> None:
        self.folder = folder
        self.arena_name = arena_name
        self.closing = closing
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.began = time.monotonic()
        self.rows: list[Row] = []
        self.reference: dict[str, Answer] = {}
        self.prompts = {
            name: [random.Random(name).randrange(3, 500) for _ in range(PROMPT_TOKENS)]
            for name in ("1", "2", "3")
        }

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:5.1f} s[/]  {text}")

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Something that takes a while: a line, and on a terminal a sign of life below it."""
        self.say(text)
        with self.console.status("[dim]waiting...[/]"):
            yield

    def model(self) -> Path:
        path = self.folder / "model"
        maker = [
            sys.executable,
            str(ROOT / "tests" / "models" / "make_model.py"),
            "qwen3",
            str(path),
        ]
        done = subprocess.run(
            [*maker, "--layers", str(LAYERS)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoError(f"the tiny model could not be made:\n{done.stderr[-2000:]}")
        return path

    def supervisor(self) -> Supervisor:
        supervisor = Supervisor(self.arena_name, ARENA_SIZE, self.folder / "supervisor.log")
        self.closing.callback(supervisor.stop)
        supervisor.wait_ready()
        return supervisor

    def engine(self, name: str, model: Path, *, attached: bool = True) -> Engine:
        """Started, not ready yet: the caller waits, so that two can start at once."""
        title = f"engine {name}" if attached else name
        log = self.folder / f"{title.replace(' ', '-')}.log"
        engine = Engine(title, model, self.arena_name if attached else None, log)
        self.closing.callback(engine.stop)
        return engine

    def compare(self, engine: Engine, prompt: str, *, stored_by: str = "") -> None:
        """One prompt, new to this engine, beside the engine without PegaShm."""
        answer = engine.ask(self.prompts[prompt])
        row = Row(
            engine=engine.title.removeprefix("engine "),
            prompt=prompt,
            prompt_tokens=PROMPT_TOKENS,
            stored_by=stored_by,
            attach_ms=engine.attach_ms,
            answer=answer,
            reference=self.reference[prompt],
        )
        self.rows.append(row)
        self.say(row.sentence())
        if not row.loaded_as_told:
            expected = f"tokens that {stored_by} had stored" if stored_by else "nothing"
            raise engine.fail(
                f"loaded {answer.cached} tokens of prompt {prompt}, expected {expected}"
            )


def tell(story: Story) -> None:
    with story.waiting("making a tiny model with random weights (no download)"):
        model = story.model()
    supervisor = story.supervisor()
    story.say(
        f"supervisor {supervisor.pid}: arena [bold]{story.arena_name}[/] of {ARENA_SIZE} is ready"
    )

    with story.waiting("starting an engine without PegaShm, and engine A (15 to 40 s)"):
        alone = story.engine("without", model, attached=False)
        a = story.engine("A", model)
        alone.wait_ready()
        a.wait_ready()
    for prompt, token_ids in story.prompts.items():
        story.reference[prompt] = alone.ask(token_ids)
    alone.stop()
    story.compare(a, "1")
    a.kill()
    story.say("[bold red]SIGKILL[/] to engine A")

    with story.waiting("starting engine B"):
        b = story.engine("B", model)
        b.wait_ready()
    story.compare(b, "1", stored_by="A (dead)")

    supervisor.kill()
    story.say("[bold red]SIGKILL[/] to the supervisor: nobody watches the arena now")
    with story.waiting("starting engine C all the same"):
        c = story.engine("C", model)
        c.wait_ready()
    story.compare(c, "2")
    story.compare(b, "2", stored_by="C")
    story.compare(b, "3")
    story.compare(c, "3", stored_by="B")

    again = story.supervisor()
    adopted = next((line for line in again.said().splitlines() if "re-adopted" in line), None)
    if adopted is None:
        raise again.fail("did not say that it re-adopted the arena")
    story.say(f"supervisor {again.pid} in its place: [green]{escape(adopted.strip())}[/]")
    story.compare(c, "1", stored_by="A (dead)")

    story.console.print()
    story.console.print(table(story.rows))
    story.console.print(
        f"\n[bold]pegashm-dump --name {story.arena_name}[/] (B and C still attached)\n"
    )
    sys.stdout.flush()
    dumped = subprocess.run([command_path("pegashm-dump"), "--name", story.arena_name], check=False)
    if dumped.returncode != 0:
        raise DemoError(
            f"pegashm-dump found something (exit status {dumped.returncode}), see above"
        )
    different = [row for row in story.rows if not row.equal]
    if different:
        raise DemoError(
            f"{len(different)} of {len(story.rows)} outputs differ from those without PegaShm"
        )


def interrupted(number: int, _frame: FrameType | None) -> None:
    for other in STOPPING:  # once is enough: the next one must not end the cleaning up
        signal.signal(other, signal.SIG_IGN)
    raise DemoError(f"stopped by {signal.Signals(number).name}")


def main() -> int:
    for number in STOPPING:
        signal.signal(number, interrupted)
    arena_name = f"demo-{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="pegashm-demo-"))
    with ExitStack() as closing:
        closing.callback(Janitor(arena_name, folder).work)  # last, when every process is stopped
        story = Story(folder, arena_name, closing)
        try:
            tell(story)
        except DemoError as error:
            story.console.print(f"\n[bold red]The demo failed:[/] {escape(str(error))}")
            return 1
        loaded = sum(row.answer.cached for row in story.rows)
        story.say(f"all outputs equal; {loaded} tokens came from shared memory. Cleaning up.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
