"""Which emoji belong to which split, by their CLDR names.

`train` and `held_out` have no flags, families or lettering, and no two drawings that only a magnifying glass tells
apart (clocks, men and women in the same small pose); `others` has what is left, for networks that need no caption.
Most held-out names are new combinations of known parts (a woman firefighter, with a man firefighter and other women in
`train`); the last ones are entirely new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_DRAWN = frozenset((
    "time", "place-map", "alphanum", "arrow", "av-symbol", "currency", "gender", "keycap", "math", "other-symbol",
    "punctuation", "religion", "transport-sign", "warning", "zodiac", "skin-tone", "person-symbol", "person-resting",
    "money", "hotel",
))  # fmt: skip
DRAWN_NEVERTHELESS = frozenset((
    "hourglass done", "hourglass not done", "watch", "alarm clock", "stopwatch", "mantelpiece clock", "person in bed",
    "globe showing Europe-Africa", "globe showing Americas", "globe showing Asia-Australia", "compass", "credit card",
    "bellhop bell", "luggage", "footprints", "person in lotus position",
    "yin yang", "peace symbol", "infinity", "radioactive", "no entry", "warning",
))  # fmt: skip
LETTERING = frozenset((
    "hundred points", "ZZZ", "eye in speech bubble", "1st place medal", "2nd place medal", "3rd place medal",
    "pool 8 ball", "stop sign", "hospital", "post office", "Japanese post office", "bank", "hotel", "love hotel",
    "convenience store", "school", "taxi", "oncoming taxi", "bus stop", "station", "police car", "oncoming police car",
    "e-mail", "slot machine", "joker", "mahjong red dragon", "calendar", "tear-off calendar", "spiral calendar",
    "identification card", "name badge", "newspaper", "rolled-up newspaper", "dvd", "optical disk", "fuel pump",
    "keyboard", "placard", "face with symbols on mouth", "label", "no one under eighteen", "admission tickets",
    "wedding", "map of Japan", "level slider", "control knobs", "pager", "fax machine", "ticket", "ambulance", "abacus",
    "carp streamer", "flag in hole", "Japanese dolls", "love letter", "receipt", "ballot box with ballot",
    "notebook with decorative cover", "green book", "blue book", "orange book", "racing car", "coin",
    "sleeping face", "money bag", "money-mouth face", "money with wings", "woman teacher", "man teacher",
))  # fmt: skip
TOO_ALIKE = frozenset((  # the drawing of one style hardly differs from another name's
    "frowning face", "face without mouth", "dotted line face", "woman bald", "man bald", "person bald", "new moon",
    "full moon", "black circle", "white circle", "black large square", "white large square", "black medium square",
    "white medium square", "black medium-small square", "white medium-small square", "black small square",
    "white small square", "white square button", "black square button", "radio button", "diamond with a dot", "dizzy",
    "heart decoration", "heart exclamation", "grey heart", "middle finger", "person white hair", "person red hair",
    "person curly hair", "person blond hair", "man blond hair", "woman blond hair", "woman beard", "person beard",
    "person", "unlocked", "locked with pen", "incoming envelope", "envelope with arrow", "inbox tray", "outbox tray",
    "closed mailbox with lowered flag", "open mailbox with lowered flag", "closed mailbox with raised flag",
    "open mailbox with raised flag", "page facing up", "bookmark tabs", "chart decreasing", "card file box",
    "card index dividers", "spiral notepad", "ledger", "notebook", "guide dog", "service dog", "pig nose", "mouth",
    "milky way", "foggy", "fog", "tornado", "wind face", "umbrella on ground", "closed umbrella", "thermometer",
    "hole", "left speech bubble", "right anger bubble", "dashing away", "broken chain", "biting lip", "railway track",
    "motorway", "construction", "brick", "bridge at night", "cityscape at dusk", "railway car", "light rail", "tram",
    "station", "minibus", "trolleybus", "suspension railway", "musical score", "film frames", "videocassette",
    "person with skullcap", "woman with headscarf", "breast-feeding", "person with veil", "person in tuxedo",
    "pregnant person", "Mx Claus", "mobile phone with arrow", "skull and crossbones", "small blue diamond",
    "small orange diamond", "seat", "head shaking horizontally", "head shaking vertically", "bell with slash",
    "white exclamation mark", "white question mark", "people with bunny ears", "man frowning",
    "woman frowning", "man pouting", "woman pouting", "angry face with horns", "man red hair",
))  # fmt: skip
THIRD_PERSONS = frozenset((  # neither the man nor the woman, but drawn like one of them
    "health worker", "student", "teacher", "judge", "farmer", "cook", "mechanic", "factory worker", "office worker",
    "scientist", "technologist", "singer", "artist", "pilot", "astronaut", "firefighter", "police officer",
    "detective", "guard", "construction worker", "person wearing turban", "superhero", "supervillain", "mage", "fairy",
    "vampire", "merperson", "elf", "genie", "zombie", "person frowning", "person pouting", "person gesturing NO",
    "person gesturing OK", "person tipping hand", "person raising hand", "deaf person", "person bowing",
    "person facepalming", "person shrugging", "person feeding baby",
))  # fmt: skip
HELD_OUT = frozenset((
    # parts known: faces and hearts
    "grinning squinting face", "grinning face with smiling eyes", "kissing face with closed eyes", "hushed face",
    "squinting face with tongue", "winking face with tongue", "face with open eyes and hand over mouth",
    "frowning face with open mouth", "sad but relieved face", "anguished face",
    "downcast face with sweat", "slightly frowning face", "smiling face with heart-eyes", "smirking face",
    "face with head-bandage", "grinning cat with smiling eyes", "smiling cat with heart-eyes", "kissing cat",
    "speak-no-evil monkey", "green heart", "purple heart", "light blue heart", "two hearts",
    # hands
    "backhand index pointing left", "thumbs down", "leftwards hand", "palm down hand", "left-facing fist",
    "leftwards pushing hand", "raised back of hand",
    # people
    "woman firefighter", "woman pilot", "woman astronaut", "man scientist", "woman farmer", "man singer", "woman cook",
    "woman artist", "woman judge", "woman student", "man health worker", "woman mechanic",
    "man technologist", "woman office worker", "woman factory worker", "woman police officer", "woman guard",
    "man construction worker", "woman in tuxedo", "man with veil", "man wearing turban", "woman mage", "man fairy",
    "woman vampire", "merman", "man elf", "woman genie", "man zombie", "woman superhero", "man supervillain",
    "woman gesturing OK", "man gesturing NO", "woman shrugging", "man facepalming", "woman bowing", "man raising hand",
    "woman tipping hand", "woman curly hair", "woman white hair", "pregnant man", "Mrs. Claus",
    # animals and plants
    "tiger", "rabbit", "horse", "two-hump camel", "black cat", "black bird", "polar bear", "tropical fish",
    "water buffalo", "boar", "ewe", "leopard", "goose", "baby chick", "white flower", "wilted flower",
    "deciduous tree", "four leaf clover", "brown mushroom", "dragon face",
    # food
    "red apple", "lime", "tangerine", "bell pepper", "melon", "ice cream", "cooked rice", "clinking beer mugs",
    "wine glass", "spoon", "pancakes", "shrimp", "cupcake", "glass of milk", "flatbread",
    # places, vehicles and the sky
    "sunrise", "house with garden", "globe showing Asia-Australia", "mountain", "tram car", "bullet train",
    "oncoming automobile", "motorized wheelchair", "vertical traffic light", "small airplane", "airplane arrival",
    "motor boat", "delivery truck", "last quarter moon face", "waning crescent moon", "waxing gibbous moon",
    "first quarter moon", "sun behind large cloud", "cloud with lightning", "full moon face",
    "umbrella with rain drops", "snowman without snow",
    # shapes and things
    "blue circle", "orange circle", "yellow square", "purple square", "large blue diamond",
    "red triangle pointed down", "magnifying glass tilted right", "locked with key",
    "open file folder", "woman’s boot", "shorts", "sunglasses", "speaker low volume", "camera with flash",
    "rugby football", "softball", "round pushpin", "chart increasing", "hourglass not done", "crossed swords",
    "running shoe", "old key", "pen",
    # parts unknown
    "koala", "sunflower", "carrot", "trumpet", "dolphin", "cherries", "rocket", "anchor", "teapot", "scissors",
    "telescope", "pretzel", "kite", "owl", "toilet", "crab",
))  # fmt: skip


def split_of(entry: Mapping[str, Any]) -> str | None:
    """The split of one of Unicode's entries; None for flags, families, keycaps, skin tones and third persons."""
    name, kind = entry["name"], entry["subcategory"]
    if entry["category"] in ("Flags", "Component") or kind in ("family", "keycap") or name in THIRD_PERSONS:
        return None
    if (name not in DRAWN_NEVERTHELESS and kind in NOT_DRAWN) or name in LETTERING | TOO_ALIKE or _posed(name, kind):
        return "others"
    return "held_out" if name in HELD_OUT else "train"


def _posed(name: str, kind: str) -> bool:
    """Whether a name is the man or the woman in a small pose, where both look like the person, or its mirror image."""
    gendered = name.split()[0] in ("man", "woman", "men", "women")
    return kind in ("person-activity", "person-sport") and (gendered or name.endswith("facing right"))
