"""Profiles: everything that decides what a run computes, read from a YAML file and checked."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import joblib
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from vlmad_lib import ROOT, InputError

FOLDER = ROOT / "reports"
GROUPS = ("texture", "rigid", "flexible", "unknown")  # of categories, by the kind of their products
DEVICES = ("auto", "cpu", "cuda", "mps")
# Of an image encoder's matrix products; tf32 are fp32 numbers that an NVIDIA GPU multiplies with ten bits.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
# The data sets, each a class in data/dataset_classes.py.
DATASETS = ("demo", "mvtec", "visa", "folder")
VECTORS = {"svg": "image/svg+xml", "pdf": "application/pdf"}  # what ``figures`` names, and its media types
FOLDER_NAMES = ("categories", "class_names", "groups")  # hold text, whatever YAML makes of 01, yes, null or a date
STUDY = "16_the_study_rechecked"  # a notebook on benchmarks and their published figures
NOTEBOOKS = (
    *("00_start_here", "01_the_data", "02_winclip", "03_anomalyclip", "04_category_type"),
    *("05_defect_contrast", "06_defect_type", "07_window_size", "08_shot_count", "09_prompts"),
    *("10_efficiency", "11_failures", "12_thresholds", "13_transfer", "14_hybrid", "15_robustness"),
    *(STUDY, "17_which_method", "18_does_language_help", "19_why_numbers_differ"),
    "20_generations",
)
SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring = 2, 80  # a few lines of YAML can name themselves into gigabytes


class Strict(BaseModel):
    """A frozen record that refuses unknown keys and does not convert types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Record = TypeVar("Record", bound="Strict")
Count = Annotated[int, Field(ge=0)]
FULL = 1_000_000  # stands for all normal train images, of which categories have different numbers
# A number of reference images, or ``full`` for all normal train images.
Shots = Annotated[
    Count,
    BeforeValidator(lambda value: FULL if value == "full" else value),
    PlainSerializer(lambda value: "full" if value == FULL else value),
]


def _two_ascending(values: list[float]) -> list[float]:
    if len(values) not in (0, 2) or values != sorted(set(values)):
        raise ValueError("two limits are needed, the lower one first, such as [5, 15]")
    return values


# Two values of Delta-E in ascending order, or none.
ContrastLimits = Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], AfterValidator(_two_ascending)]

USUAL = {
    "winclip": {"name": "WinCLIP", "backbone": "ViT-B-16-plus-240", "weights": "laion400m_e31"},
    "anomalyclip": {"name": "AnomalyCLIP", "backbone": "ViT-L-14-336-quickgelu", "weights": "openai"},
}
USUAL["hybrid"] = USUAL["anomalyclip"] | {"name": "Hybrid"}
USUAL |= {
    method: USUAL["anomalyclip"] | {"name": name}
    for method, name in {"aprilgan": "APRIL-GAN", "coop": "CoOp", "clip": "CLIP"}.items()
}
USUAL["musc"] = USUAL["anomalyclip"] | {"name": "MuSc"}
USUAL["aprilgan"]["backbone"] = USUAL["musc"]["backbone"] = "ViT-L-14-336"  # their official codes compute plain GELU
# What each method was published with: its name in tables, backbone and weights; plain CLIP and CoOp take AnomalyCLIP's
# backbone, as in its paper, those without words WinCLIP's.
USUAL |= {
    method: USUAL["winclip"] | {"name": name}
    for method, name in {
        "association": "Association",
        "patchcore": "PatchCore",
        "padim": "PaDiM",
        "spade": "SPADE",
    }.items()
}
# The second's backbone has 1.1 thousand million numbers and reads 672 pixels: some 6 TFLOP for a picture, of references
# 31 times as much; on a CPU name a small or base DINOv2 with registers in its place.
USUAL |= {
    "anomalydino": {
        "name": "AnomalyDINO", "backbone": "timm/vit_small_patch14_dinov2", "weights": "lvd142m",
    },
    "subspacead": {
        "name": "SubspaceAD", "backbone": "timm/vit_giant_patch14_reg4_dinov2", "weights": "lvd142m",
    },
}  # fmt: skip


# Methods that train a network of their own read pictures as they are.
USUAL |= {
    method: {"name": name, "backbone": "pixels", "weights": "none"}
    for method, name in {
        "autoencoder": "Autoencoder",
        "vae": "VAE",
        "ganomaly": "GANomaly",
        "cutpaste": "CutPaste",
    }.items()
}


class Method(Strict):
    """One method with its backbone; ``settings`` overrides single fields of the preset.

    What a method learned, AnomalyCLIP's and CoOp's prompts, APRIL-GAN's projections: ``checkpoint`` is the file (or
    ``demo``), ``trained_on`` the data set it was trained on where the file does not say it, ``force_leak`` tests on
    that data all the same, marked as such.
    """

    method: str = "winclip"  # a key of the registry of methods
    name: str
    backbone: str
    weights: str
    precision: Literal[PRECISIONS] = "fp32"
    preset: str = "paper"
    settings: dict[str, Any] = {}
    checkpoint: str = ""
    trained_on: str = ""
    force_leak: bool = False

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        """Name, backbone and weights default to what each method was published with."""
        if not isinstance(values, dict):
            return values
        method = str(values.get("method", "winclip"))
        usual = USUAL.get(method, USUAL["winclip"] | {"name": method})
        architecture, _, tag = str(values.get("backbone", "")).partition(".")
        if tag and architecture.startswith("timm/"):  # whose names may say the weights
            usual = usual | {"weights": tag}
        return usual | values

    @property
    def network(self) -> dict[str, str]:
        """What decides the encoder: another method with the same reads the same features."""
        return {"backbone": self.backbone, "weights": self.weights, "precision": self.precision}


class Import(Strict):
    """Anomaly maps and image scores made by another tool (a folder of maps, a CSV, or ADEval's pickle).

    ``scale`` is the level that stands for 1 in PNG maps: what all of them were multiplied by, never each by its own.
    """

    name: str
    path: str
    shots: Shots = 0
    scale: Literal[255, 65535] | None = None


class Profile(Strict):
    """Everything that decides a run's numbers, and which notebooks report them."""

    title: str
    dataset: Literal[DATASETS]
    root: str
    subset: Literal["target", "auxiliary"] = "target"  # of the demo data: to test on, to train on
    categories: list[str] = []
    class_names: dict[str, str] = {}
    groups: dict[str, Literal[GROUPS]] = {}  # of own categories; those of the benchmarks are known
    methods: list[Method] = []
    imports: list[Import] = []
    checkpoints: str = ""  # a CSV of SHA-256 and what was trained on; none: checkpoints.csv in data/reference
    taxonomy: str = ""  # a CSV of defect classes; none: that of the data set in data/reference
    contrast_limits: ContrastLimits = []  # Delta-E up to which contrast is low, and medium; none: thirds of the defects
    shots: Annotated[list[Shots], Field(min_length=1)] = [0]
    seeds: Annotated[list[Count], Field(min_length=1)] = [0]
    evaluation_size: Annotated[int, Field(ge=16, le=4096)] = 240
    fpr_limit: Annotated[float, Field(gt=0, le=1)] = 0.3
    pixel_metrics: Literal["exact", "binned"] = "exact"  # binned: memory that does not grow with the images
    device: Literal[DEVICES] = "auto"  # auto: cuda, then mps, then cpu
    batch: Annotated[int, Field(ge=1)] | None = None  # images encoded at once; none: what the device does best
    workers: Annotated[int, Field(ge=1)] = 1
    download: bool = False
    cache: str = "data/cache"
    notebooks: list[str] = list(NOTEBOOKS)
    figures: Literal["", *VECTORS] = ""  # each figure of a report as such a file too, for papers and slides
    notice: str = ""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_the_study(cls, values: Any) -> Any:
        """Own pictures are on no benchmark: the study's claims about those concern them only where asked for."""
        if isinstance(values, dict) and values.get("dataset") == "folder":
            values = {"notebooks": [name for name in NOTEBOOKS if name != STUDY]} | values
        return values

    @property
    def own(self) -> bool:
        """Whether the data are a person's own pictures, beside which no published figure can stand."""
        return self.dataset == "folder"

    def path(self, value: str) -> Path:
        """A path of this profile as an absolute one; relative paths start at the workbook's folder."""
        path = Path(value).expanduser()
        return path if path.is_absolute() else (ROOT / path).resolve()

    @property
    def processes(self) -> int:
        """Workers on this machine: no more than the cores that this process may use."""
        return min(self.workers, joblib.cpu_count())

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits that change with any key."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:10]


def check_record(record: type[Record], values: dict[str, Any], source: str) -> Record:
    """The checked record of a dictionary; InputError names the first unknown or wrongly typed key."""
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise InputError(_sentence(error, record, source)) from None


def _sentence(error: ValidationError, record: type[Strict], source: str) -> str:
    """The first problem of a validation as one sentence that names the key and the remedy."""
    problem = error.errors()[0]
    key = ".".join(str(name) for name in problem["loc"])
    if problem["type"] == "extra_forbidden":
        records: dict[int | str, type[BaseModel]] = {"methods": Method, "imports": Import}
        keys = list(records.get(problem["loc"][0], record).model_fields)
        near = difflib.get_close_matches(str(problem["loc"][-1]), keys, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(keys)}."
        return f"{source}: unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{source}: key {key!r} is missing; add it."
    unquoted = problem["type"] == "string_type" and not isinstance(problem["input"], list | dict)
    remedy = "; write it in quotes" if unquoted else ""
    return f"{source}: key {key!r} has the value {SHORT.repr(problem['input'])}; {problem['msg'].lower()}{remedy}."


def parse_override(pair: str) -> tuple[str, Any]:
    """The key and the YAML value of ``key=value``; nothing after the sign is the empty string.

    Text is taken as it is for keys that are text, unless it is quoted: a path may hold '#' or ': '. Names of folders
    are taken as they are written, so a folder may be named 01 or yes.
    """
    key, sign, text = pair.partition("=")
    if not (key and sign):
        raise InputError(f"-p {pair}: write key=value, for instance -p shots=[0,1].")
    if (
        key in Profile.model_fields
        and Profile.model_fields[key].annotation is str
        and text.strip()[:1] not in ("'", '"')
    ):
        return key, text.strip()
    try:
        named = key in FOLDER_NAMES and text.strip()[:1] in ("[", "{")
        return key, yaml.load(text, yaml.BaseLoader if named else yaml.SafeLoader) if text.strip() else ""
    except yaml.YAMLError:
        raise InputError(f"-p {key}: {text!r} is not a YAML value; quote it.") from None


def load_profile(name: str | Path, overrides: dict[str, Any] | None = None) -> Profile:
    """The profile of a name in ``reports/`` or of a path to a YAML file, with top-level keys overridden."""
    path = Path(name)
    if path.suffix not in (".yml", ".yaml"):
        path = FOLDER / f"{name}.yml"
    elif not path.is_file() and (ROOT / path).is_file():
        path = ROOT / path
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yml")))
        raise InputError(f"There is no profile {path}; give one of {names}, or the path of a YAML file.")
    try:
        text = path.read_text(encoding="utf-8")
        values, plain = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)  # plain: every value as it is written
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not readable YAML ({reason}); correct that line.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no keys; write at least title, dataset and root.")
    values |= {key: plain[key] for key in FOLDER_NAMES if isinstance(values.get(key), list | dict) and key in plain}
    return check_record(Profile, values | (overrides or {}), path.name)


def normalise_dataset_name(text: str) -> str:
    """``mvtec`` and ``visa`` for any spelling of them; other names as they are."""
    spelt = re.sub("[^a-z0-9]", "", text.casefold())
    return {"mvtec": "mvtec", "mvtecad": "mvtec", "visa": "visa"}.get(spelt, text.strip())
