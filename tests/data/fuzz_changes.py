"""Random faults in the files of a data set, as exporters, editors and damage leave them."""

import json
import os
import re
import unicodedata

from tests.data.fuzz_trees import OBJECT, Tree

# What exporters, editors and damage leave where another value should be.
ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 3, 2.5, -0.0, 1e-9, 1e30, 10**400, float("nan"), float("inf")),
    *("", " ", "x", "3", "a.png", "../x.png", "/etc/x", "C:\\x", "sub\\c.png", "a\nb", "\0", "[x]"),
    *("\ud800", "cafe\u0301.jpg", [], {}, [[]], [0, 0, 1, 1], [1, 2, 3], [1, 1, -4, 4], {"a": 1}),
    *([-5, -5, 100, 100], [0.1, 0.2, 0.3, 0.4], {"size": [1, 1], "counts": "1"}, [0.5] * 6),
)


def places(value, path=()):
    """All places in a JSON value."""
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def change_json(rng, content):
    *path, key = pick(rng, list(places(content)))
    parent = content
    for step in path:
        parent = parent[step]
    action = rng.integers(6)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.append(parent[key])
    elif action == 2 and isinstance(parent[key], int | float):
        parent[key] = pick(rng, [-parent[key], parent[key] * 1000, parent[key] / 1000, 0])
    else:
        parent[key] = json.loads(json.dumps(pick(rng, ODD_VALUES)))


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def change_bytes(rng, content):
    """Damage of one file."""
    action = rng.integers(5)
    if action == 0 or not content:
        return pick(rng, [b"", b"no image", b"\xff\xfe", b"\0" * 50, b"<html>", b"[]", b"{}"])
    position = int(rng.integers(len(content)))
    if action == 1:
        return content[:position]
    if action == 2:
        return content[:position] + rng.bytes(4) + content[position + 4 :]
    if action == 3:
        return content + rng.bytes(30)
    return content[:position] + content[position + 1 :]


def change_labels(rng, content):
    """A line of YOLO's as exporters, other programs and damage leave it."""
    odd = [
        *("", "0 0.5 0.5 0.2 0.2", "9 0.5 0.5 0.2 0.2", "-1 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 -0.2"),
        *("0 nan 0 1 1", "0 1e400 1 1 1", "0 0.5 0.5 0.2", "0 .1 .1 .9 .1 .9 .9", "cat 1 1 1 1"),
        *("0 50 60 20 20", "0 0.5 0.5 0.2 0.2 0.99", "1.0 0.5 0.5 0.2 0.2", "0,0.5,0.5,0.2,0.2"),
        *(
            "0 2 2 0.1 0.1",
            "\ufeff",
            "0 0.5 0.5 0 0",
            "1.5 0.5 0.5 0.2 0.2",
            "0 0.1 0.1 0.1 0.1 0.1 0.1",
        ),
    ]
    lines = content.decode(errors="replace").splitlines()
    lines.insert(int(rng.integers(len(lines) + 1)), pick(rng, odd))
    return "\n".join(lines).encode()


def change_xml(rng, content):
    """Another text in an element, an element twice or gone, a document type."""
    odd = [
        "",
        "-1",
        "0",
        "nan",
        "1e400",
        "12.5",
        "x",
        "é",
        "&amp;",
        "&x;",
        "<a/>",
        "../a.jpg",
        "9" * 30,
    ]
    text = content.decode(errors="replace")
    found = list(re.finditer(r">([^<]*)<", text))
    action = rng.integers(4)
    if action == 0:
        return b'<!DOCTYPE annotation [<!ENTITY x "cat">]>' + content
    if action == 1 and OBJECT[:8] in text:
        return text.replace("<object>", pick(rng, ["<object><part>", "<Object>", ""]), 1).encode()
    if not found:
        return content
    place = pick(rng, found)
    return (text[: place.start(1)] + pick(rng, odd) + text[place.end(1) :]).encode()


def change_lines(rng, content):
    lines = content.decode(errors="replace").splitlines()
    odd = ["", "a", "../a", "a b", "\t", "\0", "/a", "cafe\u0301", "[x]", "\ufeff", "b.png"]
    lines.insert(int(rng.integers(len(lines) + 1)), pick(rng, odd))
    if rng.integers(3) == 0:
        lines.pop(int(rng.integers(len(lines))))
    return "\n".join(lines).encode()


def change_name(rng, name):
    """Another name for a file, in the same folder or one that looks like it."""
    folder, base = os.path.split(name)
    stem, suffix = os.path.splitext(base)
    new = pick(
        rng,
        [
            stem,
            stem.upper() + suffix,
            *(stem + other for other in (".jpg", ".gif", ".heic", ".txt", ".PNG", ".tif", ".json")),
            "." + base,
            unicodedata.normalize("NFD", base),
            "[x] é" + suffix,
            "a\nb" + suffix,
            os.fsdecode(b"a\xff") + suffix,
            f"deep/{base}",
        ],
    )
    return os.path.join(folder, new)


def change_tree(rng, tree: Tree) -> str:
    """Changes a tree in place; returns what was done, for a test that fails."""
    name = pick(rng, sorted(tree))
    action = pick(rng, ["json", "json", "bytes", "lines", "name", "copy", "gone", "folder", "swap"])
    if action == "json" and name.endswith(".json") and tree[name]:
        try:
            content = json.loads(tree[name])
            change_json(rng, content)
            tree[name] = json.dumps(content).encode()
        except (ValueError, IndexError):  # damaged before
            action = "json not changed"
    elif action in ("lines", "json") and name.startswith("labels/"):
        tree[name] = change_labels(rng, tree[name])
    elif action in ("lines", "json") and name.endswith(".xml"):
        tree[name] = change_xml(rng, tree[name])
    elif action == "lines" and name.endswith((".txt", ".yaml")):
        tree[name] = change_lines(rng, tree[name])
    elif action == "name":
        tree[change_name(rng, name)] = tree.pop(name)
    elif action == "copy":
        tree[change_name(rng, name)] = tree[name]
    elif action == "gone":
        del tree[name]
    elif action == "folder":
        tree[f"{name}/inside.png"] = tree.pop(name)
    elif action == "swap":
        other = pick(rng, sorted(tree))
        tree[name], tree[other] = tree[other], tree[name]
    else:
        tree[name] = change_bytes(rng, tree[name])
    return f"{action} {name!a}"
