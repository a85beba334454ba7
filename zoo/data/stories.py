"""The built-in corpus of small English stories: invented, deterministic in a seed, no network needed.

Simple past, a few hundred words, one hero, one small trouble, one good end: enough grammar (agreement, pronouns,
articles, direct speech) for a very small model to learn, in the spirit of the TinyStories data set, of which it holds
nothing.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence

from zoo.errors import UserError

# ruff: noqa: E501 (a wording a line, however long)

VERSION = 1
"""Raised whenever the same seed would give other texts."""
SPLITS = ("train", "heldout")

Choose = Callable[[Sequence], object]

GIRLS = "Anna Bella Clara Daisy Emma Flora Grace Hanna Ivy Julia Kate Lily Mia Nora Olive Rosie Sara Tilly Zoe".split()
BOYS = "Adam Ben Carl Dan Eli Finn George Harry Jack Leo Max Noah Oscar Paul Sam Tim Tom Will Zack".split()
# kind of animal, a name for it
ANIMALS = [
    ("rabbit", "Hop"),
    ("bear", "Bruno"),
    ("mouse", "Pip"),
    ("duck", "Dilly"),
    ("fox", "Rusty"),
    ("cat", "Mittens"),
    ("dog", "Spot"),
    ("owl", "Hoot"),
    ("frog", "Fred"),
    ("pony", "Star"),
]
TRAITS = "little happy kind brave shy clever funny quiet curious gentle".split()
COLOURS = "red blue green yellow pink brown white orange".split()
SIZES = "big small tiny long round soft shiny old new".split()
THINGS = "ball kite boat doll drum hat cup book box bell car spoon blanket scarf".split()
FOODS = "apple cake pear cookie carrot orange pie plum sandwich muffin".split()
PLACES = [
    "in the garden",
    "in the park",
    "by the river",
    "in the forest",
    "on the hill",
    "at the beach",
    "in the yard",
    "near the pond",
    "in the meadow",
    "behind the barn",
]
HIDING = [
    "under a bush",
    "behind a big tree",
    "under the bed",
    "in a deep hole",
    "on top of a wall",
    "in the tall grass",
    "behind the door",
    "inside an old shoe",
]
FAMILY = ["mom", "dad", "grandma", "grandpa", "brother", "sister"]
WEATHER = ["The sun was bright.", "It was a warm day.", "The sky was blue.", "The wind was soft.", "It was a cold day."]
FEARS = ["the dark", "the loud storm", "the deep water", "the big slide", "the tall ladder"]
GAMES = ["hide and seek", "catch", "tag", "a jumping game", "a counting game"]


def generate(num_stories: int, *, seed: int = 0, split: str = "train") -> list[str]:
    """Returns the first `num_stories` stories; story i depends on (seed, split, i) alone.

    Raises UserError for an unknown split.
    """
    return list(itertools.islice(items(seed=seed, split=split), num_stories))


def items(start: int = 0, *, seed: int = 0, split: str = "train") -> Iterator[str]:
    """Yields the stories from number `start` on, without end. Raises UserError for an unknown split."""
    return (story(number, seed=seed, split=split) for number in itertools.count(start))


def story(index: int, *, seed: int = 0, split: str = "train") -> str:
    """Returns one story: paragraphs of plain ASCII text, separated by line feeds. Raises UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError(f"data.split: {split!r} is not a split of the built-in stories; it has {', '.join(SPLITS)}")
    source = random.Random(f"zoo-stories/{VERSION}/{seed}/{split}/{index}")

    def choose(options: Sequence) -> object:
        return options[int(source.random() * len(options))]  # random() alone stays the same in every Python

    scene = _scene(choose)
    plot = choose(PLOTS)
    paragraphs = [choose(OPENINGS), *(choose(options) for options in plot), choose(ENDINGS)]
    return "\n".join(_tidy(_fill(str(text), scene)) for text in paragraphs)


def _scene(choose: Choose) -> dict[str, str]:
    """Draws the words of one story: who, with whom, what and where."""
    hero, friend = _being(choose), _being(choose)
    while friend["name"] == hero["name"]:
        friend = _being(choose)
    scene = {f"hero_{key}": value for key, value in hero.items()}
    scene |= {f"friend_{key}": value for key, value in friend.items()}
    return scene | {
        "colour": str(choose(COLOURS)),
        "size": str(choose(SIZES)),
        "thing": str(choose(THINGS)),
        "food": str(choose(FOODS)),
        "place": str(choose(PLACES)),
        "hiding": str(choose(HIDING)),
        "family": str(choose(FAMILY)),
        "weather": str(choose(WEATHER)),
        "fear": str(choose(FEARS)),
        "game": str(choose(GAMES)),
    }


def _being(choose: Choose) -> dict[str, str]:
    kind = choose(("girl", "boy", "animal"))
    trait = str(choose(TRAITS))
    if kind == "animal":
        animal, name = choose(ANIMALS)
        he = str(choose(("he", "she")))
    else:
        animal, he = str(kind), "she" if kind == "girl" else "he"
        name = str(choose(GIRLS if kind == "girl" else BOYS))
    him, his = ("her", "her") if he == "she" else ("him", "his")
    return {"name": name, "kind": animal, "trait": trait, "he": he, "him": him, "his": his}


def _fill(text: str, scene: dict[str, str]) -> str:
    """Fills in {hero}, {friend} (names), {He} (the hero's pronoun with a capital) and the words of the scene."""
    words = scene | {"hero": scene["hero_name"], "friend": scene["friend_name"]}
    words |= {key: scene[f"hero_{key}"] for key in ("he", "him", "his")}
    words |= {key.capitalize(): words[key].capitalize() for key in ("he", "his")}
    return text.format_map(words)


def _tidy(text: str) -> str:
    """Turns `a apple` into `an apple` and lets the text begin with a capital."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:]


OPENINGS = [
    "Once upon a time, there was a {hero_trait} {hero_kind} named {hero}. {hero} lived with {his} {family}.",
    "Once upon a time, a {hero_trait} {hero_kind} named {hero} lived in a small house. {hero} liked to play {place}.",
    "One day, a {hero_trait} {hero_kind} named {hero} went for a walk. {weather} {He} felt happy.",
    "{hero} was a {hero_trait} {hero_kind}. Every day, {hero} played {place} with {his} {family}.",
    "There was once a {hero_kind} named {hero}. {hero} was very {hero_trait}, and {he} had many friends.",
]

ENDINGS = [
    "{hero} was very happy. From that day on, {hero} and {friend} were best friends.",
    "{hero} smiled and hugged {friend}. It was the best day ever.",
    "Then {hero} went home and told {his} {family} all about it. They both laughed.",
    "That night, {hero} slept well in {his} warm bed. The end.",
    "{hero} and {friend} played together until the sun went down. They lived happily ever after.",
    'Before bed, {hero} said, "Today I made a good friend." And {he} was right.',
]

# A plot is a list of paragraphs, each with several wordings.
PLOTS: list[list[list[str]]] = [
    [  # a thing is lost and found
        [
            "{hero} had a {size} {colour} {thing}. {He} loved it more than anything. One morning, the {thing} was gone!",
            "{His} {family} gave {him} a {colour} {thing}. {hero} took the {thing} everywhere. But one day, {he} lost it.",
        ],
        [
            '{hero} looked and looked. "Where is my {thing}?" {he} cried. {He} was very sad.',
            '{hero} began to cry. "I can not find my {colour} {thing}," {he} said to {his} {family}.',
        ],
        [
            'A {friend_trait} {friend_kind} named {friend} heard {him}. "Do not cry," said {friend}. "I will help you." '
            "They looked {place}. At last, {friend} found the {thing} {hiding}.",
            "Just then, {friend} the {friend_kind} came by. They looked {place}, and there it was, {hiding}! "
            '"Here is your {thing}," said {friend}. "Thank you so much!" said {hero}.',
        ],
    ],
    [  # sharing food
        [
            "{hero} had a {size} {food}. It looked very yummy. {He} sat down {place} to eat it.",
            "One day, {his} {family} gave {him} a {food}. {hero} wanted to eat it all alone.",
        ],
        [
            "Then {he} saw a {friend_kind} named {friend}. {friend} had no food and looked hungry.",
            'A {friend_trait} {friend_kind} came up to {him}. "My name is {friend}," said the {friend_kind}. '
            '"I am so hungry. May I have some?"',
        ],
        [
            '{hero} thought for a moment. Then {he} cut the {food} in two. "You can have half," {he} said. '
            '"Sharing is fun!" They ate the {food} together.',
            '"Yes, we can share," said {hero}. {friend} took a small bite and smiled. "This is the best {food} in the '
            'world," said {friend}.',
        ],
    ],
    [  # a fear is overcome
        [
            "{hero} was afraid of {fear}. {He} did not want anyone to know.",
            '"I do not like {fear}," {hero} told {his} {family}. "It makes me scared."',
        ],
        [
            "One day, {his} friend {friend} came to play {place}. {friend} was a {friend_kind} and was not afraid at all. "
            '"Come with me," {friend} said. "I will hold your hand."',
            '{friend} the {friend_kind} saw that {hero} was scared. "I was scared of {fear} too," said {friend}. '
            '"But I tried, and it was not so bad."',
        ],
        [
            "{hero} took a deep breath and tried. It was not so bad! {He} tried again, and then {he} was not afraid "
            "anymore. {He} was proud.",
            '{hero} closed {his} eyes and counted to three. "One, two, three!" Then {he} opened {his} eyes and laughed. '
            '"I did it!" {he} said.',
        ],
    ],
    [  # a game and a quarrel
        [
            "{hero} and {friend} wanted to play {game} {place}. {friend} was a {friend_trait} {friend_kind}.",
            "{friend} the {friend_kind} came to visit {hero}. They played {game} all morning.",
        ],
        [
            'But {hero} wanted to go first, and {friend} wanted to go first too. "Me first!" they said. They were angry.',
            '{hero} lost the game and got mad. "That is not fair!" {he} said. {friend} was sad and walked away.',
        ],
        [
            'After a while, {hero} felt bad. {He} went to {friend}. "I am sorry," said {hero}. "You can go first." '
            '"I am sorry too," said {friend}. They were friends again.',
            '{His} {family} said, "It is more fun to play together." {hero} nodded. {He} ran to {friend} and said, '
            '"I am sorry. Let us play again." {friend} smiled.',
        ],
    ],
    [  # making something
        [
            "{hero} wanted to make a {thing}. {He} found some {colour} paper and a {size} stick.",
            "One day, {hero} had an idea. {He} wanted to build a {size} {thing} for {his} {family}.",
        ],
        [
            "{He} worked very hard, but the {thing} broke. {hero} felt sad and sat down.",
            "It was not easy. The {thing} fell down again and again. {hero} wanted to give up.",
        ],
        [
            'Then {friend} the {friend_kind} came. "Let us try again together," said {friend}. They worked and worked. '
            "Soon the {thing} was done, and it was {colour} and pretty.",
            '"Do not give up," said {friend}, a {friend_trait} {friend_kind}. {friend} helped {him}, and they made the '
            'best {thing} of all. "We did it!" they said.',
        ],
    ],
    [  # someone needs help
        [
            '{hero} was walking {place} when {he} heard a sound. "Help! Help!" It came from {friend}, a {friend_trait} '
            "{friend_kind}.",
            "One day, {hero} saw a {friend_trait} {friend_kind} named {friend}. {friend} was stuck {hiding}.",
        ],
        [
            '"Please help me," said {friend}. "I am stuck and I can not get out." {hero} did not know what to do.',
            "{hero} pulled and pulled, but {friend} did not move. {hero} needed more help.",
        ],
        [
            "{hero} ran home to get {his} {family}. They came with a long rope. They pulled together, and {friend} was "
            'free! "Thank you," said {friend}. "You are so {hero_trait}."',
            "Then {hero} had an idea. {He} found a {size} stick and pushed. At last, {friend} came out. {friend} gave "
            "{him} a {colour} {thing} to say thank you.",
        ],
    ],
    [  # a day out
        [
            "{weather} {hero} and {his} {family} went to play {place}. {He} took a {colour} {thing} and a {food}.",
            '"Let us go out today," said {his} {family}. {hero} jumped up and down. They went to play {place}.',
        ],
        [
            'There {he} met a {friend_kind} named {friend}. {friend} had a {size} {thing}. "Do you want to play {game}?" '
            "asked {friend}.",
            "Soon it began to rain. {hero} and {friend}, a {friend_trait} {friend_kind}, ran to a big tree. They waited "
            "and told each other stories.",
        ],
        [
            "They ran and jumped and laughed. When they were tired, they sat down and ate a {food}.",
            'Then they saw a {colour} bird in the sky. "Look!" said {hero}. "It is so pretty!" They watched it fly away.',
        ],
    ],
]
