"""The words the problems are made of."""

from __future__ import annotations

from collections.abc import Sequence


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Karin Leo Maria Nils Olga Paul Rita Sam
    Tina Udo Vera Will Amir Bella Chen Dina Eli Fatima Gus Hana Ivan Julia Kofi Lena Mina Noah
    Omar Petra Rosa Sven Tara Uma Victor Wendy Yara Zoe
    """
)
CITIES = _words(
    """
    Oslo Rome Paris Berlin Madrid Lima Cairo Tokyo Delhi Dublin Athens Vienna Prague Lisbon
    Warsaw Bern Quito Seoul Accra Boston Denver Toronto Sydney Nairobi
    """
)
JOBS = _words(
    """
    baker teacher nurse farmer pilot cook painter driver doctor lawyer singer writer plumber
    tailor dancer gardener
    """
)
PETS = _words("cat dog horse rabbit parrot turtle hamster goat")
COLOURS = _words("red blue green yellow black white pink brown grey purple")
FRUITS = _words(
    """
    apple pear plum peach lemon mango cherry banana orange grape melon fig kiwi lime olive
    carrot onion potato tomato pepper
    """
)
THINGS = _words(
    """
    ladder drill bicycle tent hammer lamp umbrella camera guitar blanket bucket rope kettle
    chair table shovel mixer heater map coat charger laptop printer scarf
    """
)
PLACES = _words("shop library bank museum station market bakery school park office hotel pool")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
HOURS = tuple(str(hour) for hour in range(1, 13))
WORDS = _words(
    """
    BANANA APPLE LETTER TREE COFFEE PEPPER SUMMER WINTER RABBIT KITTEN BOTTLE MIRROR CARROT
    BUTTER DINNER PILLOW YELLOW TOMATO POTATO ORANGE LEMON ONION GARDEN WINDOW RIVER TABLE HOUSE
    MOUSE HORSE TIGER ZEBRA EAGLE PAPER PENCIL SCHOOL BRIDGE STREET CHEESE BREAD SUGAR WATER
    CLOUD STORM GRASS FLOWER FOREST ISLAND OCEAN PLANET ROCKET ENGINE CAMERA GUITAR PIANO VIOLIN
    DRUM HAMMER LADDER BASKET BUCKET BALLOON TUNNEL VALLEY DESERT CASTLE KNIGHT DRAGON WIZARD
    MONKEY DONKEY TURTLE SPIDER BEETLE SALMON LION BEAR WOLF DEER GOAT FROG DUCK SWAN CROW OWL
    """
)
COMMON = tuple(sorted({*FRUITS, *THINGS, *PETS, *COLOURS, *PLACES, *JOBS}))


def plural(noun: str) -> str:
    """Return the plural of one of the nouns above."""
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("ch", "o")) else "s")


def join(items: Sequence[str]) -> str:
    """Return the items as a list in words' order, separated by a comma and a space."""
    return ", ".join(items)
