"""Trajectories on disk, and recording at fixed (x_t, t): from a trajectory, and from images with noise on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from probe import guidance
from probe._images import Images, encode
from probe._record import open_run, record, verify
from probe._run import Run
from probe._sites import sites
from probe._store import RunStore, TrajectoryStore
from probe._trajectories import trajectories
from probe._trajectory import Trajectory
from probe.errors import BadInput, HeaderMismatch, WorkbenchError
from probe.testing import tiny_pipeline
from tests.oracles.reduce import reduce_rows

# diffusers 0.42 hands tensors to numpy 2 without the copy keyword in some schedulers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a church", "two cats", "a hill"]
FEW = {"steps": 2, "seeds": [5, 6, 7], "batch_size": 2, "progress": False}
KEPT = {"sites": ["ffn", "mlp"], "reduce": ["unit_norm", "absmean"], "latents": True}


def with_euler(kind):
    pipe = tiny_pipeline(kind)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)  # x_0 + sigma eps: inputs are scaled
    return pipe


@pytest.fixture(
    scope="module",
    params=[("sd15", False), ("sd21", True), ("sdxl", False)],
    ids=["sd15-ddim", "sd21-euler", "sdxl-ddim"],
)
def both(request, tmp_path_factory):
    """The same samples as a plain run with latents and as a float32 trajectory."""
    kind, euler = request.param
    pipe, folder = with_euler(kind) if euler else tiny_pipeline(kind), tmp_path_factory.mktemp(kind)
    run = record(pipe, PROMPTS, out=folder / "run", images=False, **KEPT, **FEW)
    stored = trajectories(pipe, PROMPTS, out=folder / "traj", stored_as="float32", noise_pred=True, **FEW)
    return pipe, run, stored


def test_a_trajectory_holds_what_the_sampler_held(both):
    pipe, run, stored = both
    ds, latents = stored.open(), run.open("latents")
    assert ds["latents"].dims == ("sample", "step", "c", "y", "x")
    assert ds["final"].dims == ("sample", "c", "y", "x")
    assert ds["noise_pred"].dims == ("sample", "branch", "step", "c", "y", "x")
    assert ds["prompt"].values.tolist() == PROMPTS
    np.testing.assert_array_equal(ds["latents"], latents["latents"])
    assert ds["timestep"].values.tolist() == latents["timestep"].values.tolist()
    uncond, cond = ds["noise_pred"].values.transpose(1, 0, 2, 3, 4, 5)
    np.testing.assert_allclose(uncond + 7.5 * (cond - uncond), latents["guided"], rtol=1e-4, atol=1e-5)
    options = {"num_inference_steps": 2, "guidance_scale": 7.5, "output_type": "latent"}
    options["generator"] = torch.Generator().manual_seed(5)
    if isinstance(pipe.scheduler, EulerDiscreteScheduler):
        assert (ds["input_scale"].values < 1).all()
    else:
        np.testing.assert_allclose(ds["final"][0], pipe(PROMPTS[0], **options).images[0], rtol=1e-3, atol=1e-4)
    assert verify(stored.path) == []
    assert stored.complete
    assert stored.samples["seed"].tolist() == [5, 6, 7]


def test_a_model_on_its_own_trajectory_gives_the_activations_of_the_plain_run(both, tmp_path):
    pipe, run, stored = both
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()]
    again = record(pipe, out=tmp_path / "run", trajectories=stored, batch_size=2, progress=False, **KEPT)
    assert again.samples["prompt"].tolist() == PROMPTS
    assert again.identity["inputs"] == {"kind": "trajectories", "id": stored.id}
    assert again.groups == run.groups
    for group in (name for name in run.groups if name != "latents"):
        for name in KEPT["reduce"]:
            np.testing.assert_allclose(again.open(group)[name], run.open(group)[name], rtol=1e-4, atol=1e-6)
    for name in ("latents", "guided"):
        np.testing.assert_allclose(again.open("latents")[name], run.open("latents")[name], rtol=1e-4, atol=1e-5)
    assert again.open()["timestep"].values.tolist() == run.open()["timestep"].values.tolist()
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()]


def test_text_that_sdxl_does_not_encode_is_nan_and_nobody_is_told(both, tmp_path, caplog):
    pipe, run, stored = both
    again = record(pipe, out=tmp_path / "run", trajectories=stored, progress=False, **KEPT)
    encoders = [name for name in run.groups if name.startswith("text_encoder")]
    assert len(encoders) == 1 + hasattr(pipe, "text_encoder_2")
    for found in (run, again):
        for group in encoders:
            absent = np.isnan(found.open(group)["absmean"].values).all((0, 2)).tolist()
            assert absent == [hasattr(pipe, "text_encoder_2"), False]
        assert "nonfinite" not in found.info
    assert again.identity.get("empty_prompt") == stored.identity.get("empty_prompt")
    assert (again.identity.get("empty_prompt") == "zeros") == hasattr(pipe, "text_encoder_2")
    assert "NaN" not in caplog.text


def test_two_models_are_compared_on_the_same_input(both, tmp_path):
    pipe, run, stored = both
    kind = "sd21" if pipe.unet.config.use_linear_projection else "sd15"
    other = tiny_pipeline("sdxl" if hasattr(pipe, "text_encoder_2") else kind)
    first, last = sites(other)[0], sites(other)[-1]
    with torch.no_grad():  # what the last site feeds changes the step's outcome, and no activation before it
        other.unet.get_submodule(last.module).weight.mul_(0)
    ds = record(other, out=tmp_path / "run", trajectories=stored.path, progress=False, images=False).open()
    plain = run.open()
    np.testing.assert_allclose(ds["absmean"], plain["absmean"], rtol=1e-3, atol=1e-6)
    assert first.name in ds.attrs["sites"]
    assert not np.allclose(ds["fan_out"][-last.width :], plain["fan_out"][-last.width :])


def test_prompts_of_ones_own_at_stored_x_t(both, tmp_path):
    pipe, run, stored = both
    ds = record(
        pipe, ["a dog"] * 3, out=tmp_path / "run", trajectories=stored, progress=False, sites="ffn", reduce="absmean"
    ).open()
    assert ds["seed"].values.tolist() == [5, 6, 7]
    uncond, cond = ds["absmean"].values.transpose(1, 0, 2, 3)
    before = run.open()["absmean"].values.transpose(1, 0, 2, 3)
    np.testing.assert_allclose(uncond, before[0], rtol=1e-3, atol=1e-6)  # the same x_t and the same empty prompt
    assert not np.allclose(cond, before[1], rtol=1e-3)


def test_trajectories_are_half_precision_by_default_and_resume_with_the_same_bits(tmp_path):
    pipe = tiny_pipeline()

    def stop(done, total):
        if done >= 8:
            raise KeyboardInterrupt

    many = {"steps": 1, "batch_size": 2}
    prompts = [f"prompt {i}" for i in range(9)]  # units of 8 samples
    whole = trajectories(pipe, prompts, out=tmp_path / "whole", progress=False, **many)
    assert whole.open()["latents"].dtype == whole.open()["final"].dtype == np.float16
    with pytest.raises(KeyboardInterrupt):
        trajectories(pipe, prompts[:8], out=tmp_path / "traj", progress=stop, **many)
    assert not Trajectory(tmp_path / "traj").complete
    with pytest.raises(BadInput, match="not finished"):
        record(pipe, out=tmp_path / "run", trajectories=tmp_path / "traj")
    trajectories(pipe, prompts[:8], out=tmp_path / "traj", progress=False, **many)
    with pytest.raises(HeaderMismatch, match=r"samples.*extend=True"):
        trajectories(pipe, prompts, out=tmp_path / "traj", progress=False, **many)
    again = trajectories(pipe, prompts, out=tmp_path / "traj", progress=False, extend=True, **many)
    assert again.id == whole.id
    for name in ("latents", "final"):
        assert again.open()[name].values.tobytes() == whole.open()[name].values.tobytes()
    with pytest.raises(HeaderMismatch, match="stored_as differs"):
        trajectories(pipe, prompts, out=tmp_path / "traj", progress=False, stored_as="float32", **many)
    for kind in (Run, RunStore):
        with pytest.raises(BadInput, match="a trajectory"):
            kind(tmp_path / "traj")
    chunk = next((tmp_path / "traj" / "final" / "final" / "c").rglob("0"))
    while chunk.is_dir():
        chunk = next(chunk.iterdir())
    chunk.write_bytes(chunk.read_bytes()[:20])
    (bad,) = verify(Trajectory(tmp_path / "traj"), repair=True)
    assert bad.chunk == chunk.relative_to(tmp_path / "traj").as_posix()
    assert TrajectoryStore(tmp_path / "traj").done.tolist().count(False) == 1
    trajectories(pipe, prompts, out=tmp_path / "traj", progress=False, **many)
    assert again.open()["final"].values.tobytes() == whole.open()["final"].values.tobytes()


def test_a_trajectory_is_written_where_and_as_carefully_as_a_run(tmp_path, monkeypatch):
    pipe, url = tiny_pipeline(), f"memory://{tmp_path.name}/traj"
    options = {"steps": 1, "batch_size": 2, "progress": False}
    prompts = [f"prompt {i}" for i in range(19)]  # units of 8, 8 and 3 samples
    for rank in (1, 0):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        if rank == 1:  # as if rank 0 had just made it
            monkeypatch.setenv("RANK", "0")
            stop = options | {"progress": lambda done, total: (_ for _ in ()).throw(KeyboardInterrupt)}
            with pytest.raises(KeyboardInterrupt):
                trajectories(pipe, prompts, out=tmp_path / "shared", **stop)
            monkeypatch.setenv("RANK", "1")
        trajectories(pipe, prompts, out=tmp_path / "shared", durable=True, **options)
        assert TrajectoryStore(tmp_path / "shared").done.tolist() == [rank == 0, True, rank == 0]
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    remote = trajectories(pipe, prompts, out=url, **options)
    assert remote.path == url
    for name in ("latents", "final"):
        same = Trajectory(tmp_path / "shared").open()[name].values.tobytes()
        assert remote.open()[name].values.tobytes() == same
    assert verify(url) == []
    assert "19 of 19 samples" in repr(remote)
    few = {"sites": "unet.mid_block*.ffn", "reduce": "absmean", "progress": False}
    local = record(pipe, out=tmp_path / "local", trajectories=tmp_path / "shared", **few)
    away = record(pipe, out=f"{url}-run", trajectories=url, **few)
    assert away.open()["absmean"].values.tobytes() == local.open()["absmean"].values.tobytes()
    with pytest.raises(BadInput, match=r"trajectory would be larger than max_gb"):
        trajectories(pipe, prompts, out=tmp_path / "large", max_gb=1e-6, **options)
    assert not (tmp_path / "large").exists()


def test_infinity_in_half_precision_is_reported(tmp_path, caplog):
    pipe = tiny_pipeline()
    handle = pipe.unet.register_forward_hook(lambda _m, _a, output: (output[0] * 1e7,))
    try:
        stored = trajectories(pipe, ["a"], out=tmp_path / "traj", steps=2, guidance=1.0, progress=False)
    finally:
        handle.remove()
    (entry, *_) = stored.nonfinite
    assert (entry["group"], entry["steps"], entry["samples"]) == ("latents", [1], [0])
    assert "NaN or infinity was recorded: latents, step 1, sample 0" in caplog.text


# --- images ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures of other shapes than the model's, and a file that is none."""
    made, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, size in (("b.png", (40, 20)), ("a.jpg", (16, 16))):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(made / name)
    (made / "notes.txt").write_text("mine")
    return made


def test_images_are_shown_to_the_unet_with_their_samples_own_noise(folder, tmp_path):
    pipe, timesteps = tiny_pipeline(), [1, 401, 901]
    run = record(
        pipe,
        ["a church", "a hill"],
        out=tmp_path / "run",
        from_images=folder,
        timesteps=timesteps,
        seeds=[3, 4],
        sites=["ffn", "mlp"],
        reduce="absmean",
        latents=True,
        progress=False,
    )
    assert run.groups == ["latents", "text_encoder", "unet"]
    assert run.samples["source_image"].tolist() == ["a.jpg", "b.png"]
    ds, latents = run.open(), run.open("latents")
    assert ds["absmean"].shape[:3] == (2, 2, 3)
    assert ds["timestep"].values.tolist() == timesteps
    site = sites(pipe)[1]
    kept = []
    handle = pipe.unet.get_submodule(site.module).register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    images = Images.of(folder, (16, 16))
    try:
        for s, (prompt, seed) in enumerate((("a church", 3), ("a hill", 4))):
            clean = encode(pipe, images[s][None])
            noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(seed))
            for t, timestep in enumerate(timesteps):
                x_t = pipe.scheduler.add_noise(clean, noise[None], torch.tensor([timestep]))
                np.testing.assert_allclose(latents["latents"][s, t], x_t[0], rtol=1e-4, atol=1e-5)
                with torch.no_grad():
                    guidance.predict(pipe, x_t, timestep, guidance.condition(pipe, [prompt]))
                for b in range(2):
                    wanted = reduce_rows("absmean", kept[-1][b].tolist())
                    found = ds["absmean"].values[s, b, t, 128 : 128 + site.width]
                    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
    finally:
        handle.remove()


def test_one_prompt_serves_all_images_and_unguided_ones_have_one_branch(folder, tmp_path):
    pipe = tiny_pipeline()
    array = np.stack([Images.of(folder, (16, 16))[i] for i in range(2)])
    options = {"timesteps": [501], "guidance": 1.0, "reduce": "max", "progress": False}
    run = record(pipe, "a church", out=tmp_path / "run", from_images=array, seeds_per_prompt=2, **options)
    assert run.open()["branch"].values.tolist() == ["cond"]
    assert run.samples["source_image"].tolist() == ["0", "0", "1", "1"]
    assert run.samples["seed"].tolist() == [0, 1, 0, 1]
    alone = record(pipe, out=tmp_path / "alone", from_images=array[:1], **options | {"timesteps": [101, 501]})
    assert alone.samples["prompt"].tolist() == [""]
    other = record(pipe, [""], out=tmp_path / "other", from_images=array[:1], **options).open()["max"]
    np.testing.assert_allclose(alone.open()["max"][:, :, 1], other[:, :, 0], rtol=1e-4, atol=1e-6)
    with pytest.raises(HeaderMismatch, match=r"inputs\.sha256"):
        record(pipe, "a church", out=tmp_path / "run", from_images=array[::-1], seeds_per_prompt=2, **options)


def test_encoding_is_the_vaes_own_and_leaves_it_alone(folder):
    pipe = tiny_pipeline()
    image = Images.of(folder, (16, 16))[1]
    x = torch.from_numpy(image.copy())[None].permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        wanted = pipe.vae.encode(x).latent_dist.mode() * pipe.vae.config.scaling_factor
        torch.testing.assert_close(encode(pipe, image[None]), wanted)
        half = tiny_pipeline()
        half.vae.to(torch.float16).register_to_config(force_upcast=True)
        before = {name: tensor.data_ptr() for name, tensor in half.vae.state_dict().items()}
        torch.testing.assert_close(encode(half, image[None]), wanted, rtol=1e-2, atol=1e-2)
    assert before == {name: tensor.data_ptr() for name, tensor in half.vae.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"from_images": "FOLDER"}, "chosen timesteps"),
        ({"from_images": "FOLDER", "timesteps": [1, 1]}, "different timesteps"),
        ({"from_images": "FOLDER", "timesteps": [1000]}, "0 to 999"),
        ({"from_images": "FOLDER", "timesteps": [1], "steps": 4}, "steps=4"),
        ({"from_images": "FOLDER", "timesteps": [1], "prompts": ["a"] * 3}, "3 prompts, 2 images"),
        ({"from_images": "FOLDER", "timesteps": [1], "images": True}, "nothing is drawn"),
        ({"from_images": "nowhere", "timesteps": [1]}, "no such folder"),
        ({"from_images": np.zeros((2, 4, 4)), "timesteps": [1]}, "uint8"),
        ({"timesteps": [1], "prompts": ["a"]}, "from_images"),
        ({}, "no prompts"),
    ],
)
def test_what_cannot_be_shown_is_said_before_anything_is_written(folder, tmp_path, options, words):
    options = {k: folder if isinstance(v, str) and v == "FOLDER" else v for k, v in options.items()}
    prompts = options.pop("prompts", None)
    with pytest.raises(BadInput, match=words):
        record(tiny_pipeline(), prompts, out=tmp_path / "run", progress=False, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_a_trajectory_settles_cannot_be_chosen_again(both, tmp_path):
    pipe, _, stored = both
    for options in ({"steps": 4}, {"guidance": 2.0}, {"seeds": 3}, {"height": 32}):
        with pytest.raises(BadInput, match=f"{next(iter(options))}="):
            record(pipe, out=tmp_path / "run", trajectories=stored, **options)
    with pytest.raises(WorkbenchError, match="differ in number"):
        record(pipe, ["a"], out=tmp_path / "run", trajectories=stored)
    assert list(tmp_path.iterdir()) == []


def test_a_run_at_fixed_inputs_shows_itself(both, tmp_path):
    pipe, _, stored = both
    run = record(pipe, out=tmp_path / "run", trajectories=stored, sites=[], latents=True, progress=False)
    assert open_run(run, "latents").sizes["step"] == 2
    assert "none" in run._repr_html_()
    assert "3 of 3 samples" in repr(stored)
