"""Weight and checkpoint files as people have them: read, or refused in a sentence; the activation that weights need."""

from __future__ import annotations

import argparse
import errno
import gzip
import hashlib
import json
import shutil
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, small_profile
from safetensors.torch import save_file

from vlmad_lib import InputError, methods
from vlmad_lib.config import Method
from vlmad_lib.encoders import backbones, weight_files
from vlmad_lib.methods import aprilgan, checkpoints, clip_baselines
from vlmad_lib.methods.prompt_learner import CHECKPOINT, PromptLearner
from vlmad_lib.pipeline import run

CONFIG = json.loads(Path(TINY["backbone"]).read_text())


def plain(backbone: backbones.Backbone) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in backbone.model.state_dict().items()}


def archive(state: dict[str, torch.Tensor], path: Path) -> Path:
    """A traced module in fp16 with three counters beside its weights, as OpenAI's own files are."""

    class Node(torch.nn.Module):
        def forward(self, x):
            return x

    top = Node()
    counters = {"input_resolution": 80, "context_length": 77, "vocab_size": 49408}
    for key, value in (state | {name: torch.tensor(number) for name, number in counters.items()}).items():
        *heads, last = key.split(".")
        node = top
        for head in heads:
            if not hasattr(node, head):
                node.add_module(head, Node())
            node = getattr(node, head)
        if value.is_floating_point():
            node.register_parameter(last, torch.nn.Parameter(value.half(), requires_grad=False))
        else:
            node.register_buffer(last, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is deprecated
        torch.jit.trace(top, torch.zeros(1)).save(str(path))
    return path


def config(tmp_path: Path, **changes) -> str:
    """A model config like the tiny one, with keys of the text tower or of the model changed."""
    found = CONFIG | {key: value for key, value in changes.items() if key in ("quick_gelu", "custom_text")}
    found["text_cfg"] = CONFIG["text_cfg"] | {key: value for key, value in changes.items() if key not in found}
    file = tmp_path / "own.json"
    file.write_text(json.dumps(found))
    return str(file)


def transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names and shapes that the library transformers gives the same weights, written out by hand."""
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.proj": "visual_projection.weight",
        "text_projection": "text_projection.weight",
        "logit_scale": "logit_scale",
    }
    parts = [("visual.transformer.resblocks", "vision_model.encoder.layers")]
    parts += [("transformer.resblocks", "text_model.encoder.layers"), ("visual.ln_pre", "vision_model.pre_layrnorm")]
    parts += [("visual.ln_post", "vision_model.post_layernorm"), ("ln_final", "text_model.final_layer_norm")]
    parts += [(".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."), ("mlp.c_fc", "mlp.fc1")]
    parts += [("mlp.c_proj", "mlp.fc2"), ("attn.out_proj", "self_attn.out_proj")]
    found = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    for key, value in state.items():
        if key in names:
            found[names[key]] = value.T.contiguous() if key.endswith("proj") or "projection" in key else value
            continue
        for own, theirs in parts:
            key = key.replace(own, theirs)
        if "in_proj_" in key:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[key.replace("attn.in_proj_", f"self_attn.{letter}_proj.")] = part.contiguous()
        else:
            found[key] = value
    return found


# ---------------------------------------------------------------- files that are read


def test_openais_archives_are_read_as_plain_tensors(tiny_backbone, tmp_path, monkeypatch):
    path = archive(plain(tiny_backbone), tmp_path / "ViT-tiny.pt")
    assert any("/code/__torch__" in name for name in zipfile.ZipFile(path).namelist())
    monkeypatch.setattr(torch.jit, "load", None)  # none of its code is run
    found = weight_files.read_tensors(path)
    assert set(found) == {*tiny_backbone.model.state_dict(), *backbones.COUNTERS}
    assert found["visual.proj"].dtype == torch.float16 and found["vocab_size"].item() == 49408
    loaded = backbones.load_backbone(config(tmp_path, quick_gelu=True), str(path))
    kept = {key: value for key, value in plain(tiny_backbone).items() if key != "logit_scale"}
    for key, value in loaded.model.state_dict().items():
        if key in kept:
            torch.testing.assert_close(value, kept[key], atol=0, rtol=0)
    assert loaded.activation == "QuickGELU" and not loaded.warning and not loaded.note


def test_safetensors_of_any_name(tiny_backbone, tmp_path):
    save_file(plain(tiny_backbone), tmp_path / "renamed.pt")
    assert (
        backbones.load_backbone(TINY["backbone"], str(tmp_path / "renamed.pt")).fingerprint == tiny_backbone.fingerprint
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("custom", [False, True])
def test_clip_models_of_transformers_are_converted(tiny_backbone, tmp_path, name, custom):
    state, path = transformers(plain(tiny_backbone)), tmp_path / name
    assert "vision_model.encoder.layers.1.self_attn.v_proj.bias" in state
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    found = backbones.load_backbone(config(tmp_path, custom_text=custom), str(path))
    own = found.model.state_dict()
    for key, value in plain(tiny_backbone).items():
        there = key if key in own else f"text.{key}"
        torch.testing.assert_close(own[there], value, atol=0, rtol=0)


def test_other_models_of_transformers_are_one_sentence(tiny_backbone, tmp_path):
    state, path = transformers(plain(tiny_backbone)), tmp_path / "model.safetensors"
    for change, said in (
        (lambda key: not key.startswith("text_model"), "it lacks text_model"),
        (lambda key: key != "visual_projection.weight", "it lacks visual_projection.weight"),
    ):
        save_file({key: value for key, value in state.items() if change(key)}, path)
        with pytest.raises(InputError, match=f"transformers, but of no whole CLIPModel .{said}"):
            backbones.load_backbone(TINY["backbone"], str(path))
    save_file(state | {"vision_model.head.probe": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="it holds vision_model.head.probe"):
        backbones.load_backbone(TINY["backbone"], str(path))


@pytest.mark.parametrize("old", [False, True])
def test_training_checkpoints(tiny_backbone, tmp_path, old):
    """Names behind module., NumPy numbers, an optimiser, and settings of the program that wrote it."""
    state = {f"module.{key}": value for key, value in plain(tiny_backbone).items()}
    content = {"epoch": np.int64(3), "loss": np.float64(0.1), "state_dict": state, "optimizer": {"state": {}}}
    content |= {} if old else {"args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "epoch_3.pt", _use_new_zipfile_serialization=not old)
    found = backbones.load_backbone(TINY["backbone"], str(tmp_path / "epoch_3.pt"))
    assert found.fingerprint == tiny_backbone.fingerprint


def test_views_and_types_of_tensors(tmp_path):
    base = torch.arange(12).reshape(3, 4)
    content = {"t": base.T, "part": base[1:, 2], "spread": torch.ones(1).expand(5), "none": torch.zeros(0)}
    content |= {"half": torch.tensor([0.5]).bfloat16(), "yes": torch.tensor([True, False])}
    torch.save(content, tmp_path / "w.pt")
    found = weight_files.read_tensors(tmp_path / "w.pt")
    for key, value in content.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


# ---------------------------------------------------------------- files that are refused


def _cut(path: Path, state: dict, kind: str) -> None:
    whole = path.with_name("whole")
    save_file(state, whole) if kind == "safetensors" else torch.save(state, whole)
    path.write_bytes(whole.read_bytes()[:-100])


def _damage(path: Path, state: dict) -> None:
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        place = next(one for one in file.infolist() if "/data/" in one.filename)
    content[place.header_offset + 300] ^= 255  # within its first tensor
    path.write_bytes(content)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weights/readme.txt", "hello")


FAULTS = {
    "it is a folder; name the file in it, such as w.pt": lambda path, _: (path.mkdir(), (path / "w.pt").touch()),
    "it is a web page": lambda path, _: path.write_text("\n<!DOCTYPE html><html>Sign in</html>"),
    "Git LFS pointer": lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "it is JSON text": lambda path, _: path.write_text('{"architectures": ["CLIPModel"]}'),
    "it is a compressed archive; unpack it": lambda path, _: path.write_bytes(gzip.compress(b"weights")),
    "it is empty": lambda path, _: path.touch(),
    "it is cut off or damaged: its end is missing": lambda path, state: _cut(path, state, "archive"),
    "it is cut off: ": lambda path, state: _cut(path, state, "safetensors"),
    "a part of it is not what was written": _damage,
    "it is a zip archive of other things": lambda path, _: _zip(path),
    "it is a pickle that is damaged": lambda path, _: path.write_bytes(b"\x80\x02 no pickle"),
    "it is damaged, or of another kind": lambda path, _: path.write_bytes(b"weights"),
}


@pytest.mark.parametrize("said", FAULTS)
def test_what_is_no_file_of_tensors_is_named(tmp_path, said):
    """The cause and the remedy, for weights and for checkpoints, and nothing of PyTorch's own words."""
    path = tmp_path / "file.pth"
    FAULTS[said](path, {"visual.proj": torch.arange(400.0)})
    for work, noun in (
        (lambda: backbones.load_backbone(TINY["backbone"], str(path)), "weights file"),
        (lambda: checkpoints.read(path, CHECKPOINT), "AnomalyCLIP prompt checkpoint"),
    ):
        with pytest.raises(InputError) as caught:
            work()
        message = str(caught.value)
        assert f"{path} is no {noun}: " in message and said in message and message.endswith("."), message
        assert not [word for word in ("Pytorch", "torch.load", "weights_only", "Error", "\n") if word in message]


def test_checkpoints_of_another_method_say_what_they_hold(tiny_backbone, tmp_path):
    path = tmp_path / "projections.pth"
    aprilgan.write(aprilgan.Projections(1, 2, 2), path, "visa")
    with pytest.raises(InputError, match="it lacks 'prompt_learner' and holds trainable_linearlayer"):
        checkpoints.read(path, CHECKPOINT)


def test_weights_of_another_model_say_how_they_differ(tiny_backbone, tmp_path):
    state = plain(tiny_backbone)
    del state["logit_scale"]
    torch.save(state | {"visual.proj": torch.zeros(3, 2), "more": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        backbones.load_backbone(TINY["backbone"], str(tmp_path / "w.pt"))
    assert "they lack logit_scale, they hold besides more, visual.proj is 3 x 2, it needs 64 x 32" in str(caught.value)


def test_the_demos_weights_are_named(tmp_path):
    with pytest.raises(InputError, match="write 'weights: demo' beside it"):
        backbones.locate_weights("demo", "laion400m_e31")
    with pytest.raises(InputError, match="The weights demo belong to 'backbone: demo' alone"):
        backbones.locate_weights("ViT-B-16-plus-240", "demo")


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (ConnectionError("refused"), "could not be fetched: there is no connection"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ],
)
def test_a_failed_download_says_whether_network_or_disk_was_to_blame(tmp_path, monkeypatch, cause, said):
    def download(*_, **__):
        try:
            raise cause
        except OSError:
            raise FileNotFoundError("Failed to download file") from None  # as open_clip does: the cause is its context

    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    monkeypatch.setattr(backbones, "_cached", lambda hub: None)
    monkeypatch.setattr(backbones.open_clip, "download_pretrained", download, raising=False)
    with pytest.raises(InputError, match=said) as caught:
        backbones.locate_weights("ViT-B-16-plus-240", "laion400m_e31", download=True)
    assert "make room there" not in str(caught.value)


# ---------------------------------------------------------------- the activation that weights need


@pytest.mark.parametrize(
    ("name", "file", "needed"),
    [
        ("ViT-L-14-336", "ViT-L-14-336-openai.pt", True),
        ("ViT-L-14-336-quickgelu", "ViT-L-14-336-openai.safetensors", True),
        ("ViT-L-14-336", "ViT-L-14-336-quickgelu-openai.pt", True),
        ("tiny.json", "clip_openai_finetuned.pt", True),
        ("ViT-B-32", "vit_b_32-quickgelu-laion400m_e31-d867053b.pt", True),
        ("ViT-B-32-quickgelu", "ViT-B-32-laion2b_s34b_b79k.safetensors", False),
        ("ViT-B-32", "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K/open_clip_model.safetensors", False),
        ("ViT-B-32", "ViT-B-32.safetensors", None),
        ("ViT-B-32", "mine.pt", None),
    ],
)
def test_the_origin_of_a_file_tells_its_activation(name, file, needed):
    assert backbones._origin(name, f"data/weights/{file}", Path("data/weights") / file, {})[1] is needed


def test_a_file_of_a_tag_does_not_skip_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    file = tmp_path / "ViT-L-14-336-openai.pt"
    file.touch()
    with pytest.raises(InputError, match="openai need QuickGELU.*name the model ViT-L-14-336-quickgelu"):
        backbones.locate_weights("ViT-L-14-336", "openai")
    assert backbones.locate_weights("ViT-L-14-336-quickgelu", "openai") == file  # one file serves both models
    assert backbones.locate_weights("ViT-L-14-336", "openai", plain_gelu=True) == file
    assert methods.locate_weights(Method(method="aprilgan")) == file
    assert Method(method="aprilgan").backbone == "ViT-L-14-336"
    for method in ("clip", "coop", "anomalyclip"):
        with pytest.raises(InputError, match="QuickGELU"):
            methods.locate_weights(Method(method=method, backbone="ViT-L-14-336"))


def test_what_contradicts_its_origin_is_refused_or_said(tiny_backbone, tmp_path):
    """A named model is refused before it is built; whoever wrote a config of their own is warned."""
    path = archive(plain(tiny_backbone), tmp_path / "w.pt")
    with pytest.raises(InputError, match="counters that OpenAI's own files carry.*name the model ViT-B-32-quickgelu"):
        backbones.load_backbone("ViT-B-32", str(path))
    warned = backbones.load_backbone(TINY["backbone"], str(path)).warning
    assert "need QuickGELU" in warned and f"set 'quick_gelu' in {TINY['backbone']} to true" in warned
    assert not backbones.load_backbone(TINY["backbone"], str(path), plain_gelu=True).warning
    torch.save(plain(tiny_backbone), tmp_path / "mine.pt")
    assert (
        "mine.pt of tiny.json come from is not known"
        in backbones.load_backbone(TINY["backbone"], str(tmp_path / "mine.pt")).note
    )


@pytest.mark.parametrize(("act", "quick"), [("quick_gelu", True), ("gelu", False), (None, True)])
def test_the_config_beside_a_file_of_transformers_tells(tiny_backbone, tmp_path, act, quick):
    save_file(transformers(plain(tiny_backbone)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": act} if act else {}}))
    right, wrong = (
        backbones.load_backbone(config(tmp_path, quick_gelu=value), str(tmp_path / "model.safetensors"))
        for value in (quick, not quick)
    )
    assert not right.warning and not right.note and "'hidden_act' in the config.json" in wrong.warning


def test_the_demos_weights_are_read_as_they_were_trained(tmp_path):
    """Under another name, too: their number tells."""
    demo, file = json.loads(backbones.DEMO_CONFIG.read_text()), tmp_path / "quick.json"
    shutil.copy(backbones.DEMO_WEIGHTS, tmp_path / "mine.safetensors")
    for change in ({"quick_gelu": True}, {"vision_cfg": demo["vision_cfg"] | {"head_width": 32}}):
        file.write_text(json.dumps(demo | change))
        with pytest.raises(InputError, match="weights .*mine.safetensors are the demo's.*name 'backbone: demo'"):
            backbones.load_backbone(str(file), str(tmp_path / "mine.safetensors"))
    assert backbones.load_backbone("demo").is_demo


# ---------------------------------------------------------------- text towers


TOWERS = {
    "separate": {"custom_text": True},
    "bias": {"proj_bias": True},
    "short": {"context_length": 40},
    "both ways": {"no_causal_mask": True},
    "all": {"custom_text": True, "proj_bias": True, "context_length": 40, "no_causal_mask": True},
}


@pytest.mark.parametrize("which", TOWERS)
@pytest.mark.parametrize("learner", [PromptLearner, clip_baselines.Context])
def test_prompts_are_learned_on_every_text_tower(tmp_path, which, learner):
    """Where the context is the embedding of the placeholders, the features are those of the plain text."""
    backbone = backbones.load_backbone(config(tmp_path, **TOWERS[which]), "random:4")
    made = learner(backbone)
    embedding = backbones.text_tower(backbone.model).token_embedding
    count = made.context.shape[1]
    with torch.no_grad():
        made.context.copy_(embedding(made.tokens[: made.CONTEXTS, 1 : 1 + count]))
        for name in ("object", "metal nut"):
            texts = [f"{' '.join(['X'] * count)} {words.format(name)}" for words in made.WORDS]
            torch.testing.assert_close(made(backbone, name, False), backbone.encode_text(texts), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pool_type": "last"}, "does not read the end token"),
        ({"hf_tokenizer_name": "bert-base-uncased"}, "does not read the end token"),
        ({"context_length": 12}, "reads 12 tokens, too few for 12 learned ones"),
    ],
)
def test_text_towers_without_room_for_prompts_are_refused(tmp_path, changes, said):
    backbone = backbones.load_backbone(config(tmp_path, **changes), "random:4")
    with pytest.raises(InputError, match=said):
        PromptLearner(backbone)


# ---------------------------------------------------------------- checkpoints


def test_coops_files_as_the_official_code_leaves_them(tiny_backbone, tmp_path):
    """In fp16, with a row of the prefix for every class or without it, and what the optimiser had."""
    learner, path = clip_baselines.Context(tiny_backbone, seed=2), tmp_path / "model.pth.tar-50"
    state = {"ctx": learner.context.detach()[0].half()}
    rows = {"token_prefix": learner.prefix[:1].expand(5, -1, -1).half(), "token_suffix": torch.zeros(5, 60, 64).half()}
    for more in ({}, rows):
        torch.save({"state_dict": state | more, "epoch": 50, "val_result": np.float64(0.7)}, path)
        found, trained_on = clip_baselines.read(tiny_backbone, path)
        torch.testing.assert_close(found.context[0], state["ctx"].float())
        assert trained_on == ""
    for change, said in (
        ({"ctx": torch.zeros(16, 8)}, "have 8 numbers a token"),
        ({"ctx": torch.zeros(3, 16, 64)}, "a context of its own for each class"),
        ({"token_prefix": rows["token_prefix"] + 1}, "other CLIP weights"),
    ):
        torch.save({"state_dict": state | change}, path)
        with pytest.raises(InputError, match=said):
            clip_baselines.read(tiny_backbone, path)


def test_projections_belong_to_an_activation(tiny_backbone, tmp_path):
    """Ours say it; official ones, without a fingerprint, are of plain GELU; older ones of ours are taken as is."""
    quick = backbones.load_backbone(config(tmp_path, quick_gelu=True), TINY["weights"])
    assert quick.fingerprint == tiny_backbone.fingerprint
    learner, path = aprilgan.Projections(4, *aprilgan.widths(quick)), tmp_path / "p.pth"
    aprilgan.write(learner, path, "visa", "", quick.fingerprint, (), "QuickGELU")
    aprilgan.read(quick, path)
    with pytest.raises(InputError, match="trained on QuickGELU .they say so.*computes GELU.*ViT-L-14-336-quickgelu"):
        aprilgan.read(tiny_backbone, path)
    aprilgan.write(learner, path, "visa")
    aprilgan.read(tiny_backbone, path)
    with pytest.raises(InputError, match="trained on GELU .the official code computes it.*computes QuickGELU"):
        aprilgan.read(quick, path)
    aprilgan.write(learner, path, "visa", "", quick.fingerprint)
    aprilgan.read(tiny_backbone, path), aprilgan.read(quick, path)
    assert aprilgan.read(backbones.load_backbone("demo"), aprilgan.DEMO)[1]


@pytest.fixture
def official(tiny_backbone, tmp_path):
    """A checkpoint that does not say what it was trained on, its SHA-256, and a profile that names both."""
    path, sums = tmp_path / "epoch_15.pth", tmp_path / "sums.csv"
    clip_baselines.write(clip_baselines.Context(tiny_backbone), path, "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def check(rows: str, **more) -> checkpoints.Checkpoint:
        sums.write_text(f"# made up\nfile,sha256,trained_on\n{rows.format(digest)}\n")
        spec = Method(**TINY, method="coop", checkpoint=str(path), **more)
        profile = small_profile(tmp_path / "x", tmp_path / "c", dataset="mvtec", methods=[], checkpoints=str(sums))
        checkpoint = checkpoints.find_checkpoint(spec, profile, clip_baselines.CHECKPOINT)
        return methods.guard_against_leakage(spec, checkpoint, profile)

    return check


def test_a_listed_sha256_tells_what_a_checkpoint_was_trained_on(official):
    found = official("epoch_15.pth,{},VisA")
    assert (found.trained_on, found.by_word) == ("visa", False)
    assert official("epoch_15.pth,{},visa", trained_on="visa").by_word is False
    assert official("epoch_15.pth,,visa", trained_on="visa").by_word is True
    with pytest.raises(InputError, match="SHA-256.*sums.csv lists .* as trained on mvtec, the profile says visa"):
        official("epoch_15.pth,{},mvtec", trained_on="visa")
    with pytest.raises(InputError, match="were trained on mvtec, the data they would be tested"):
        official("epoch_15.pth,{},mvtec")
    with pytest.raises(InputError, match="nor is its SHA-256|its SHA-256 is not in .*sums.csv"):
        official("epoch_15.pth,,visa")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,123,visa", "'123' is no SHA-256"),
        ("a,{0},visa\nb,{0},mvtec", "must have one 'trained_on'"),
        ("a,{0},", "must have one 'trained_on'"),
    ],
)
def test_wrong_lists_of_checkpoints_are_named(official, rows, said):
    with pytest.raises(InputError, match=said):
        official(rows, trained_on="visa")


def test_a_list_of_other_columns_is_named(tmp_path):
    profile = small_profile(tmp_path / "x", tmp_path / "c", checkpoints=str(tmp_path / "sums.csv"))
    for content in ("file;sha256;trained_on\na;b;c\n", "", "sha256\n"):
        (tmp_path / "sums.csv").write_text(content)
        with pytest.raises(InputError, match="sums.csv is no list of checkpoints.*columns file, sha256, trained_on"):
            checkpoints.read_list(profile)


def test_the_projects_own_list_can_be_read(tmp_path):
    profile = small_profile(tmp_path / "x", tmp_path / "c")
    assert checkpoints.LIST.is_file() and isinstance(checkpoints.read_list(profile), dict)


# ---------------------------------------------------------------- what a run says


def test_a_run_says_whose_weights_and_whose_word_it_takes(tiny_backbone, tmp_path):
    spec = Method(**TINY, method="coop", checkpoint="c.pth", name="CoOp")
    own = small_profile(tmp_path / "x", tmp_path / "c", methods=[spec.model_dump()])
    demo = replace(
        tiny_backbone, fingerprint=backbones.load_backbone("demo").fingerprint, weights="mine.pt", warning="Doubt."
    )
    [said, doubt] = run._warnings(own, [], [demo])[-2:]
    assert "CoOp" in said and "runs on the demo's weights" in said and doubt == "Doubt."
    drawn = own.model_copy(update={"dataset": "demo"})
    assert not [one for one in run._warnings(drawn, [], [demo]) if "drawn pictures" in one]
    assert not [one for one in run._warnings(own, [], [tiny_backbone]) if "drawn pictures" in one]
    kept = checkpoints.Checkpoint(tmp_path / "c.pth", "0" * 64, "visa", "prompts", by_word=True)
    chosen = methods.ChosenMethod(spec, clip_baselines.COOP.settings(), kept)
    [word] = run._by_word([[run.Variant(chosen, 0, 0)]])
    assert "c.pth were trained on visa is the profile's word" in word
    silent = replace(chosen, prompts=replace(kept, by_word=False))
    assert run._by_word([[run.Variant(silent, 0, 0)]]) == []
