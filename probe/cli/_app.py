"""The application that the command modules register themselves with."""

from probe._terminal import new_app

app = new_app(
    "probe", help="Observe a text-to-image diffusion model: record, score, evaluate, plot. Changes nothing in it."
)
