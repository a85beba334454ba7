"""Invented people, clubs and stadiums, put together from parts, so that only copying gets a name right.

Surnames and places are a stem and an ending ('Alv' + 'arena', 'Valde' + 'mora'): thousands of them from a few
hundred pieces. Those are easy to learn to copy, but a model that has met no others cannot copy 'Griezmann': it has
never seen its pieces ('ez', 'man') in a name. So there are coined names too, put together from the syllables and
endings of many languages, in which nearly every short piece of a vocabulary occurs.

The tokenizer learns no rare name (`zoo.tasks.cronica.pairs.tokenizer_texts`), so that every one is spelt
from short common pieces, the known ones like the unknown. One in twelve surnames and places is kept out of the
training split altogether (`unseen=True`), so that copying can be told from remembering. Any likeness to real
people is chance.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal

Origin = Literal["spanish", "foreign", "coined"]
ORIGINS: tuple[Origin, ...] = ("spanish", "foreign", "coined")

GIVEN = tuple(
    """Abel Adrián Alan Aldo Alexis Alfredo Amílcar Ángel Antonio Armando Arturo Axel Benicio Bernardo Braulio
    Bruno Carlos Claudio Cristóbal Daniel David Diego Domingo Edmundo Efraín Eliseo Emiliano Enrique Ernesto
    Eugenio Fabián Facundo Felipe Fermín Fidel Franco Gael Gerardo Gilberto Gregorio Guillermo Héctor Hilario
    Hugo Ignacio Iván Jaime Jerónimo Joaquín Jonás Jorge Josué Julián Kevin Leandro Leonel Lorenzo Luciano
    Manuel Marcos Mario Mateo Mauricio Maximiliano Milton Nahuel Nicolás Octavio Orlando Osvaldo Pascual Pedro
    Ramiro Raúl Ricardo Roberto Rodrigo Román Salvador Santiago Saúl Sergio Simón Teodoro Tobías Uriel Vicente
    Wilson Yago""".split()
)

_SURNAME_STEMS = tuple(
    """Acev Alc Alv And Arb Arr Asp Bad Bar Bel Bet Bust Camp Card Cast Col Cosc Del Ech Esc Fab Ferr Font Gam Garr
    Gor Guill Hid Ins Iturb Jim Lag Led Lint Lug Mald Marr Maz Merc Mir Mont Muñ Neg Och Orel Oyarz Pant Pel Pic
    Port Quint Reg Riq Roc Ros Saav Samb Sarm Sif Suár Tej Torr Ug Urb Val Vel Vig Yañ Zal Zav Zur""".split()
)
_SURNAME_ENDINGS = tuple(
    """abal ada aga ales ando ara ares asco azo edo eira elas enas ento ero eta eza ibar ides igas illa inaga irre
    itegui oa ola onda ordi ories otto uaga udia umendi uri uti""".split()
)

_FOREIGN_STEMS = tuple(
    """Ab Ander Berg Bran Chris Dal Drag El Fitz Gn Guar Ham Ib Kam Klop Kul Lind Mat Mits Nak Now Ol Pjan Rab Rob
    Sha Stan Tch Tsi Van Wes Xh Zie""".split()
)
_FOREIGN_ENDINGS = tuple(
    """bach berg cki don dsen ek ev ff gaard ghi ham inho ka kis ksson lain ly mba mori nen nier ović quist rron
    sic son ström ton tsu vic ward wood yev""".split()
)
_FOREIGN_GIVEN = tuple(
    """Adam Andrea Antoine Ben Bukayo Cody Dominik Erik Federico Florian Harry Jack James Jude Karim Kylian Luka
    Mateus Mohamed Olivier Pierre Ryan Sandro Takumi Tim Virgil Youssef""".split()
)

_PLACE_STEMS = tuple(
    """Alba Alme Arro Barra Berro Cala Campo Carbo Cedre Cima Corra Cuesta Encina Fuen Garza Herra Hondo Jara Lava
    Loma Made Mata Mira Monte Nava Olive Peña Pina Porte Puerto Quinta Roble Rosa Sauce Sierra Tierra Trigue
    Valde Venta Villa Zarza""".split()
)
_PLACE_ENDINGS = tuple(
    """blanca bella brava buena cal cera cino clara cruces dera dero dilla dina dorada dosa fina firme flor fría
    franca fuerte gales grande gresa guera hermosa honda jera leda leja lero leta lina longa lores lucía lunga
    mayor melia mera mina mora mosa nares nera nilla nueva quera quila quina rada ral rales rama redo rejo res
    rica rilla ronda rosa rubia sal seca sera serena silla sola sombra suelta tera tilla tinar torna tosa tuna
    vaca vera verde viana viento vieja zal zano zuela""".split()
)
_FOREIGN_PLACE_STEMS = tuple(
    """Aber Bever Bord Brem Charl Darm Duis Eint Fulk Glad Ham Karls Krak Lever Lokere Magde Marse Midd Newc Nott
    Ports Rost Salz Stras Sunder Toul Utre Wat Wolf Zag""".split()
)
_FOREIGN_PLACE_ENDINGS = tuple(
    """berg bourg burg castle dam don field furt gen ham haven hof ingen land mouth nes pool rid sli stal sund ton
    wick""".split()
)
# Coined names: syllables of an onset, a vowel and perhaps a coda, and an ending. Of each, plain ones and rare ones.
_ONSETS = (
    "b c d f g h j k l m n p r s t v".split(),
    tuple("bl br ch cl cr dr fl fr gl gr gu kl kr ll mc ph pl pr qu sch sh sl st str th tr w y z".split()),
)
_VOWELS = "a e i o u".split(), "á é í ó ú ü ai au ea ee ei ia ie io oo ou ua ue".split()
_CODAS = "l m n r s".split(), "c ck d f g k ll lm ls m mp nd nk nn ns nt nz rd rk rn rt ss st t tt v x z".split()
_COINED_SURNAME_ENDINGS = tuple(
    """ak an ane ang ano ard aro as ato ault aye ba bé bert burg chi dos dou ek el elle elli ello enko er escu et
    etti ev ez feld ford ga gor ham hart i ia ić ides iel ier in ing ingham inho ini io is itz ius iz ka kov land
    ler ley low lund ma man mann mer mont mura na nder ner nes ney o off oglu oni or os ot ou ov port ra rell rick
    ro ron sen shi si ski sky son sson stein strom ta ter to ton tti ucci uk us va vich vis well wicz witt worth y
    ya za zi zzi ão""".split()
)
_COINED_PLACE_ENDINGS = tuple(
    """ach aix am ana and ania ar ard ata ava aya bach bo bul by chester cia dad dam don dor ech eille el en ence
    enza er es eux ey ford gart gen gorod grad ham heim ia ich il in ina ing iers is ja kawa ki lan land le les
    lin lona ma mar min mo mund na nati nov ola olo om ona ord os ova pest phia pol polis pool ra ras rich rid rin
    ris ro saki sel shima sk sta stad tana ter to ton tor town tsk va ver via vik ville von wan wich za zig""".split()
)
_COINED_GIVEN_ENDINGS = tuple(
    """ah ald am an ane ang ard as ath az bert bin cent chi ck cus da den der don dre dy el elle en ent er ert ette
    ey fred gar han ia iah ice iel ik in ine ing io ique ir is ito ius ja ji jo ka ke ko la lan lav len ley lie
    lin lo lon ma man mar mas me min mir mon na nan nie nio no nor old on or ori que ra ram ran ric rick rin ro
    ron ry sa sam sey sha shi son su ta tan ter thew tin to ton tor ul un ur us va van ver vid vin wan win ya yn
    yo za""".split()
)

_CLUB_FORMS = (
    "Deportivo {}", "Atlético {}", "Real {}", "Unión {}", "Sporting {}", "Racing de {}", "{} FC", "CD {}",
    "Independiente {}", "Juventud {}", "Estudiantes de {}", "Ferroviarios de {}", "Defensor {}", "{} Unido",
    "Alianza {}", "{}", "Nacional de {}", "Huracán {}", "Olimpia {}", "Municipal {}", "{} Central",
    "Obreros de {}", "Progreso {}", "Rayo {}", "Puerto {}", "Santa {}",
)  # fmt: skip
_STADIUM_FORMS = (
    "Estadio {}", "Estadio Municipal de {}", "Estadio Monumental {}", "Estadio Nuevo {}", "Estadio Olímpico {}",
    "Estadio Parque {}", "Estadio Centenario {}", "Estadio Jardines de {}",
)  # fmt: skip
LEAGUES = (
    "Liga Profesional Argentina", "Primera Nacional", "Copa Argentina", "Primera División de Uruguay",
    "Copa de la Liga Uruguaya", "Liga MX", "Liga de Expansión MX", "Copa MX", "Primera División de El Salvador",
    "Liga Nacional de Guatemala", "Liga Nacional de Honduras", "Primera División de Costa Rica",
    "Liga Centroamericana", "La Liga", "La Liga 2", "Copa del Rey", "Primera División de Chile",
    "Liga 1 de Perú", "Primera A de Colombia", "Serie A de Ecuador", "División Profesional de Bolivia",
    "Primera División de Paraguay", "Liga FUTVE", "Copa Sudamericana",
)  # fmt: skip


def _held_out(word: str) -> bool:
    """Whether a word is kept out of training: one in twelve is, decided by the word alone."""
    return hashlib.sha256(word.encode()).digest()[0] % 12 == 0


def _select(words: Iterable[str], unseen: bool) -> tuple[str, ...]:
    return tuple(sorted({word for word in words if _held_out(word) == unseen}))


def _coined(kind: str, count: int, endings: Sequence[str]) -> tuple[str, ...]:
    """Returns `count` different words, always the same ones."""
    source = random.Random(f"zoo-names/{kind}")

    def pick(options: Sequence[str]) -> str:
        return options[int(source.random() * len(options))]

    def piece(plain_and_rare: tuple[Sequence[str], Sequence[str]]) -> str:
        return pick(plain_and_rare[source.random() < 0.3])

    words: dict[str, None] = {}
    while len(words) < count:
        word = (piece(_ONSETS) if source.random() < 0.85 else "") + piece(_VOWELS)
        if source.random() < 0.4:
            word += pick(_ONSETS[0]) + piece(_VOWELS)
        word += piece(_CODAS) if source.random() < 0.5 else ""
        word += pick(endings) if source.random() < 0.85 else ""
        if 3 <= len(word) <= 11:
            words[word.capitalize()] = None
    return tuple(words)


@cache
def surnames(*, origin: Origin = "spanish", unseen: bool = False) -> tuple[str, ...]:
    """Returns surnames of the training split, or (`unseen=True`) those that never occur in it.

    `origin`: put together from Spanish pieces, from a few of other languages, or from syllables of many.
    """
    if origin == "coined":
        return _select(_coined("surnames", 9000, _COINED_SURNAME_ENDINGS), unseen)
    if origin == "foreign":
        return _select((stem + ending for stem in _FOREIGN_STEMS for ending in _FOREIGN_ENDINGS), unseen)
    return _select((stem + ending for stem in _SURNAME_STEMS for ending in _SURNAME_ENDINGS), unseen)


@cache
def given(*, origin: Origin = "spanish") -> tuple[str, ...]:
    """Returns first names; every split shares them."""
    if origin == "coined":
        return _coined("given", 3000, _COINED_GIVEN_ENDINGS)
    return _FOREIGN_GIVEN if origin == "foreign" else GIVEN


@cache
def places(*, origin: Origin = "spanish", unseen: bool = False) -> tuple[str, ...]:
    """Returns place names of the training split, or (`unseen=True`) those that never occur in it."""
    if origin == "coined":
        return _select(_coined("places", 5000, _COINED_PLACE_ENDINGS), unseen)
    stems = _FOREIGN_PLACE_STEMS if origin == "foreign" else _PLACE_STEMS
    endings = _FOREIGN_PLACE_ENDINGS if origin == "foreign" else _PLACE_ENDINGS
    return _select((stem + ending for stem in stems for ending in endings), unseen)


def club(place: str, rank: int = 0) -> str:
    """Returns the club of a place, whose form (Deportivo X, X Unido, ...) depends on the place; rank 1 is its rival."""
    return _CLUB_FORMS[(hashlib.sha256(place.encode()).digest()[1] + 7 * rank) % len(_CLUB_FORMS)].format(place)


@cache
def clubs(*, unseen: bool = False) -> tuple[str, ...]:
    """Returns the first club of every place."""
    return tuple(club(place) for origin in ORIGINS for place in places(origin=origin, unseen=unseen))


def stadium(place: str, index: int) -> str:
    """Returns the `index`-th form of a stadium's name at `place`; it begins with 'Estadio'."""
    return _STADIUM_FORMS[index % len(_STADIUM_FORMS)].format(place)
