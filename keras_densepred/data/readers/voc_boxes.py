"""Detection data as Pascal VOC's XML files, with random access."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from keras_densepred.data.image_files import ImageError
from keras_densepred.data.image_size import upright_size
from keras_densepred.data.readers.coco_checks import Faults
from keras_densepred.data.readers.image_tree import ImageTree, files_finding, walk
from keras_densepred.data.readers.listing import (
    composed,
    input_path,
    is_readable,
    leads_outside,
    read_lines,
    require_text,
    stem_of,
    unique_names,
)
from keras_densepred.data.readers.object_files import ObjectFiles
from keras_densepred.data.readers.object_table import ObjectTable
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import DatasetError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LARGEST_PIXEL = 1e9


class VocDetection(ObjectFiles):
    """The boxes of Pascal VOC's XML files, one for each image.

    Objects marked `difficult` become crowd regions: neither trained on nor counted, as VOC has it.
    Corners without a decimal point are VOC's, pixels counted from 1 and both included; with one,
    or with a 0, they are edges as everywhere else here. The image of `a.xml` is `a.jpg` or the
    like in `images`, or else its `filename` there. Requires Pillow: extra `data`.

    Args:
        annotations: the folder of the XML files, whose sub-folders count.
        images: the folder of the images.
        names: a text file with a name without suffix in each line, one of `ImageSets/Main`; None
            for all XML files.
        class_names: names in the order of labels; None for those of the objects, sorted.
        from_one: whether pixels are counted from 1; None finds out as above.

    Raises:
        DatasetError: if there are no files or no objects, one is not such a file, names a class
            that `class_names` has not, or an image is not there.
    """

    box_form = "corners are xmin, ymin, xmax, ymax in pixels"

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str],
        names: str | os.PathLike[str] | None = None,
        class_names: Sequence[str] | None = None,
        from_one: bool | None = None,
    ) -> None:
        folder, image_folder = str(input_path(annotations)), str(input_path(images))
        source = folder if names is None else str(input_path(names))
        files, notes = _annotation_files(folder, names)
        read = [read_voc_file(os.path.join(folder, file)) for file in files]
        tree = ImageTree(image_folder)
        found = _find_images(files, read, tree, folder)
        pairs = [(number, item) for number, file in enumerate(read) for item in file.objects]
        if class_names is None:
            class_names = sorted({item.name for _, item in pairs})
        class_names = unique_names(class_names, source)
        label_of = {name: label for label, name in enumerate(class_names)}
        self._files = [os.path.join(folder, file) for file in files]

        def object_name(row: int) -> str:
            number, item = pairs[row]
            return f"{self._files[number]}, object {item.number} ({item.name})"

        faults = Faults(source)
        for row, (_, item) in enumerate(pairs):
            if item.name not in label_of:
                faults.add(f"{object_name(row)} is of a class that is not among the names")
        faults.raise_if_any("correct the name, or add it to classes.txt")
        if from_one is None:
            from_one = counts_from_one(read)
        corners = np.array([item.corners for _, item in pairs], np.float64).reshape(-1, 4)
        no_area = (corners[:, 2:] <= corners[:, :2]).any(axis=1)
        if from_one:
            corners[:, :2] -= 1
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        boxes[no_area, 2:] = 0
        if len(boxes) and no_area.mean() > 0.5:
            raise DatasetError(
                f"{source}: {no_area.sum():,} of {len(boxes):,} boxes have an xmax that is not "
                f"above their xmin, or a ymax, such as {object_name(int(np.argmax(no_area)))}, so "
                "they look like sides: write xmin, ymin, xmax and ymax."
            )
        sizes = [
            file.size or _size_of(os.path.join(image_folder, name), file)
            for file, name in zip(read, found, strict=True)
        ]
        table = ObjectTable.build(
            class_names=class_names,
            category_ids=range(1, len(class_names) + 1),
            image_ids=np.arange(1, len(found) + 1),
            image_sizes=np.array(sizes, np.int32).reshape(-1, 2),
            file_names=found,
            image_of=np.array([number for number, _ in pairs], np.int64),
            boxes=boxes,
            labels=np.array([label_of[item.name] for _, item in pairs], np.int32),
            crowd=np.array([item.is_difficult for _, item in pairs], bool),
            areas=np.full(len(pairs), np.nan),
            object_name=object_name,
        )
        notes += tree.findings()
        if names is None:
            unused = sorted(set(tree.names) - set(found))
            what = "no XML file and left out"
            notes += files_finding(unused, f"image has {what}", f"images have {what}")
        super().__init__(source, image_folder, table, len(pairs), notes)

    def _stated_size(self, index: int) -> str:
        return f"{self._files[index]} gives it"

    def subset(self, indices: Sequence[int], part: str, *, with_findings: bool = True):
        """See `ObjectFiles.subset`."""
        made = super().subset(indices, part, with_findings=with_findings)
        made._files = [self._files[index] for index in indices]
        return made


@dataclasses.dataclass(frozen=True)
class VocObject:
    """An object of an XML file.

    Args:
        number: its position in the file, from 1.
        name: of its class.
        corners: xmin, ymin, xmax, ymax as they stand there.
        is_difficult: whether VOC leaves it out.
        from_one: whether the corners may be pixels counted from 1.
    """

    number: int
    name: str
    corners: tuple[float, ...]
    is_difficult: bool
    from_one: bool


@dataclasses.dataclass(frozen=True)
class VocFile:
    """What an XML file says: name of the image, its height and width if given, its objects."""

    file_name: str
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


def counts_from_one(files: Iterable[VocFile]) -> bool:
    """Whether the corners of files are pixels counted from 1."""
    return all(item.from_one for file in files for item in file.objects)


def voc_conventions(folders: Sequence[str | os.PathLike[str]]) -> tuple[tuple[str, ...], bool]:
    """What all splits of a tree must agree on.

    Args:
        folders: with XML files.

    Returns:
        The classes of all objects, sorted, and whether corners are counted from 1. Files that
        cannot be read are passed over: whoever reads their split names them.
    """
    names: set[str] = set()
    from_one = True
    for folder in map(str, folders):
        for file in walk(folder):
            if not file.lower().endswith(".xml"):
                continue
            try:
                read = read_voc_file(os.path.join(folder, file))
            except DatasetError:
                continue
            names |= {item.name for item in read.objects}
            from_one = from_one and counts_from_one([read])
    return tuple(sorted(names)), from_one


def read_voc_file(path: str) -> VocFile:
    """Reads an XML file of Pascal VOC's form.

    Raises:
        DatasetError: if it cannot be read, is not such a file, or declares a document type:
            entities can stand for other files, or for gigabytes.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise DatasetError(
            f"{path} is not a file of Pascal VOC: its top level is <{_short(root.tag)}>, and must "
            "be <annotation>."
        )
    objects = tuple(
        _object(entry, number, path) for number, entry in enumerate(root.findall("object"), start=1)
    )
    sides = tuple(_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    is_size = all(side.is_integer() and 0 < side < _LARGEST_PIXEL for side in sides)
    size = (int(sides[0]), int(sides[1])) if is_size else None
    return VocFile((root.findtext("filename") or "").strip(), size, objects)


def _parse(path: str) -> ElementTree.Element:
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise DatasetError(
            f"{path} declares a document type, which could name other files: remove <!DOCTYPE ...>."
        )

    parser.StartDoctypeDeclHandler = refuse
    try:
        with open(path, "rb") as file:
            parser.Parse(file.read(), True)
        return builder.close()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{path} is not valid XML, or was cut off ({' '.join(str(error).split())}): write or "
            "copy it again."
        ) from error


def _object(entry: ElementTree.Element, number: int, path: str) -> VocObject:
    where = f"{path}, object {number}"
    name = composed((entry.findtext("name") or "").strip())
    if not is_readable(name):
        raise DatasetError(f"{where} has no <name> that is a readable text: write its class.")
    texts = [(entry.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
    corners = tuple(map(_number, texts))
    if not all(abs(value) < _LARGEST_PIXEL for value in corners):
        shown = ", ".join(map(_short, texts))
        raise DatasetError(
            f"{where} ({name}) has the corners ({shown}), not four numbers: write a <bndbox> with "
            "xmin, ymin, xmax and ymax in pixels."
        )
    difficult = (entry.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise DatasetError(f"{where} has <difficult> {_short(difficult)}: write 0 or 1.")
    from_one = min(corners) >= 1 and all(text.isdecimal() for text in texts)
    return VocObject(number, name, corners, difficult == "1", from_one)


def _number(text: str | None) -> float:
    """The number in a text, NaN if it is none."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 30 else shown[:27] + "..."


def _size_of(path: str, file: VocFile) -> tuple[int, int]:
    """From the image's header; of an unreadable one, which is named later, what its boxes need."""
    try:
        return upright_size(path)
    except ImageError:
        corners = np.array([item.corners for item in file.objects] or [(0, 0, 1, 1)])
        width, height = np.maximum(np.ceil(corners[:, 2:].max(axis=0)), 1)
        return int(height), int(width)


def _annotation_files(
    folder: str, names: str | os.PathLike[str] | None
) -> tuple[list[str], tuple[Finding, ...]]:
    """The XML files of a split, relative to the folder."""
    found = sorted(file for file in walk(folder) if file.lower().endswith(".xml"))
    for file in found:
        require_text(file, folder)
    if not found:
        raise DatasetError(f"{folder} has no XML files: put Pascal VOC's annotations there.")
    if names is None:
        return found, ()
    path = input_path(names)
    by_stem = {stem_of(file): file for file in found}
    # Lists of one class have 1 or -1 behind the name.
    lines = [line.split() for line in read_lines(path, "the names of the split's images")]
    wanted = [composed(words[0].replace("\\", "/")) for words in lines]
    faults = Faults(str(path))
    for name in wanted:
        if leads_outside(name):
            faults.add(f"{name!a} leads out of {folder}")
        elif name not in by_stem:
            faults.add(f"{name!a} has no XML file in {folder}")
    faults.raise_if_any("write names of XML files without their suffix, or add the files")
    unique = list(dict.fromkeys(wanted))
    notes: tuple[Finding, ...] = ()
    if len(unique) < len(wanted):
        repeated = len(wanted) - len(unique)
        what = "name repeats an earlier one" if repeated == 1 else "names repeat earlier ones"
        notes = (Finding(repeated, what, str(path)),)
    return [by_stem[name] for name in unique], notes


def _find_images(
    files: Sequence[str], read: Sequence[VocFile], tree: ImageTree, folder: str
) -> list[str]:
    """The image of each XML file, relative to the folder of images."""
    by_stem: Mapping[str, str] = tree.by_stem()
    by_name = {composed(name): name for name in tree.names}
    faults = Faults(folder)
    found: list[str] = []
    for file, content in zip(files, read, strict=True):
        stem = stem_of(file)
        inside = os.path.dirname(stem)
        named = composed(content.file_name.replace("\\", "/"))
        if stem in by_stem:
            found.append(by_stem[stem])
        elif leads_outside(named):
            faults.add(f"{file} names the image {_short(named)}, which leads out of {tree.folder}")
        else:
            image = by_name.get(f"{inside}/{named}" if inside else named) or by_name.get(named)
            found.append(image or "")
            if image is None:
                faults.add(
                    f"{file} has no image {Path(stem).name}.jpg or the like in {tree.folder}"
                )
    faults.raise_if_any("add the image, or remove the file")
    if len(set(found)) < len(found):
        first = next(name for name in found if found.count(name) > 1)
        raise DatasetError(
            f"{folder} has several XML files for {first}: remove or rename all but one."
        )
    return found
