"""Pictures: which files are read, their sizes, their pixels as 8-bit RGB, and the square tiles that a model sees."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Literal

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from vlmad_lib import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
UNREAD = {".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".tga", ".svg", ".psd"}
# Pictures too, which the workbook does not read: left out in silence they would be missed.
UNREAD |= {".dng", ".raw", ".nef", ".cr2", ".cr3", ".arw"}
# Folders that systems leave beside pictures, with copies of them or nothing.
SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
DEEP = 4096  # a 16-bit picture with no value above, of a 12-bit camera, would be nearly black in 8 bits
MANY_TILES = 10  # a picture that is cut into more square tiles than that is named before it is encoded
_ORIENTATION = 0x0112
# Pillow warns from 89 megapixels and refuses from 179: a picture between them is read, which is no news for people
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


# ---------------------------------------------------------------- files and folders


def require_folder(folder: Path, remedy: str) -> None:
    """InputError where a folder is not there (with the remedy), is a file, or may not be looked at."""
    try:
        mode = folder.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"The folder {folder} does not exist; {remedy}.") from None
    except OSError as error:
        raise _unlisted(folder, error) from None
    if not S_ISDIR(mode):
        raise InputError(f"{folder} is a file, not a folder; unpack it if it is an archive, and name the folder.")


def _unlisted(folder: Path, error: OSError) -> InputError:
    reason = (error.strerror or type(error).__name__).lower()
    return InputError(f"The folder {folder} may not be read ({reason}); give yourself the right to read it.")


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files and what systems leave there."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise _unlisted(folder, error) from None
    return [path for path in paths if not path.name.startswith(".") and path.name.casefold() not in SYSTEM]


def list_images(folder: Path, unread: bool = False) -> list[Path]:
    """The images of one folder, sorted by name.

    InputError for pictures of a kind that is not read; with ``unread`` these are listed too.
    """
    images = [file for file in _entries(folder) if file.suffix.lower() in SUFFIXES | UNREAD and not is_folder(file)]
    for file in images:
        if file.suffix.lower() in UNREAD and not unread:
            raise InputError(explain_unread(file))
        try:
            file.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"The file name {str(file)!r} is not valid UTF-8; rename the file.") from None
    return images


def explain_unread(file: Path) -> str:
    """The sentence on a picture of a kind that is not read."""
    return f"{file} is of a kind that is not read; save it as PNG or JPEG, or remove it."


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones and those that systems leave there."""
    return [path for path in _entries(folder) if is_folder(path)]


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; not where it may not be looked at."""
    try:
        return path.is_dir()
    except OSError:
        return False


def list_files_below(folder: Path, leave: tuple[str, ...] = (), unread: bool = False) -> list[str]:
    """All pictures of a folder and those in it, but for subfolders of some names; links to folders are not followed.

    ``unread`` as in ``images_in``.
    """
    inner = [path for path in subfolders(folder) if path.name not in leave and not path.is_symlink()]
    pictures = map(str, list_images(folder, unread))
    return [*pictures, *(image for path in inner for image in list_files_below(path, unread=unread))]


# ---------------------------------------------------------------- pixels


def open_image(path: str | Path) -> Image.Image:
    """A picture whose pixels are not read yet; InputError where it cannot be opened or holds several pictures."""
    try:
        image = Image.open(path)
        if image.format in ("TIFF", "WEBP", "PNG", "GIF") and getattr(image, "n_frames", 1) > 1:
            pictures = getattr(image, "n_frames", 1)
            raise OSError(f"it holds {pictures} pictures, save each as a file of its own")
        return image
    except FileNotFoundError:
        raise InputError(f"The file {path} does not exist; restore it or leave its row out.") from None
    except PermissionError:
        raise InputError(
            f"{path} cannot be read as an image: permission denied; give yourself the right to read it."
        ) from None
    except Exception as error:  # decoders raise anything
        raise InputError(f"{path} cannot be read as an image ({error}); replace or remove it.") from None


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height as shown, from the header: a camera held upright writes the picture lying and says so."""
    with open_image(path) as image:
        # PNG's getexif would decode the picture; TIFF swaps its sides itself
        try:
            turned = "exif" in image.info and image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5
        except Exception as error:  # decoders raise anything
            raise InputError(f"{path} cannot be read as an image ({error}); replace or remove it.") from None
        return image.size[::-1] if turned else image.size


def load_image(path: str | Path) -> Image.Image:
    """An image as 8-bit RGB, upright, transparent parts white; of 16 bits the upper byte.

    Raises InputError where it cannot be decoded, holds several pictures or has pixels of no known range.
    """
    with open_image(path) as image:
        try:
            deep = _is_deep_colour(image)
            ImageOps.exif_transpose(image, in_place=True)
            return _plain(image, deep)
        except Exception as error:  # decoders raise anything
            raise InputError(f"{path} cannot be decoded ({error}); replace or remove it.") from None


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether an opened file has 16 bits a channel, of which Pillow's decoder keeps the upper eight."""
    return image.mode in ("RGB", "RGBA", "LA", "CMYK") and any(
        ";16" in str(tile[3])
        for tile in image.tile  # type: ignore[attr-defined]  # an opened file has it
    )


def _plain(image: Image.Image, deep: bool = False) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        _refuse_dark(values.max())
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixel type {image.mode} has no known range")
    if deep:
        brightest = max(high for _, high in image.convert("RGB").getextrema())
        _refuse_dark((brightest << 8) + 255)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _refuse_dark(brightest: int) -> None:
    if brightest < DEEP:
        raise ValueError(f"16 bits, but none above {brightest}: nearly black; stretch all your pictures alike")


# The code whose change gives an image other pixels.
LOADING = (load_image, _is_deep_colour, _plain, _refuse_dark)


# ---------------------------------------------------------------- what a model sees


def boxes(width: int, height: int, fit: str) -> list[tuple[int, int, int, int]]:
    """The (left, top, right, bottom) boxes of an image that a model sees, in pixels.

    ``squash``: the whole image. ``tiles``: squares of the short edge along the long one, a step of 0.8
    edges, the last at the far end (specification, section 1); one box where the image is square.
    """
    if fit == "squash":
        return [(0, 0, width, height)]
    if fit != "tiles":
        raise InputError(f"Setting 'fit' is {fit!r}; use tiles or squash.")
    edge = min(width, height)
    last = max(width, height) - edge
    starts = [*range(0, last, max(1, int(0.8 * edge))), last]
    if width >= height:
        return [(start, 0, start + edge, edge) for start in starts]
    return [(0, start, edge, start + edge) for start in starts]


_GRID = re.compile(r"grid-(\d+)-([\d.]+)(?:-.+)?")


def read_grid(fit: str) -> tuple[int, float] | None:
    """Squares along the short edge and their overlap where a ``fit`` is a grid (``config.Tiles``), else None."""
    match = _GRID.fullmatch(fit)
    return (int(match[1]), float(match[2])) if match else None


def list_boxes(width: int, height: int, fit: str) -> list[tuple[int, int, int, int]]:
    """The boxes of an image that a model sees, in pixels, row by row: of a grid, or else ``boxes``."""
    grid = read_grid(fit)
    return cut_grid(width, height, *grid) if grid else boxes(width, height, fit)


def cut_grid(width: int, height: int, per_edge: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """The (left, top, right, bottom) boxes of a grid of squares, row by row, in pixels.

    ``per_edge`` squares of edge short / (per_edge - (per_edge - 1) * overlap), rounded up, lie along the short edge.
    Along the long one are as few as reach its end with at least this overlap. They are spread evenly on both.
    """
    edge = math.ceil(min(width, height) / (per_edge - (per_edge - 1) * overlap) - 1e-9)
    starts = []
    for length in (width, height):
        steps = math.ceil((length - edge) / (edge * (1 - overlap)) - 1e-9)
        count = per_edge if length == min(width, height) else max(1, steps + 1)
        starts.append([round(place * (length - edge) / max(count - 1, 1)) for place in range(count)])
    return [(left, top, left + edge, top + edge) for top in starts[1] for left in starts[0]]


def frame(width: int, height: int, fit: str, size: int) -> tuple[int, int]:
    """Width and height at which maps and masks are compared: short edge ``size``, or squashed to a square.

    A grid of tiles keeps the picture's proportions.
    """
    if fit == "squash":
        return size, size
    scale = size / min(width, height)
    return round(width * scale), round(height * scale)


@dataclass(frozen=True)
class Rotation:
    """A rotation of a whole picture by ``angle`` degrees, counter-clockwise as seen; the picture keeps its size.

    ``rim`` says what stands where the picture does not reach: "mirror", read bilinearly about (w/2, h/2) in pixel
    indices with the rim mirrored (AnomalyDINO), or "black", read from the nearest pixel as Pillow rotates
    (SubspaceAD).
    """

    angle: float
    rim: Literal["mirror", "black"]

    @property
    def label(self) -> str:
        """Its name in that of a folder."""
        return f"{self.angle:g}-{self.rim}"

    def turn(self, image: Image.Image) -> Image.Image:
        """The rotated copy of an RGB picture."""
        if self.rim == "black":
            return image.rotate(self.angle)
        width, height = image.size
        cosine, sine = (float(function(np.deg2rad(self.angle))) for function in (np.cos, np.sin))
        rows, columns = np.mgrid[:height, :width].astype(np.float64)
        rows, columns = rows - height / 2, columns - width / 2
        source = sine * columns + cosine * rows + height / 2, cosine * columns - sine * rows + width / 2
        pixels = np.asarray(image, np.float64)
        turned = [ndimage.map_coordinates(pixels[..., band], source, order=1, mode="mirror") for band in range(3)]
        return Image.fromarray(np.rint(np.stack(turned, -1)).astype(np.uint8))


def views(path: str | Path, fit: str, size: int, rotation: Rotation | None = None) -> np.ndarray:
    """What the model sees of an image: (tiles, size, size, 3) uint8, each box resized by PIL's bicubic.

    With a ``rotation`` of its rotated copy, which is rotated before it is cut and resized.
    """
    image = load_image(path)
    if rotation:
        image = rotation.turn(image)
    tiles = (image.crop(box) for box in boxes(*image.size, fit))  # one at a time: they may be large
    return np.stack([np.asarray(tile.resize((size, size), Image.Resampling.BICUBIC)) for tile in tiles])


def cut_image(path: str | Path, fit: str, size: int, rotation: Rotation | None = None) -> np.ndarray:
    """What the model sees of an image, as ``views``: (tiles, size, size, 3) uint8, of a grid too."""
    if not read_grid(fit):
        return views(path, fit, size, rotation)
    image = load_image(path)
    if rotation:
        image = rotation.turn(image)
    tiles = (image.crop(box) for box in list_boxes(*image.size, fit))
    return np.stack([np.asarray(tile.resize((size, size), Image.Resampling.BICUBIC)) for tile in tiles])


# The code whose change gives the tiles of a grid other pixels; that of other tiles is ``boxes`` and ``views``.
CUTTING = (cut_grid, cut_image)
