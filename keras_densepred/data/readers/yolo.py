"""Detection and instance segmentation data as YOLO's text files, with random access."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_densepred.data.image_size import size_or_pixel
from keras_densepred.data.readers.box_form import check_normalised_boxes, look_like_pixels
from keras_densepred.data.readers.coco_checks import Faults
from keras_densepred.data.readers.coco_masks import mask_areas
from keras_densepred.data.readers.image_tree import ImageTree, files_finding
from keras_densepred.data.readers.listing import (
    FileFinder,
    by_stem,
    input_path,
    is_text,
    leads_outside,
    read_lines,
    stem_of,
    unique_names,
)
from keras_densepred.data.readers.object_files import ObjectFiles
from keras_densepred.data.readers.object_table import ObjectTable
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import DatasetError

_NO_LABELS = frozenset({"classes"})  # text files among the labels that are none
_NAMED = 3  # faulty lines of a kind; the others are counted
_LARGEST = 1e6  # shares of an image that are certainly none
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


class YoloDataset(ObjectFiles):
    """One split of a data set in YOLO's form: a text file of objects for each image.

    A line is `class x y width height`, the box by its centre, or `class x0 y0 x1 y1 x2 y2 ...`, a
    polygon; all but the class as shares of the upright image's sides. The labels of
    `.../images/.../a.jpg` are `.../labels/.../a.txt`; where there is no such folder, they are
    beside the image. An image whose file is empty or missing has no objects; `summary()` counts
    both. Sizes are read from the images' headers. Requires Pillow, and faster-coco-eval for masks:
    extra `data`.

    Args:
        images: a folder, whose sub-folders count, a text file that lists images, or several.
        class_names: name of each class, by its number.
        root: the folder that everything is in, by default that above `images`. Names in lists are
            relative to the list's folder or to this, and may not lead out of it.
        with_masks: whether records have `masks`, from polygons.
        with_keypoints: whether numbers behind the box are key points, which are left out.

    Raises:
        DatasetError: if there are no images or no objects, a line is none of these, names a class
            that there is not, or a list names a file that is not there.
    """

    box_form = "boxes are `class x y width height`, the centre and the sides as shares of the image"

    def __init__(
        self,
        images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        class_names: Sequence[str],
        *,
        root: str | os.PathLike[str] | None = None,
        with_masks: bool = False,
        with_keypoints: bool = False,
    ) -> None:
        given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
        places = [input_path(place) for place in given]
        base = input_path(root) if root is not None else places[0].parent
        if len(places) == 1 and places[0].is_dir():
            base = places[0]
        source = ", ".join(map(str, places))
        names, notes = _image_names(places, base)
        labels = _LabelFiles(str(base))
        files = [labels.of_image(name) for name in names]
        if not any(files):
            raise DatasetError(
                f"{source}: none of its {len(files):,} images has a file of labels, looked for "
                f"{labels.expected(names[0])}: put the text files there."
            )
        lines = _Lines(files, len(class_names), with_masks, with_keypoints)
        sizes = np.array([size_or_pixel(os.path.join(base, name)) for name in names], np.int32)
        image_of = np.array(lines.image_of, np.int64)
        sides = sizes[image_of][:, ::-1].astype(np.float64)
        shares = np.array(lines.boxes, np.float64).reshape(-1, 4)
        lines.raise_if_faulty(source, len(class_names), shares)
        check_normalised_boxes(shares, source, lines.name)
        table = ObjectTable.build(
            class_names=unique_names(class_names, source),
            category_ids=range(len(class_names)),
            image_ids=np.arange(1, len(names) + 1),
            image_sizes=sizes,
            file_names=names,
            image_of=image_of,
            boxes=shares * np.concatenate([sides, sides], axis=1),
            labels=np.array(lines.labels, np.int32),
            crowd=np.zeros(len(shares), bool),
            areas=np.full(len(shares), np.nan),
            object_name=lines.name,
        )
        notes += (*_without_objects(files, lines.empty, names), *labels.findings())
        super().__init__(source, str(base), table, len(shares), notes)
        self.segmented = lines.segmented
        if with_masks:
            self._make_masks(lines, sides)

    def _make_masks(self, lines: _Lines, sides: np.ndarray) -> None:
        rows = self._table.rows.tolist()
        polygons = [
            None if lines.polygons[row] is None else [(lines.polygons[row] * sides[row]).ravel()]
            for row in rows
        ]
        segmentations = [p and [p[0].tolist()] for p in polygons]
        self._encode_masks(segmentations, lambda row: lines.name(rows[row]), required=True)
        assert self._masks is not None
        sizes = np.repeat(self._table.image_sizes, np.diff(self._table.starts), axis=0).tolist()
        areas = mask_areas(self._masks, sizes).astype(np.float64)
        areas = np.where(areas > 0, areas, self._table.areas)
        self._table = dataclasses.replace(self._table, areas=areas)

    def _stated_size(self, index: int) -> str:
        return "its header gave"


def _image_names(places: Sequence[Path], base: Path) -> tuple[list[str], tuple[Finding, ...]]:
    """The images of folders and lists, relative to `base`, and what was left out."""
    names: list[str] = []
    notes: tuple[Finding, ...] = ()
    for place in places:
        if place.is_dir():
            tree = ImageTree(str(place))
            tree.by_stem()
            inside = os.path.relpath(place, base)
            prefix = "" if inside == os.curdir else f"{Path(inside).as_posix()}/"
            names += [prefix + name for name in tree.names]
            notes += tree.findings()
        else:
            names += _listed_images(place, base)
    unique = list(dict.fromkeys(names))
    if len(unique) < len(names):
        repeated = len(names) - len(unique)
        what = "image is listed again" if repeated == 1 else "images are listed again"
        first = next(name for name in unique if names.count(name) > 1)
        notes += (Finding(repeated, f"{what}, and read once", first),)
    return unique, notes


def _listed_images(path: Path, base: Path) -> list[str]:
    """The images that a text file lists, relative to `base`."""
    finder = FileFinder()
    faults = Faults(str(path))
    names = []
    for line in read_lines(path, "a folder of images, or a text file with one in each line"):
        name = line.replace("\\", "/")
        if _ABSOLUTE.match(name):
            name = os.path.relpath(name, base) if name.startswith(f"{base}/") else "../" + name
        name = os.path.normpath(name.removeprefix("./")) if not leads_outside(name) else name
        if not is_text(name) or leads_outside(name):
            faults.add(f"line {line!r} leads out of {base}")
            continue
        for start in (path.parent, base):
            found = finder.find(str(start), name)
            if found is not None:
                names.append(Path(os.path.relpath(start / found, base)).as_posix())
                break
        else:
            faults.add(f"line {line!r} is no file in {base}")
    faults.raise_if_any("write names relative to that folder, or put the list and images there")
    return names


class _LabelFiles:
    """Finds the text files of images; each folder is listed once."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._listed: dict[str, dict[str, str]] = {}  # folder -> stem -> name
        self._of_folder: dict[str, str] = {}
        self._used: set[str] = set()

    def of_image(self, name: str) -> str | None:
        """The path of an image's labels, or None."""
        inside, file = os.path.split(name)
        folder = self._folder(inside)
        found = self._listed[folder].get(stem_of(file))
        if found is None:
            return None
        path = os.path.join(folder, found)
        self._used.add(path)
        return path

    def expected(self, name: str) -> str:
        """Where the labels of an image should be."""
        inside, file = os.path.split(name)
        return os.path.join(self._folder(inside), os.path.splitext(file)[0] + ".txt")

    def _folder(self, inside: str) -> str:
        """Where the labels of the images of a folder are."""
        if inside not in self._of_folder:
            folder = os.path.join(self._base, inside) if inside else self._base
            before, found, after = os.path.abspath(folder).rpartition(f"{os.sep}images")
            beside = f"{before}{os.sep}labels{after}"
            is_component = found and (not after or after.startswith(os.sep))
            self._of_folder[inside] = beside if is_component and os.path.isdir(beside) else folder
            self._list(self._of_folder[inside])
        return self._of_folder[inside]

    def _list(self, folder: str) -> None:
        if folder not in self._listed:
            names = [
                name
                for name in sorted(os.listdir(folder))
                if name[-4:].lower() == ".txt" and name[0] != "."
            ]
            self._listed[folder] = by_stem(names, folder)

    def findings(self) -> tuple[Finding, ...]:
        """Counts files of labels without an image, in folders of nothing else."""
        unused = [
            os.path.join(folder, name)
            for folder, names in self._listed.items()
            if folder not in {os.path.join(self._base, inside) for inside in self._of_folder}
            for stem, name in names.items()
            if stem not in _NO_LABELS and os.path.join(folder, name) not in self._used
        ]
        unused = [path for path in unused if is_text(path)]
        return files_finding(unused, "file of labels has no image", "files of labels have no image")


class _Lines:
    """The objects in the text files of a split.

    Attributes:
        image_of: number of the image of each object.
        labels: its class.
        boxes: four numbers each, left, top, width and height, as shares of the image.
        polygons: `(N, 2)` shares each or None; empty without masks.
        empty: numbers of the images whose files have no line.
    """

    def __init__(
        self, files: Sequence[str | None], classes: int, with_masks: bool, with_keypoints: bool
    ) -> None:
        self._files = files
        self._numbers = array("l")
        self._with_masks, self._with_keypoints = with_masks, with_keypoints
        self.image_of, self.labels, self.boxes = array("q"), array("q"), array("d")
        self.polygons: list[np.ndarray | None] = []
        self.segmented = 0
        self.empty: list[int] = []
        self._of_no_form, self._of_no_class = _Faulty(), _Faulty()
        for image, path in enumerate(files):
            if path is not None:
                self._read(image, path, classes)

    def name(self, row: int) -> str:
        """Where an object stands."""
        return f"{self._files[self.image_of[row]]}, line {self._numbers[row]}"

    def _read(self, image: int, path: str, classes: int) -> None:
        try:
            with open(path, "rb") as file:
                content = file.read().removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
        before = len(self.labels)
        for number, line in enumerate(content.splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            try:
                label = float(words[0])
                box = self._box(list(map(float, words[1:])))
            except ValueError:
                self._of_no_form.add(f"{path}, line {number}", _shown(line))
                continue
            if not (label.is_integer() and 0 <= label < classes):
                self._of_no_class.add(f"{path}, line {number}", f"class {label:g}")
            self.labels.append(int(label) if label.is_integer() else -1)
            self.boxes.extend(box)
            self.image_of.append(image)
            self._numbers.append(number)
        if len(self.labels) == before:
            self.empty.append(image)

    def raise_if_faulty(self, source: str, classes: int, boxes: np.ndarray) -> None:
        """Names some of the lines that cannot be read, and says how many there are.

        Args:
            source: what messages call the data.
            classes: how many there are.
            boxes: of the lines that can be read, `(N, 4)` shares.

        Raises:
            DatasetError: if there are any.
        """
        said = []
        if self._of_no_form.count:
            is_scored = any(len(text.split()) == 6 for text in self._of_no_form.named.values())
            hint = " (six numbers are a prediction with its confidence)" if is_scored else ""
            form = "neither `class x y width height` nor `class x0 y0 x1 y1 x2 y2 ...`"
            said.append(f"{self._of_no_form.told('is')}, {form}{hint}: correct or remove it")
        if self._of_no_class.count:
            said.append(
                f"{self._of_no_class.told('has')}, and there are names for {classes} (0 to "
                f"{classes - 1}): correct it, or name all classes"
            )
        if said and look_like_pixels(boxes):
            said.append("most boxes look like pixels, too: they are shares of the image, 0 to 1")
        if said:
            raise DatasetError(f"{source}: {'; '.join(said)}.")

    def _box(self, values: list[float]) -> tuple[float, float, float, float]:
        """Left, top, width and height; keeps a polygon where masks are wanted."""
        # Neither infinite nor NaN, which no comparison holds for.
        if not (
            values and min(values) > -_LARGEST and max(values) < _LARGEST and sum(values) < math.inf
        ):
            raise ValueError
        if len(values) == 4 or (self._with_keypoints and len(values) > 4):
            x, y, width, height = values[:4]
            if self._with_masks:
                self.polygons.append(None)
            return x - width / 2, y - height / 2, width, height
        if len(values) < 6 or len(values) % 2:
            raise ValueError
        self.segmented += 1
        if self._with_masks:
            self.polygons.append(np.array(values).reshape(-1, 2))
        left, top = min(values[::2]), min(values[1::2])
        return left, top, max(values[::2]) - left, max(values[1::2]) - top


class _Faulty:
    """Lines with a fault of one kind: how many there are, and the first ones."""

    def __init__(self) -> None:
        self.count = 0
        self.named: dict[str, str] = {}

    def add(self, place: str, text: str) -> None:
        self.count += 1
        if len(self.named) < _NAMED:
            self.named[place] = text

    def told(self, verb: str) -> str:
        """In words."""
        named = [f"{place} {verb} {text}" for place, text in self.named.items()]
        more = self.count - len(named)
        if more:
            named.append(f"so {'is' if more == 1 else 'are'} {more:,} more")
        return ", ".join(named)


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace").strip()
    return f"{text if len(text) <= 60 else text[:57] + '...'!a}"


def _without_objects(
    files: Sequence[str | None], empty: Sequence[int], names: Sequence[str]
) -> tuple[Finding, ...]:
    """Counts images without a file, and with an empty one."""
    missing = [name for name, file in zip(names, files, strict=True) if file is None]
    what = "no file of labels, taken as without objects"
    alone = "an empty file of labels: without objects"
    return files_finding(missing, f"image has {what}", f"images have {what}") + files_finding(
        [names[image] for image in empty], f"image has {alone}", f"images have {alone}"
    )
