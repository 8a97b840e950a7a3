"""What a host types to make data sets ready: `potluck data prepare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from commands.options import Json, Lang, Verbose
from commands.talk import log_to_stderr, need

app = typer.Typer(help="Prepare data sets of any size for a run.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Prepare data sets of any size for a run."""


@app.command()
def prepare(
    config: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="The run, with its data as [[data]].")],
    folder: Annotated[Path | None, typer.Option(help="The run's folder [default: runs/NAME].")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many at a time [default: one for each core].")
    ] = None,
    lang: Lang = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn a run's sources into shards of tokens, once; a preparation that was cut off goes on."""
    log_to_stderr(verbose)
    need("coordinator", "torch", "transformers", "numpy")
    from coordinator.dataset import plain_tokenizer
    from coordinator.dataset.prepare import prepare as prepare_data
    from coordinator.dataset.screen import PrepareScreen
    from coordinator.run_config import RunConfig
    from coordinator.run_folder import RunFolder

    run = RunConfig.load(config)
    sources, here = run.data_sources, config.resolve().parent
    run_folder = folder or Path("runs") / run.run.name
    with RunFolder(run_folder).locked(), PrepareScreen(as_json=json_output) as screen:
        screen.tell("loading the model's tokenizer")
        tokenizer = plain_tokenizer.in_another_process(run.model, here, run_folder.absolute() / "hub")
        prepared = prepare_data(
            sources,
            run.sequence_rules,
            here,
            tokenizer,
            run_folder / "data",
            processes=processes or os.cpu_count() or 1,
            tell=screen.tell,
            show=screen.show,
        )
    screen.ended(prepared, str(run_folder / "data"))
