"""The application that the command modules register themselves with."""

from probe._terminal import new_app

app = new_app("erase", help="Take concepts out of a text-to-image diffusion model, reversibly: edits from findings.")
