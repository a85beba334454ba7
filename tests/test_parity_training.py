"""Training against a plain PyTorch loop: the same weights, batches and schedule give the same losses."""

import math

import jax
import numpy as np
import pytest

from zoo.checkpoints.manager import Checkpoints
from zoo.models import build
from zoo.recipe import make_recipe
from zoo.run.restore import restore_or_initialize
from zoo.train.mesh import make_mesh, put_batch
from zoo.train.program import Program

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS, WARMUP, PEAK, FINAL = 50, 5, 1e-3, 1e-4
MODEL = dict(vocab_size=60, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
OPTIMIZER = dict(peak_lr=PEAK, final_lr=FINAL, warmup_steps=WARMUP, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """A directory of a small LlamaForCausalLM (KodaLite's shape of a model), with enlarged weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "norm" in name else parameter.shape[-1] ** -0.5
            parameter.copy_(spread * torch.randn_like(parameter) + ("norm" in name))
    directory = tmp_path_factory.mktemp("hf")
    model.save_pretrained(directory)
    return directory


def batches(masked):
    """STEPS batches [4, 24] of a language of few words, so that there is something to learn."""
    random = np.random.default_rng(0)
    words = random.integers(1, 60, (8, 4))
    for _ in range(STEPS):
        tokens = words[random.integers(0, 8, (4, 7))].reshape(4, 28)[:, :25].astype(np.int32)
        mask = (random.random((4, 24)) < 0.4) if masked else np.ones((4, 24))
        yield {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask.astype(np.float32)}


def ours(hf, tmp_path, clip, **sections):
    """The program and where it begins, from a recipe that begins from the directory."""
    data = {"kind": "text", "source": "stories", "seq_len": 24, "batch_size": 4}
    content = {"name": "x", "model": {"name": "kodalite-1.3b", **MODEL}, "data": data, "from": str(hf)}
    content |= {"optimizer": {**OPTIMIZER, "clip_norm": clip}, "train": {"steps": STEPS}}
    recipe = make_recipe({**content, **sections})
    program = Program(recipe, make_mesh(recipe.mesh, jax.devices()[:1]))
    return program, restore_or_initialize(
        program, Checkpoints(tmp_path / "checkpoints"), lambda meta: None, lambda line: None
    )


def our_losses(program, begun, masked):
    step, losses = program.step(begun.frozen), []
    params, opt_state = begun.state.params, begun.state.opt_state
    for number, batch in enumerate(batches(masked)):
        params, opt_state, metrics = step(params, opt_state, put_batch(batch, program.mesh), number)
        losses.append(float(metrics["loss"]))
    return losses, params


def rate(step):
    if step < WARMUP:
        return PEAK * step / WARMUP
    return FINAL + (PEAK - FINAL) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def torch_losses(model, clip, masked):
    """A loop as one writes it: loss over the masked targets, clip, AdamW."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    losses = []
    for number, batch in enumerate(batches(masked)):
        tokens, targets, mask = (torch.tensor(batch[name]) for name in ("tokens", "targets", "loss_mask"))
        logits = model(tokens.long()).logits
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.long().flatten(), reduction="none")
        loss = (nll * mask.flatten()).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(number)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_fifty_steps_of_all_parameters_are_those_of_pytorch(hf, tmp_path):
    program, begun = ours(hf, tmp_path, clip=1.0)
    assert not program.frozen
    losses, params = our_losses(program, begun, masked=False)
    model = transformers.LlamaForCausalLM.from_pretrained(hf)
    np.testing.assert_allclose(losses, torch_losses(model, 1.0, masked=False), rtol=0, atol=1e-5)
    assert losses[-1] < losses[0] - 0.3
    q = model.model.layers[1].self_attn.q_proj.weight.detach().numpy().T
    np.testing.assert_allclose(params["layers"][1]["attn"]["q"]["kernel"], q, rtol=0, atol=1e-4)


def test_fifty_steps_of_adapters_on_masked_targets_are_those_of_peft(hf, tmp_path):
    peft = pytest.importorskip("peft")
    program, begun = ours(hf, tmp_path, clip=0.5, lora={"rank": 4, "alpha": 8})
    # The same first values there: PEFT's own are drawn in another way.
    first = {path: np.array(leaf) for path, leaf in build.flatten(begun.state.params).items()}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(hf), config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(x.size for x in first.values())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                layer, projection = name.split(".layers.")[1].split(".")[0], name.split("self_attn.")[1][0]
                parameter.copy_(torch.tensor(first[f"layers/{layer}/attn/{projection}/lora/a"].T))
    losses, params = our_losses(program, begun, masked=True)
    np.testing.assert_allclose(losses, torch_losses(model, 0.5, masked=True), rtol=0, atol=1e-5)
    named = dict(model.named_parameters())
    for projection in "qkvo":
        for factor in "ab":
            name = f"base_model.model.model.layers.0.self_attn.{projection}_proj.lora_{factor.upper()}.default.weight"
            theirs = named[name].detach().numpy().T
            mine = params["layers"][0]["attn"][projection]["lora"][factor]
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
        assert np.abs(mine).max() > 1e-3  # b was zero
