"""What `mkdocs build` adds to `docs/`, so that nothing is written twice: a hook of mkdocs.yml.

README.md becomes the first page, `guides/` its pages with their pictures, notebooks and sources,
and each subpackage a page of what its `__all__` lists.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "keras_densepred"
# What one looks for first on a page; the others follow by name, constants last.
_FIRST = {
    "saved": ("load", "SavedModel", "Objects", "LabelMap", "ClassScores", "Preprocessing"),
    "models": (
        "dense_detector",
        "TaskAlignedDetector",
        "RetinaNet",
        "RetinaNetKerasHub",
        "RetinaNetKerasCV",
        "YOLOv3Detector",
        "FasterRCNN",
        "MaskRCNN",
        "CascadeRCNN",
        "CascadeMaskRCNN",
        "GridRCNN",
        "RepPoints",
        "DeformableDETR",
        "Mask2Former",
        "DeepLabV3",
        "UperNet",
        "Mask2FormerSegmenter",
        "image_classifier",
        "optimize",
        "fold_batch_norm",
        "NonMaxSuppression",
        "TopDetections",
    ),
    "backbones": (
        "load_backbone",
        "CEDNetBackbone",
        "BiCSNetBackbone",
        "BiCSNetLiteBackbone",
        "ConvNeXtBackbone",
        "ResNetBackbone",
        "CSPDenseNetBackbone",
        "CSPNetBackbone",
        "HostBackbone",
    ),
    "necks": ("DetectionPyramid", "FeaturePyramid", "BiFPN", "CSPPathAggregation"),
    "data": (
        "open_splits",
        "train_batches",
        "eval_batches",
        "coco_augmentation",
        "CocoDataset",
        "YoloDataset",
        "VocDetection",
        "Record",
        "train_mask_batches",
        "eval_mask_batches",
        "MaskFolder",
        "VocSegmentation",
        "train_class_batches",
        "eval_class_batches",
        "ImageFolder",
    ),
    "metrics": ("evaluate_detector", "CocoEvaluation", "DetectionReport", "SegmentationEvaluation"),
    "training": ("fit", "distribute", "Detection", "Segmentation", "Classification", "AdamW"),
    "export": ("export_onnx", "export_openvino", "export_saved_model", "export_litert"),
}
_GUIDE_FILES = ("*.md", "*.ipynb", "*.py", "pictures/*.jpg")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages; called by mkdocs."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {"index.md": readme}
    for path in sorted((ROOT / PACKAGE).glob("*/__init__.py")):
        if not path.parent.name.startswith("_"):
            pages[f"api/{path.parent.name}.md"] = api_page(path)
    pages[f"api/{PACKAGE}.md"] = api_page(ROOT / PACKAGE / "__init__.py")
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for pattern in _GUIDE_FILES:
        for path in sorted((ROOT / "guides").glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Links that are right in the repository, made right on the site; called by mkdocs.

    README.md and guides/ lie beside docs/ there, and in it here.
    """
    if kwargs["page"].file.src_uri == "index.md":
        return re.sub(r"\]\(docs/", "](", markdown)
    for there, here in (
        ("../README.md", "index.md"),
        ("../guides/", "guides/"),
        ("../docs/", "../"),
    ):
        markdown = markdown.replace(f"]({there}", f"]({here}")
    return markdown


def api_page(init: Path) -> str:
    """The page of a package: its docstring, then what it exports.

    Args:
        init: its `__init__.py`.

    Returns:
        Markdown with mkdocstrings' directives.
    """
    package = init.parent
    module = _dotted(package)
    lines = [f"# {module}", "", ast.get_docstring(ast.parse(init.read_text("utf-8"))) or "", ""]
    places = definitions(package)
    names = exported(init)
    first = [name for name in _FIRST.get(package.name, ()) if name in names]
    others = sorted(set(names) - set(first), key=lambda name: (name.isupper(), name.lower()))
    for name in first + others:
        if (package / name).is_dir():
            lines += [f"- [`{module}.{name}`]({name}.md)"]
        elif name in places and package.name == PACKAGE:  # it has its place in a subpackage
            lines += [f"- [`{module}.{name}`][{places[name]}]"]
        elif name in places:
            lines += [f"::: {places[name]}", "    options:", "      show_root_heading: true"]
            lines += ["      show_root_toc_entry: true", "      show_root_full_path: false", ""]
        elif (package / f"{name}.py").is_file():
            lines += [f"## {module}.{name}", "", f"::: {module}.{name}", "    options:"]
            lines += ["      heading_level: 3", ""]
    return "\n".join(lines)


def exported(init: Path) -> list[str]:
    """The names in a package's `__all__`, dunder names left out."""
    for node in ast.parse(init.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("__")]
    return []


def definitions(package: Path) -> dict[str, str]:
    """Public names defined at the outermost level of a package's modules -> their full path."""
    found: dict[str, str] = {}
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_"):
                    found.setdefault(name, f"{_dotted(path.with_suffix(''))}.{name}")
    return found


def _dotted(path: Path) -> str:
    """A file's or folder's name as a module."""
    return ".".join(path.relative_to(ROOT).parts).removesuffix(".__init__")
