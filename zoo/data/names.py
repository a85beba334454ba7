"""Invented people, clubs and stadiums, put together from parts, so that only copying gets a name right.

Surnames and places are a stem and an ending ('Alv' + 'arena', 'Valde' + 'mora'): thousands of them from a few
hundred pieces. The tokenizer learns no rare name (`zoo.data.pairs.tokenizer_texts`), so that every one is spelt
from short common pieces, the known ones like the unknown. One in twelve surnames and places is kept out of the
training split altogether (`unseen=True`), so that copying can be told from remembering. Any likeness to real
people is chance.
"""

import hashlib
from collections.abc import Iterable
from functools import cache

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
    """One word in twelve, the same ones for ever: decided by the word alone."""
    return hashlib.sha256(word.encode()).digest()[0] % 12 == 0


def _select(words: Iterable[str], unseen: bool) -> tuple[str, ...]:
    return tuple(sorted({word for word in words if _held_out(word) == unseen}))


@cache
def surnames(*, foreign: bool = False, unseen: bool = False) -> tuple[str, ...]:
    """Surnames of the training split, or (`unseen=True`) those that never occur in it.

    `foreign` gives those put together from the pieces of other languages.
    """
    if foreign:
        return _select((stem + ending for stem in _FOREIGN_STEMS for ending in _FOREIGN_ENDINGS), unseen)
    return _select((stem + ending for stem in _SURNAME_STEMS for ending in _SURNAME_ENDINGS), unseen)


def given(*, foreign: bool = False) -> tuple[str, ...]:
    """First names; every split shares them."""
    return _FOREIGN_GIVEN if foreign else GIVEN


@cache
def places(*, foreign: bool = False, unseen: bool = False) -> tuple[str, ...]:
    """Place names of the training split, or (`unseen=True`) those that never occur in it."""
    stems = _FOREIGN_PLACE_STEMS if foreign else _PLACE_STEMS
    endings = _FOREIGN_PLACE_ENDINGS if foreign else _PLACE_ENDINGS
    return _select((stem + ending for stem in stems for ending in endings), unseen)


def club(place: str, rank: int = 0) -> str:
    """The club of a place, its form (Deportivo X, X Unido, ...) settled by the place; rank 1 is its rival."""
    return _CLUB_FORMS[(hashlib.sha256(place.encode()).digest()[1] + 7 * rank) % len(_CLUB_FORMS)].format(place)


@cache
def clubs(*, unseen: bool = False) -> tuple[str, ...]:
    """The first club of every place, foreign ones included."""
    everywhere = (*places(unseen=unseen), *places(foreign=True, unseen=unseen))
    return tuple(club(place) for place in everywhere)


def stadium(place: str, index: int) -> str:
    """The `index`-th form of a stadium's name at `place`; it begins with 'Estadio'."""
    return _STADIUM_FORMS[index % len(_STADIUM_FORMS)].format(place)
