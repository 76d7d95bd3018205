"""`python -m benchmarks`: Penstock and its peers, durably, in one run; medians, ratios, and whether each is reached.

Figures are messages per second on one machine that servers and clients share. They move with the machine: only ratios of
one run mean something, which is why the rounds are interleaved (each round measures every system once) and the median is quoted.
Senders are one client process; a cycle is a producer process and a consumer process at once. What each server is set to do, and
what a message that it acknowledged survives, stands in benchmarks/servers.py; how it is driven in benchmarks/peer_*.py and
penstock_client.py, for streams in benchmarks/stream_*.py; how it is counted in benchmarks/meter.py. What a reader at the tip of a
stream waits stands in benchmarks/tip.py, what registered consumers cost in benchmarks/fanout.py. benchmarks/install_peers.sh
installs the peers. A peer that is missing, or does not start, is said to be so and left out.

Exit code: 0 when everything that was measured reached what it must, 1 when something was missed, 2 when Penstock itself failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import backlog, fanout, machine, report, scenarios, tip
from benchmarks.meter import Sample, Work
from benchmarks.servers import PEERS, NotInstalled, running, versions

BACKLOG = 1_000_000
TRIES = 4
IN_MEMORY = ("tmpfs", "ramfs")


class Run:
    """One run: its options, what was found, and who is left out."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.systems = ["penstock", *(peer for peer in options.peers.split(",") if peer)]
        self.left_out: dict[str, str] = {}
        self.rounds: report.Rounds = {}
        self.waitings: report.Waitings = {}
        self.tips: report.Tips = {}
        self.fanouts: list[fanout.Fanout] = []
        self.failed = False

    def check_installed(self) -> None:
        """Leaves out what is not there."""
        for system in self.systems:
            try:
                scenarios.clients_of(system)
                with running(system, self.options.folder):
                    pass
            except NotInstalled as error:
                self._leave_out(system, f"missing: {error}")
            except (RuntimeError, OSError) as error:
                self._leave_out(system, f"does not start: {error}")

    def _leave_out(self, system: str, why: str) -> None:
        self.left_out[system] = why
        self.failed = self.failed or system == "penstock"
        self.console.print(f"[yellow]{system} is left out, {why}[/]")

    def _taking_part(self, among: Any) -> list[str]:
        return [system for system in self.systems if system in among and system not in self.left_out]

    def _problem(self, name: str, system: str, error: Exception) -> None:
        self.failed = self.failed or system == "penstock"
        self.console.print(f"[red]{name}: {system} failed: {error}[/]")

    def measure_scenario(self, scenario: scenarios.Scenario, turn: int) -> None:
        """One round of one scenario."""
        for system in self._taking_part(scenario.systems):
            client = scenarios.client_of(system, scenarios.KINDS[scenario.kind].modules)
            best: Sample | None = None
            for work in scenarios.works(scenario, system, self.options.size):
                try:
                    sample = self._quiet_sample(system, scenario, work)
                except (*client.ERRORS, RuntimeError, OSError) as error:
                    self._problem(scenario.name, system, error)
                    continue
                detail = f"(window {work.window}) " if len(scenario.windows.get(system, ())) > 1 else ""
                self.console.print(
                    f"[dim]round {turn}: {scenario.name}: {system} {detail}{sample.per_second:,.0f}/s; cores: server"
                    f" {sample.server_cores:.2f}, clients {sample.client_cores:.2f}, others {sample.other_cores:.2f}[/]"
                )
                if best is None or sample.per_second > best.per_second:
                    best = sample
            if best is not None:
                self.rounds.setdefault(scenario.name, {}).setdefault(system, []).append(best)

    def _quiet_sample(self, system: str, scenario: scenarios.Scenario, work: Work) -> Sample:
        """The first sample that others did not disturb; after TRIES, the least disturbed."""
        samples: list[Sample] = []
        while len(samples) < TRIES:
            with running(system, self.options.folder) as server:
                samples.append(scenarios.run(server, scenario, work, self.options.seconds))
            if samples[-1].other_cores <= self.options.quiet:
                break
        return min(samples, key=lambda sample: sample.other_cores)

    def measure_backlog(self, turn: int) -> None:
        """One round of what waiting messages cost."""
        options = self.options
        for system in self._taking_part(backlog.FILLS):
            for fill in backlog.FILLS[system]:
                try:
                    found = backlog.run(system, options.folder, fill, options.size, options.seconds, options.backlog)
                except (*scenarios.client_of(system).ERRORS, RuntimeError, OSError) as error:
                    self._problem("backlog", system, error)
                    continue
                self.console.print(
                    f"[dim]round {turn}: {options.backlog:,} waiting: {system}, {fill.name}: sends"
                    f" {found.send_full.per_second:,.0f}/s, cycle {found.cycle_full.per_second:,.0f}/s,"
                    f" {found.rss_full / report.MIB:,.0f} MiB[/]"
                )
                self.waitings.setdefault((system, fill.name), []).append(found)

    def measure_tip(self, turn: int) -> None:
        """One round of what a reader at the tip waits."""
        for system in self._taking_part(tip.SYSTEMS):
            try:
                found = tip.run(system, self.options.folder, self.options.size, self.options.seconds)
            except (*scenarios.client_of(system, scenarios.STREAM_MODULES).ERRORS, RuntimeError, OSError) as error:
                self._problem("tip latency", system, error)
                continue
            self.console.print(
                f"[dim]round {turn}: tip latency: {system}: put to reader {found.whole.median_ms:.2f} ms, 99 %"
                f" {found.whole.p99_ms:.2f} ms[/]"
            )
            self.tips.setdefault(system, []).append(found)

    def measure_fanout(self, turn: int) -> None:
        """One round of what registered consumers cost."""
        if "penstock" in self.left_out:
            return
        try:
            found = fanout.run(self.options.folder, self.options.size, self.options.seconds)
        except (*scenarios.client_of("penstock").ERRORS, RuntimeError, OSError) as error:
            self._problem("fanout", "penstock", error)
            return
        told = ", ".join(f"{number}: {found.microseconds(number):.1f} µs" for number in fanout.CONSUMERS)
        self.console.print(f"[dim]round {turn}: registered consumers, the broker's processor time for a record: {told}[/]")
        self.fanouts.append(found)

    def as_json(self) -> dict[str, Any]:
        """Everything, round by round."""
        return {
            "size_bytes": self.options.size,
            "seconds": self.options.seconds,
            "versions": versions(self.systems),
            "left_out": self.left_out,
            "rounds": {
                name: {system: [dataclasses.asdict(one) for one in samples] for system, samples in found.items()}
                for name, found in self.rounds.items()
            },
            "medians": {
                name: {system: report.median(samples) for system, samples in found.items()} for name, found in self.rounds.items()
            },
            "backlog": {
                f"{system}, {fill}": [dataclasses.asdict(one) for one in found] for (system, fill), found in self.waitings.items()
            },
            "fanout": [{str(number): dataclasses.asdict(one) for number, one in found.samples.items()} for found in self.fanouts],
            "tip": {system: [dataclasses.asdict(one) for one in found] for system, found in self.tips.items()},
        }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="the window of one measurement (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; the median is quoted (default 3)")
    parser.add_argument("--size", type=int, default=256, help="bytes of a message (default 256)")
    parser.add_argument("--peers", default=",".join(PEERS), help="those to measure beside Penstock (default all; '' for none)")
    parser.add_argument(
        "--scenarios",
        default="",
        help="only those that are named so or, if none is, whose names contain it; several with ; between;"
        " also 'tip', 'fanout', 'backlog'",
    )
    parser.add_argument(
        "--backlog", type=int, default=BACKLOG, help="messages waiting in the backlog (default 1,000,000; 0: skip)"
    )
    parser.add_argument("--no-backlog", dest="backlog", action="store_const", const=0, help="the same as --backlog 0")
    parser.add_argument("--only-peers", action="store_true", help="leave Penstock out")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where servers keep their data; a real disk (default: a temporary folder)"
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=2.0**30,
        metavar="CORES",
        help=f"measure again, up to {TRIES} times, while other processes take more than this; say 0.2 (default: never)",
    )
    parser.add_argument("--json", type=Path, help="write everything there")
    options = parser.parse_args()
    if unknown := [peer for peer in options.peers.split(",") if peer and peer not in PEERS]:
        parser.error(f"--peers: {', '.join(unknown)} is unknown; there are {', '.join(PEERS)}")
    if options.folder is None:
        places = (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd())
        options.folder = next((place for place in places if machine.file_system(place) not in IN_MEMORY), places[0])
    if machine.file_system(options.folder) in IN_MEMORY:
        parser.error(f"--folder: {options.folder} is in memory; nothing there is durable")
    return options


def _names(part: str, name: str) -> bool:
    """Whether a part of --scenarios means this scenario: its whole name, else anything in it."""
    whole = any(part == one.name.lower() for one in scenarios.SCENARIOS)
    return part == name if whole else part in name


def main() -> int:
    """See the module's docstring."""
    options = _arguments()
    # Ended from outside, leave all blocks, so that no server and no folder stays behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    run = Run(options, console)
    if options.only_peers:
        run.systems.remove("penstock")
    wanted = [part.strip().lower() for part in options.scenarios.split(";") if part.strip()]
    chosen = [one for one in scenarios.SCENARIOS if not wanted or any(_names(part, one.name.lower()) for part in wanted)]
    with_tip = not wanted or "tip" in wanted
    with_fanout = "penstock" in run.systems and (not wanted or "fanout" in wanted)
    with_backlog = options.backlog > 0 and (not wanted or "backlog" in wanted)
    console.print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}; {options.folder} on {machine.file_system(options.folder)}: 4 KiB"
        f" append and fdatasync {machine.fsync_ms(options.folder):.2f} ms (median)"
    )
    run.check_installed()
    try:
        for turn in range(1, options.rounds + 1):
            for scenario in chosen:
                run.measure_scenario(scenario, turn)
            if with_tip:
                run.measure_tip(turn)
            if with_fanout:
                run.measure_fanout(turn)
            if with_backlog:
                run.measure_backlog(turn)
    except (KeyboardInterrupt, SystemExit):
        console.print("[yellow]ended early: what follows is from the measurements so far[/]")
        run.failed = True
    present = [system for system in run.systems if system not in run.left_out]
    verdicts: list[bool] = []
    if run.rounds:
        report.rates(console, run.rounds, present, versions(present), options.size)
        verdicts += report.demands(console, run.rounds)
    if run.tips:
        verdicts += report.tips(console, run.tips)
    if run.fanouts:
        verdicts += report.fanouts(console, run.fanouts)
    if run.waitings:
        verdicts += report.backlog(console, run.waitings, options.backlog, present)
    for system, why in run.left_out.items():
        console.print(f"[yellow]{system} was left out, {why}[/]")
    if options.json:
        options.json.write_text(json.dumps(run.as_json(), indent=1))
    return 2 if run.failed else int(not all(verdicts))


if __name__ == "__main__":
    sys.exit(main())
