"""Options that several commands have."""

from typing import Annotated, Literal

import typer

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]

Dtype = Annotated[
    DtypeName,
    typer.Option(help="Of the weights; auto: bfloat16 on a GPU that computes in it, else float32."),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Another name by which browsers and clients may ask, as of a proxy before it."),
]
