"""`pegashm exporter`: an arena's metrics, health and status page over HTTP."""

import os

import click

from pegashm.cli.common import CONTEXT, any_name_option, clear_errors, log_options

__all__ = ["exporter"]

_NICER = 5


@click.command(context_settings=CONTEXT)
@any_name_option
@click.option(
    "--listen",
    "http_listen",  # not `listen`: that is serve's, for other hosts
    metavar="HOST:PORT",
    envvar="PEGASHM_EXPORTER_LISTEN",
    show_envvar=True,
    default="127.0.0.1:9470",
    show_default=True,
    help="Where to answer HTTP; port 0: any that is free. Whoever can connect may read: numbers, process ids and labels.",
)
@click.option(
    "--survey-seconds",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    envvar="PEGASHM_SURVEY_SECONDS",
    show_envvar=True,
    default=10.0,
    show_default=True,
    help="At most so often count blocks, pins and claims, which is a pass over all block records.",
)
@log_options
@clear_errors
def exporter(
    name: str, http_listen: str, survey_seconds: float, log_format: str, log_level: str
) -> None:
    """Serve an arena's metrics, health and status page over HTTP, until SIGTERM.

    It maps the control region read-only and is on no path of any engine: it may be killed, stopped or absent.
    It needs no arena to start, and goes on when that is purged and created anew.

    \b
      /         the status page, for a browser: works offline, light and dark, on a phone
      /metrics  for Prometheus (text or OpenMetrics)
      /health   JSON: ok, degraded or down, and why; 503 when engines cannot use the arena
      /ready    200 when they can, else 503
      /live     200 as long as the exporter lives
      /api/state, /api/history?span=900   the status page's figures as JSON

    \b
    Examples:
      pegashm exporter --name kv0
      pegashm exporter --name kv0 --listen 0.0.0.0:9470
      curl -s localhost:9470/health

    \b
    Exit status: 0 ended by a signal, 1 cannot listen there, 2 wrong usage.
    """
    from pegashm import logs
    from pegashm.exporter.routes import Exporter
    from pegashm.exporter.server import parse_listen
    from pegashm.names import control_path
    from pegashm.notices import ENDING, EXPORTER_LISTENING
    from pegashm.termination import Termination

    address = parse_listen(http_listen)
    control_path(name)  # an error now for a name that cannot be one
    logs.configure(
        logs.LogConfig(format=log_format, level=log_level, arena=name, process="exporter")
    )
    os.nice(_NICER)
    with Termination() as termination:
        served = Exporter(name, address, survey_seconds=survey_seconds)
        served.start()
        logs.tell(
            EXPORTER_LISTENING,
            'exporter of arena "%s" listens on http://%s/metrics',
            name,
            served.address,
            address=served.address,
        )
        while not termination.wait(3600.0):
            pass
        served.stop()
    logs.tell(ENDING, "exporter: %s received: ended", termination.signal_name)
