"""One line of help for each parameter name. A name means the same in every command, so it is explained once."""

WORDS = {
    # sampling
    "steps": "denoising steps",
    "first_steps": "short for the window that covers the first N steps",
    "guidance": "classifier-free guidance scale",
    "negative_prompt": "negative prompt of every sample",
    "seeds": "one seed for every prompt, or one per prompt",
    "seeds_per_prompt": "draw every prompt with this many seeds",
    "seed": "seed of what is random here",
    "batch_size": "samples per batch; results do not depend on it",
    "height": "image height in pixels; the model's own unless given",
    "width": "image width in pixels; the model's own unless given",
    "images": "keep the images: auto (up to 128 px), true or false",
    # recording
    "sites": "where to record: a kind (ffn, mlp), a site name or a glob; several with commas",
    "reduce": "what to keep of an activation: norm, unit_norm, mean, absmean, max",
    "detector": "judge of the images, by name",
    "concept": "concept the samples are about, by name",
    "split": "split of the concept's prompts",
    "extend": "the samples start with those of the run at --out: add the others",
    # scores
    "method": "how neurons are scored",
    "branches": "both branches of guidance as in the paper, or cond alone",
    "normalise": "mean over token rows (default), or the sums of the released code",
    # erasing
    "skill_ratio": "share of the hidden units that each output row may select",
    "window": "timesteps t_max,t_min that the mask is gathered from",
    "keep": "what must survive: a neuron map or a run of protected prompts",
    "scope": "the share is taken per output row as in the paper, or over the whole layer",
    "margin": "how far the target must exceed the reference",
    "vote": "share of the window's steps that must select a weight; 0 is the paper's union",
    "mode": "what pruned neurons become",
    "kind": "what the control shares with the edit beside its density",
    "name": "name of the edit",
}
