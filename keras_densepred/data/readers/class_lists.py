"""The classes of well-known segmentation data sets, by label."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


ADE20K_CLASS_NAMES = _names(
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, "
    "person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, "
    "shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, "
    "bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, "
    "sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool "
    "table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, "
    "flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, "
    "boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, "
    "streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, "
    "bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer "
    "belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, "
    "lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, "
    "ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, "
    "clock, flag"
)
"""The 150 of ADE20K's scene parsing benchmark; masks have these numbers plus one."""

CITYSCAPES_CLASS_NAMES = _names(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
    "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle"
)
"""The 19 that Cityscapes evaluates, by train id."""

COCO_STUFF_CLASS_NAMES = _names(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire "
    "hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, "
    "zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports "
    "ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine "
    "glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot "
    "dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, "
    "clock, vase, scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, "
    "building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, "
    "clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, "
    "floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, "
    "fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal, "
    "mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, "
    "plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, "
    "sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, "
    "structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, "
    "wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, "
    "waterdrops, window-blind, window-other, wood"
)
"""The 171 of COCO-Stuff, things first, by the order of `COCO_STUFF_IDS`."""

COCO_STUFF_IDS = tuple(
    number
    for first, last in (
        (1, 11),
        (13, 25),
        (27, 28),
        (31, 44),
        (46, 65),
        (67, 67),
        (70, 70),
        (72, 82),
        (84, 90),
        (92, 182),
    )
    for number in range(first, last + 1)
)
"""Category of each class; masks have these numbers less one."""

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Id of each class in `gtFine_labelIds`; the other ids of 0 to 33 are not evaluated."""

CITYSCAPES_COLOURS = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
"""Colour of each class, red, green, blue, as the data set draws them."""
