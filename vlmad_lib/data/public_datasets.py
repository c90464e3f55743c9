"""Public data sets beside MVTec AD and VisA, industrial and medical, as their authors or AnomalyCLIP's lay them out.

data/README.md shows each tree with its source, terms and counts. Defects are named as the data set names them, and
``defect`` or what is to be seen where it names none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vlmad_lib import InputError
from vlmad_lib.config import Profile
from vlmad_lib.data import layouts
from vlmad_lib.data.csv_files import read_text_table
from vlmad_lib.data.dataset_classes import DataSet, MVTec, choose_categories, refuse_outside
from vlmad_lib.data.image_files import is_folder, list_images, subfolders
from vlmad_lib.data.mask_files import measure_masks, pair_masks, picture_stems

_SPLITS = ("train", "test")


def list_pictures(
    category: str, split: str, defect: str, images: Sequence[Path], masks: dict[Path, Path] | None = None
) -> list[tuple]:
    """Rows of an index of the pictures of one defect."""
    labels = layouts.label_names(defect)
    return [(category, split, defect, labels, str(image), str((masks or {}).get(image, ""))) for image in images]


def pair_all_masks(folder: Path, images: Sequence[Path], cache: Path) -> dict[Path, Path]:
    """The mask of each image, by name, from a folder; InputError for an image without one."""
    by_stem = {image.stem: image for image in images}
    pairs = pair_masks(folder, by_stem, cache)[0] if is_folder(folder) else {}
    if bare := [image for stem, image in by_stem.items() if stem not in pairs]:
        raise InputError(f"The image {bare[0]} has no mask in {folder}; add it.")
    return {by_stem[stem]: mask for stem, mask in pairs.items()}


def note_defective_training(category: str, images: int) -> list[str]:
    """A note on defective images of a train split, which nothing tests or takes as a reference; none for no images."""
    return [f"{category}: defective train images, which are not tested: {images}."] if images else []


# ---------------------------------------------------------------- industrial, in MVTec AD's layout or nearly


class MPDD(MVTec):
    """Metal parts, painted and not, in MVTec AD's layout."""

    name, title = "mpdd", "MPDD"


class DTDSynthetic(MVTec):
    """Textures of DTD with defects drawn into them, in MVTec AD's layout; the one kind of defect is ``bad``."""

    name, title = "dtd_synthetic", "DTD-Synthetic"
    counted_by = ("split", "condition")
    tree = "<texture>/{train/good, test/good, test/bad, ground_truth/bad}"


class BTAD(DataSet):
    """Three products: <product>/{train/ok, test/ok, test/ko, ground_truth/ko}; some masks mark nothing."""

    name, title, all_masked = "btad", "BTAD", False
    tree = "{01, 02, 03}/{train/ok, test/ok, test/ko, ground_truth/ko}"

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        products = {path.name: path for path in subfolders(root) if is_folder(path / "test" / "ok")}
        rows = []
        for name in choose_categories(list(products), profile, root) if products else []:
            for split in _SPLITS:
                for folder in subfolders(products[name] / split) if is_folder(products[name] / split) else []:
                    images, defect = list_images(folder), "good" if folder.name == "ok" else folder.name
                    truth = products[name] / "ground_truth" / folder.name
                    masked = defect != "good" and split == "test"
                    masks = pair_all_masks(truth, images, profile.path(profile.cache)) if masked else {}
                    rows += list_pictures(name, split, defect, images, masks)
        return rows, []


class DAGM(DataSet):
    """Ten drawn textures: <texture>/{Train, Test}/*.PNG; an image is defective where Label/ has a mask of its name."""

    name, title = "dagm", "DAGM"
    # What is published is images by class and split; how many of them are defective is so for both splits together.
    counted_by = ("category", "split")
    tree = "Class<number>/{Train, Test}/{*.PNG, Label/*_label.PNG}"

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        textures = {path.name: path for path in subfolders(root) if is_folder(path / "Test")}
        rows, notes = [], []
        for name in choose_categories(list(textures), profile, root) if textures else []:
            for split in _SPLITS:
                folder = textures[name] / split.capitalize()
                images = list_images(folder) if is_folder(folder) else []
                marked = list_images(folder / "Label") if is_folder(folder / "Label") else []
                stems = {stem for mask in marked for stem in picture_stems(mask.name)}
                defective = [image for image in images if image.stem in stems]
                masks = pair_all_masks(folder / "Label", defective, profile.path(profile.cache)) if marked else {}
                if split == "train":
                    notes, masks = notes + note_defective_training(name, len(defective)), {}
                rows += list_pictures(name, split, "good", [image for image in images if image not in defective])
                rows += list_pictures(name, split, "defect", defective, masks)
        return rows, notes


class KolektorSDD2(DataSet):
    """One surface: {train, test}/<number>.png with <number>_GT.png beside it, which is black for a good one."""

    name, title = "kolektorsdd2", "KolektorSDD2"
    category = "surface"
    tree = "{train, test}/{*.png, *_GT.png}"

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        choose_categories([self.category], profile, root)
        rows, notes = [], []
        for split in _SPLITS:
            files = {path.stem: path for path in list_images(root / split)} if is_folder(root / split) else {}
            images = {stem: path for stem, path in files.items() if not stem.endswith("_GT")}
            masked = [stem for stem in images if f"{stem}_GT" in files]
            if bare := len(images) - len(masked):
                first = next(path for stem, path in images.items() if stem not in masked)
                notes.append(f"{split}: images without a mask {first.stem}_GT.png, which are left out: {bare}.")
            masks = [files[f"{stem}_GT"] for stem in masked]
            shares = measure_masks([str(mask) for mask in masks], profile.path(profile.cache)) if masks else []
            marked = {images[stem]: mask for stem, mask, (share, _) in zip(masked, masks, shares, strict=True) if share}
            if split == "train":
                notes += note_defective_training(split, len(marked))
            rows += list_pictures(self.category, split, "good", [images[s] for s in masked if images[s] not in marked])
            rows += list_pictures(self.category, split, "defect", list(marked), marked if split == "test" else None)
        return rows, notes


class RealIAD(DataSet):
    """Thirty products, each seen by five cameras, of which every picture counts by itself.

    realiad_jsons/realiad_jsons/<product>.json lists them; pictures are those of the largest size that is there.
    """

    name, title = "real_iad", "Real-IAD"
    counted_by = ("condition",)
    tree = "{realiad_jsons/realiad_jsons/<product>.json, realiad_<size>/<product>/{OK, NG}}"
    # Folders of pictures, the largest first.
    sizes = ("realiad_1024", "realiad_512", "realiad_256")

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        lists = root / "realiad_jsons" / "realiad_jsons"
        pictures = next((root / size for size in self.sizes if is_folder(root / size)), None)
        if pictures is None or not is_folder(lists):
            return [], []
        products = [path.name for path in subfolders(pictures) if (lists / f"{path.name}.json").is_file()]
        rows: list[tuple] = []
        for name in choose_categories(products, profile, root) if products else []:
            rows += self._list_product(lists / f"{name}.json", pictures)
        return rows, [f"Pictures of {pictures.name} are read, of all five cameras, each by itself."] if rows else []

    def _list_product(self, file: Path, pictures: Path) -> list[tuple]:
        """Rows of one product's list, whose paths start at the product's folder."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            normal, prefix = content["meta"]["normal_class"], str(content["meta"].get("prefix") or file.stem)
            entries = [
                (split, str(entry["anomaly_class"]), str(entry["image_path"]), str(entry.get("mask_path") or ""))
                for split in _SPLITS
                for entry in content[split]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{file} is not Real-IAD's list of a product ({reason}); fetch it again.") from None
        refuse_outside([prefix, *(name for entry in entries for name in entry[2:])], file, pictures)
        rows, folder = [], pictures / prefix
        for split, kind, image, mask in entries:
            defect = "good" if kind == normal else kind
            if defect != "good" and not mask:
                raise InputError(f"{file} names no mask of {image}, which is defective; fetch it again.")
            masks = {folder / image: folder / mask} if defect != "good" else {}
            rows += list_pictures(file.stem, split, defect, [folder / image], masks)
        return rows


# ---------------------------------------------------------------- medical, without masks or with nothing but findings


class Diagnosed(DataSet):
    """Whole pictures with a finding or without one: a folder for each, no masks, all of them to test."""

    category: str
    # The folders that may hold the pictures of each kind, the first that is there counts.
    places: dict[str, tuple[str, ...]]
    all_masked = False

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        choose_categories([self.category], profile, root)
        rows, read = [], set()
        for defect, names in self.places.items():
            folder = next((Path(name) for name in names if is_folder(root / name)), None)
            if folder is None or not (images := list_images(root / folder)):
                return [], []
            rows += list_pictures(self.category, "test", defect, images)
            read.add(folder.parts[0])
        others = [f"{path.name}/" for path in subfolders(root) if path.name not in read]
        return rows, [f"Folders that are not read: {', '.join(others)}."] if others else []


class HeadCT(Diagnosed):
    """Slices of heads, with and without haemorrhage: Kaggle's labels.csv, or AnomalyCLIP's folders."""

    name, title, category = "head_ct", "HeadCT", "brain"
    places = {
        "good": ("brain/test/good",),
        "hemorrhage": ("brain/test/hemorrhage", "brain/test/defect", "brain/test/bad"),
    }
    tree = "{labels.csv, head_ct/head_ct/*.png} or brain/test/{good, hemorrhage}"

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        file = root / "labels.csv"
        if not file.is_file():
            return super().list_rows(root, profile)
        choose_categories([self.category], profile, root)
        folder = next((path for path in (root / "head_ct" / "head_ct", root / "head_ct") if is_folder(path)), root)
        images, rows = {image.stem: image for image in list_images(folder)}, []
        for row in read_text_table(file, ("id", "hemorrhage"), "fetch it again").itertuples():
            if row.hemorrhage not in ("0", "1") or (image := images.get(row.id.zfill(3))) is None:
                raise InputError(
                    f"{file}: {row.id},{row.hemorrhage} is no image of {folder} with 0 or 1; fetch the data again."
                )
            rows += list_pictures(self.category, "test", "hemorrhage" if row.hemorrhage == "1" else "good", [image])
        return rows, []


class BrainMRI(Diagnosed):
    """Slices of heads, with and without a tumour."""

    name, title, category = "brain_mri", "BrainMRI", "brain"
    places = {"good": ("brain_tumor_dataset/no", "no"), "tumor": ("brain_tumor_dataset/yes", "yes")}
    tree = "brain_tumor_dataset/{no, yes}"


class Br35H(Diagnosed):
    """Slices of heads, with and without a tumour; pred/ has no labels and is not read."""

    name, title, category = "br35h", "Br35H", "brain"
    places = {"good": ("no",), "tumor": ("yes",)}
    tree = "{no, yes}"


class Covid19(Diagnosed):
    """X-ray pictures of chests, normal and with COVID-19; those with other illnesses are not read."""

    name, title, category = "covid_19", "COVID-19", "chest"
    places = {
        "good": ("NORMAL", "Normal/images", "Normal"),
        "COVID-19": ("COVID-19", "COVID/images", "COVID"),
    }
    tree = "{NORMAL, COVID-19} or {Normal/images, COVID/images}"


class Segmented(DataSet):
    """Pictures that all show what their masks mark: no normal ones, so image metrics do not exist."""

    category: str
    # What the masks mark.
    finding: str
    # Patterns of the folders that may hold the pictures and the masks; the first pair that is there counts.
    places: tuple[tuple[str, str], ...] = (("images", "masks"),)
    all_masked = False
    tree = "{images, masks}"

    def list_rows(self, root: Path, profile: Profile) -> tuple[list[tuple], list[str]]:
        """As ``DataSet.list_rows``."""
        choose_categories([self.category], profile, root)
        for pictures, masks in self.places:
            folders = [path for path in sorted(root.glob(pictures)) if is_folder(path)]
            images = [image for folder in folders for image in list_images(folder)]
            if images:
                pairs = pair_all_masks(root / masks, images, profile.path(profile.cache))
                rows = list_pictures(self.category, "test", self.finding, images, pairs)
                return rows, ["Every image is defective: image metrics do not exist, pixel metrics do."]
        return [], []


class ISIC(Segmented):
    """Lesions of the skin: the test pictures of the ISIC challenge of 2016, part 1."""

    name, title, category, finding = "isic", "ISIC", "skin", "lesion"
    places = (
        ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
        ("skin/test/*", "skin/ISBI2016_ISIC_Part1_Test_GroundTruth"),
    )
    tree = "{ISBI2016_ISIC_Part1_Test_Data/*.jpg, ISBI2016_ISIC_Part1_Test_GroundTruth/*_Segmentation.png}"


class CVCColonDB(Segmented):
    """Polyps of the colon."""

    name, title, category, finding = "cvc_colondb", "CVC-ColonDB", "colon", "polyp"


class CVCClinicDB(Segmented):
    """Polyps of the colon; as its authors lay it out, too."""

    name, title, category, finding = "cvc_clinicdb", "CVC-ClinicDB", "colon", "polyp"
    places = (("images", "masks"), ("Original", "Ground Truth"))
    tree = "{images, masks} or {Original, Ground Truth}"


class Kvasir(Segmented):
    """Polyps of the colon: Kvasir-SEG."""

    name, title, category, finding = "kvasir", "Kvasir", "colon", "polyp"


class Endo(Segmented):
    """Polyps of the colon: the test pictures of the EndoTect challenge of 2020."""

    name, title, category, finding = "endo", "Endo", "colon", "polyp"


class TN3K(Segmented):
    """Nodules of the thyroid: the test pictures."""

    name, title, category, finding = "tn3k", "TN3K", "thyroid", "nodule"
    places = (("test-image", "test-mask"),)
    tree = "{test-image, test-mask}"
