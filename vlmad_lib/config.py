"""Profiles: everything that decides what a run computes, read from a YAML file and checked."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import reprlib
from fnmatch import fnmatchcase
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
    ValidationInfo,
    field_validator,
    model_validator,
)

from vlmad_lib import ROOT, InputError

FOLDER = ROOT / "reports"
GROUPS = ("texture", "rigid", "flexible", "unknown")  # of categories, by the kind of their products
DEVICES = ("auto", "cpu", "cuda", "mps")
# Of an image encoder's matrix products; tf32 are fp32 numbers that an NVIDIA GPU multiplies with ten bits.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
# The data sets that published figures and the study are of.
BENCHMARKS = ("mvtec", "visa")
# The data sets, each a class in data/dataset_classes.py or data/public_datasets.py.
DATASETS = (
    *("demo", *BENCHMARKS, "folder", "mvtec2", "loco"),
    *("btad", "mpdd", "kolektorsdd2", "dagm", "dtd_synthetic", "real_iad"),
    *("head_ct", "brain_mri", "br35h", "covid_19"),
    *("isic", "cvc_colondb", "cvc_clinicdb", "kvasir", "endo", "tn3k"),
)
# Other spellings of their names, small letters and digits alone.
_SPELT = {name.replace("_", ""): name for name in DATASETS if name not in ("demo", "folder")}
_SPELT |= {"mvtecad": "mvtec", "mvtecad2": "mvtec2"}
_SPELT |= dict.fromkeys(["mvtecloco", "mvteclocoad", "mvtecadloco"], "loco")
_SPELT |= {"dagm2007": "dagm", "dtd": "dtd_synthetic", "ksdd2": "kolektorsdd2"}
_SPELT |= {"colondb": "cvc_colondb", "clinicdb": "cvc_clinicdb", "kvasirseg": "kvasir", "covid": "covid_19"}
VECTORS = {"svg": "image/svg+xml", "pdf": "application/pdf"}  # what ``figures`` names, and its media types
FOLDER_NAMES = (
    "categories",
    "class_names",
    "groups",
    "folders",
)  # hold text, whatever YAML makes of 01, yes, null or a date
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


def _tile_rule(value: str | float) -> str | float:
    if value not in ("mean", "max") and (isinstance(value, str) or not 0 < value < 1):
        raise ValueError("use max, mean, or a quantile between 0 and 1 such as 0.9")
    return value


def _region(value: Any) -> str | list[list[float]]:
    """A region of interest as it was given, where it is the path of a mask or a polygon with an area."""
    if isinstance(value, str) and value.strip():
        return value
    pairs = value if isinstance(value, list) else []
    plain = all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1 for share in pair)
        for pair in pairs
    )
    if not plain or len(pairs) < 3:
        raise ValueError(
            "give the path of a mask, or at least 3 points [x, y] as shares of width and height from 0 to 1, such as "
            "[[0.2, 0.1], [0.8, 0.1], [0.5, 0.9]]"
        )
    return [[float(x), float(y)] for x, y in pairs]


class Tiles(Strict):
    """A grid of overlapping squares into which every picture is cut, whatever the method; each is seen by itself.

    ``per_edge`` squares lie along the short edge, as many as reach the end along the long one, neighbours sharing at
    least ``overlap`` of their edge. ``score``: what a picture's score is of those of its squares.
    """

    per_edge: Annotated[int, Field(ge=1, le=16)]
    overlap: Annotated[float, Field(ge=0, le=0.75)] = 0.25
    score: Annotated[str | float, AfterValidator(_tile_rule)] = "max"

    @property
    def framing(self) -> str:
        """How pictures are cut, as a value of ``fit`` (``image_files.list_boxes``)."""
        return f"grid-{self.per_edge}-{self.overlap:.4f}".rstrip("0").rstrip(".")

    @property
    def label(self) -> str:
        """The same with the rule of the score, as the scores table has it."""
        return f"{self.framing}-{self.score}"


class Method(Strict):
    """One method with its backbone; ``settings`` overrides single fields of the preset.

    What a method learned, AnomalyCLIP's and CoOp's prompts, APRIL-GAN's projections: ``checkpoint`` is the file (or
    ``demo``), ``trained_on`` the data set it was trained on where the file does not say it, ``force_leak`` tests on
    that data all the same, marked as such. ``tiles`` cuts pictures into a grid, in place of the setting ``fit``.
    """

    method: str = "winclip"  # a key of the registry of methods
    name: str
    backbone: str
    weights: str
    precision: Literal[PRECISIONS] = "fp32"
    preset: str = "paper"
    settings: dict[str, Any] = {}
    tiles: Tiles | None = None
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
    def network(self) -> dict[str, Any]:
        """What decides the encoder and what it sees: another method with the same reads the same features."""
        facts = {"backbone": self.backbone, "weights": self.weights, "precision": self.precision}
        return facts | ({"tiles": self.tiles} if self.tiles else {})


class Import(Strict):
    """Anomaly maps and image scores made by another tool (a folder of maps, a CSV, or ADEval's pickle).

    ``scale`` is the level that stands for 1 in PNG maps: what all of them were multiplied by, never each by its own.
    """

    name: str
    path: str
    shots: Shots = 0
    scale: Literal[255, 65535] | None = None


def _inside_category(pattern: str) -> str:
    if not set(pattern.rstrip("/").split("/")).isdisjoint(("", ".", "..")):
        raise ValueError("name a folder, or its path relative to the category, such as test/ok")
    return pattern.rstrip("/")


FolderPattern = Annotated[str, AfterValidator(_inside_category)]


class Folders(Strict):
    """What the folders of own pictures hold where their names do not say it, such as ``{normal: [no], masks: [gt/*]}``.

    Each is a name, of any folder of a category, or a path relative to the category; ``*`` and ``?`` stand for any
    characters of a name.
    """

    normal: list[FolderPattern] = []
    defects: list[FolderPattern] = []
    masks: list[FolderPattern] = []
    train: list[FolderPattern] = []
    test: list[FolderPattern] = []
    ignore: list[FolderPattern] = []

    def match(self, path: str) -> list[tuple[str, str]]:
        """The roles and patterns that name a folder by its path relative to its category."""
        return [(role, pattern) for role, patterns in self for pattern in patterns if _names_folder(pattern, path)]


def _names_folder(pattern: str, path: str) -> bool:
    wanted, names = pattern.split("/"), path.split("/")
    names = names[-1:] if len(wanted) == 1 else names
    pairs = zip(names, wanted, strict=False)
    return len(names) == len(wanted) and all(name == part or fnmatchcase(name, part) for name, part in pairs)


class Profile(Strict):
    """Everything that decides a run's numbers, and which notebooks report them."""

    title: str
    dataset: Literal[DATASETS]
    root: str
    subset: Literal["target", "auxiliary"] = "target"  # of the demo data: to test on, to train on
    categories: list[str] = []
    class_names: dict[str, str] = {}
    groups: dict[str, Literal[GROUPS]] = {}  # of own categories; those of the benchmarks are known
    folders: Folders = Folders()  # of own pictures, where the names do not say what they hold
    methods: list[Method] = []
    imports: list[Import] = []
    checkpoints: str = ""  # a CSV of SHA-256 and what was trained on; none: checkpoints.csv in data/reference
    taxonomy: str = ""  # a CSV of defect classes; none: that of the data set in data/reference
    contrast_limits: ContrastLimits = []  # Delta-E up to which contrast is low, and medium; none: thirds of the defects
    # where in the pictures of a category defects are looked for: the path of a mask, or [x, y] as shares of the sides
    regions: dict[str, Annotated[Any, AfterValidator(_region)]] = {}
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
        """The study's claims are about two benchmarks: they concern other data only where asked for."""
        if isinstance(values, dict) and values.get("dataset") not in ("demo", *BENCHMARKS):
            values = {"notebooks": [name for name in NOTEBOOKS if name != STUDY]} | values
        return values

    @field_validator("folders")
    @classmethod
    def _own_folders(cls, folders: Folders, info: ValidationInfo) -> Folders:
        if folders != Folders() and info.data.get("dataset") != "folder":
            raise ValueError("only own pictures have it: leave it out, or write 'dataset: folder'")
        return folders

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
        records: dict[int | str, type[BaseModel]] = {"methods": Method, "imports": Import, "folders": Folders}
        inner = Tiles if "tiles" in problem["loc"] else records.get(problem["loc"][0], record)
        keys = list(inner.model_fields)
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
    if isinstance(values.get("regions"), dict):
        values["regions"] = dict(zip(plain["regions"], values["regions"].values(), strict=True))
    return check_record(Profile, values | (overrides or {}), path.name)


def normalise_dataset_name(text: str) -> str:
    """The name in profiles of a public data set for any spelling of it; other names as they are."""
    return _SPELT.get(re.sub("[^a-z0-9]", "", text.casefold()), text.strip())
