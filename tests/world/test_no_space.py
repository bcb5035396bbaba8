"""What if somebody else has filled /dev/shm? A refusal with numbers at start, and never a SIGBUS later.

In a mount namespace with a /dev/shm of 16 MiB; the machine's own stays as it is. Whatever an arena may
ever touch is reserved (fallocate) before anybody can find it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.served import Served, pegashm
from tests.world.actors import Actor
from tests.world.mounts import mounted, run_in

TINY = "mount -t tmpfs -o size=16M,mode=1777 none /dev/shm"
FILL = "dd if=/dev/zero of=/dev/shm/others bs=64k 2>/dev/null || true"
NO_LOCK = ("--numa", "none", "--no-lock")


def listing(prefix: tuple[str, ...], directory: str = "/dev/shm") -> list[str]:
    return sorted(run_in(prefix, f"ls {directory}").split())


def wait_ready(served: Served) -> Served:
    """By its log: the arena is in a /dev/shm that this process does not see."""
    served.wait_log("ready: arena")
    return served


def test_no_room_is_a_refusal_with_numbers_that_leaves_nothing(
    name: str, figures: Counter[str]
) -> None:
    with mounted(TINY) as prefix:
        for size, fill, said in (
            ("32M", "true", "16 MiB free"),
            ("12M", "dd if=/dev/zero of=/dev/shm/others bs=1M count=8 2>/dev/null", "8 MiB free"),
            ("12M", FILL, "0 bytes free"),
        ):
            run_in(prefix, f"rm -f /dev/shm/others; {fill}")
            before = listing(prefix)
            result = pegashm("serve", "--name", name, "--size", size, *NO_LOCK, prefix=prefix)
            assert 1 == result.returncode
            assert said in result.stderr
            assert "more are needed" in result.stderr
            assert "mount -o remount,size=1G /dev/shm" in result.stderr
            assert "Traceback" not in result.stderr
            assert before == listing(prefix)
            figures["refusals"] += 1


def test_room_for_the_payload_elsewhere_but_none_for_the_control_region(
    name: str, figures: Counter[str], tmp_path: Path
) -> None:
    """Found out before the payload is reserved, or while it is made: both ways nothing stays behind."""
    with mounted(TINY, FILL) as prefix:
        result = pegashm(
            "serve",
            "--name",
            name,
            "--size",
            "32M",
            "--directory",
            str(tmp_path),
            *NO_LOCK,
            prefix=prefix,
        )
        assert 1 == result.returncode
        assert "/dev/shm has 0 bytes free" in result.stderr
        assert ["others"] == listing(prefix)
        assert [] == list(tmp_path.iterdir())
        figures["refusals"] += 1


def test_an_arena_that_is_there_is_not_harmed_when_shm_fills_up(
    name: str,
    serve: Callable[..., Served],
    start: Callable[..., Actor],
    figures: Counter[str],
) -> None:
    """Every block is written, by an engine that would die of SIGBUS were one page not its own."""
    with mounted(TINY) as prefix:
        served = wait_ready(
            serve(
                "--size",
                "8M",
                "--segment-size",
                "256K",
                "--block-min",
                "16K",
                *NO_LOCK,
                prefix=prefix,
            )
        )
        run_in(prefix, FILL)
        assert "0" == run_in(prefix, "stat -f -c %a /dev/shm").strip()
        engine = start(name, prefix=prefix)
        assert 100 == engine.do("store", numbers=list(range(-100, 0)))
        capacity = 464  # 29 segments of 256 KiB, 16 blocks each
        for first in range(0, 2 * capacity, 100):
            assert 100 == engine.do("store", numbers=list(range(first, first + 100)))
        judged = engine.do("check", numbers=list(range(2 * capacity)))
        assert judged["right"] >= capacity - 100
        assert 0 == judged["wrong"]
        tally = engine.do("tally")
        assert tally["ready"] >= tally["capacity"] > 0, "each block there is has been written"

        # Re-adopting, reporting and purging need no room either.
        served.end()
        wait_ready(
            serve(
                "--size",
                "8M",
                "--segment-size",
                "256K",
                "--block-min",
                "16K",
                *NO_LOCK,
                prefix=prefix,
            )
        ).end()
        assert 0 == pegashm("dump", "--name", name, prefix=prefix).returncode
        engine.kill()
        figures["kills"] += 1
        purged = pegashm("purge", "--name", name, "--yes", prefix=prefix)
        assert 0 == purged.returncode, purged.stderr
        assert ["others"] == listing(prefix)


def test_shm_that_fills_up_while_an_arena_is_made(name: str, figures: Counter[str]) -> None:
    """There is room when it looks, and none when it reserves: somebody else was faster."""
    with mounted(TINY) as prefix:
        # No pages may be had although the file system has them free: as when others take them meanwhile.
        run_in(prefix, "mount -o remount,size=16M,nr_inodes=3 /dev/shm && touch /dev/shm/a")
        result = pegashm("serve", "--name", name, "--size", "8M", *NO_LOCK, prefix=prefix)
        assert 1 == result.returncode
        assert "Traceback" not in result.stderr
        assert "/dev/shm" in result.stderr
        assert ["a"] == listing(prefix)
        figures["refusals"] += 1
