"""Invented people, clubs and stadiums, put together from parts, so that only copying gets a name right.

Surnames and places are a stem and an ending ('Etche' + 'garay', 'Valde' + 'mora'): thousands of them from a
few hundred pieces, most of which a byte-level BPE of 8,000 entries has to spell in more than one token. One
in twelve surnames and places is kept out of the training split altogether (`unseen=True`), so that copying
can be told from remembering. Any likeness to real people is chance.
"""

import hashlib
from collections.abc import Iterable
from functools import cache

GIVEN = tuple(
    """Abel Adolfo Adrián Agustín Alan Alberto Aldo Alejandro Alexis Alfonso Alfredo Álvaro Amílcar Andrés Ángel
    Aníbal Antonio Ariel Armando Arnaldo Arturo Augusto Axel Bautista Benicio Benjamín Bernardo Boris Braulio
    Brian Bruno Camilo Carlos César Claudio Cristian Cristóbal Damián Daniel Darío David Delfín Diego Dionisio
    Domingo Edgar Edmundo Eduardo Efraín Elías Eliseo Emanuel Emiliano Emilio Enrique Enzo Ernesto Esteban
    Eugenio Ezequiel Fabián Fabricio Facundo Federico Felipe Félix Fermín Fernando Fidel Francisco Franco Gabriel
    Gael Gastón Gerardo Germán Gilberto Gonzalo Gregorio Guido Guillermo Gustavo Héctor Hernán Hilario Horacio
    Hugo Humberto Ignacio Ismael Iván Jacinto Jaime Javier Jerónimo Jesús Joaquín Joel Jonás Jonathan Jorge José
    Josué Juan Julián Julio Kevin Lautaro Leandro Leonardo Leonel Lisandro Lorenzo Lucas Luciano Luis Manuel
    Marcelo Marcos Mariano Mario Martín Mateo Matías Mauricio Mauro Maximiliano Miguel Milton Moisés Nahuel
    Nelson Nicolás Norberto Octavio Omar Orlando Óscar Osvaldo Pablo Pascual Patricio Pedro Rafael Ramiro Ramón
    Raúl Renato Ricardo Rigoberto Roberto Rodolfo Rodrigo Rogelio Román Rubén Salvador Samuel Santiago Santino
    Saúl Sebastián Sergio Silvio Simón Tadeo Teodoro Thiago Tobías Tomás Uriel Valentín Vicente Víctor Wilson
    Xavier Yago Zacarías""".split()
)

_SURNAME_STEMS = tuple(
    """Acev Agu Alb Alc Aldab Alm Alv Amb Anch And Ar Aram Arb Arch Arg Arr Art Asc Asp Av Az Bad Balb Bald Bar
    Barr Bast Bel Ben Berm Bet Bor Brav Bust Cab Cal Camp Can Cap Card Carr Casc Cast Cerv Cisn Col Cord Corr
    Cosc Crist Chav Del Dom Duart Ech Eliz Enc Esc Esp Est Fab Fal Fern Ferr Fig Flor Font Fuent Gal Gam Garc
    Garm Garr Gav God Gor Grand Guerr Guill Gut Herr Hid Huert Ib Ins Iñ Irig Iturb Izqu Jar Jim Jur Lab Lag
    Lar Laz Led Leg Lem Lint Loz Luc Lug Luj Mach Mald Manr Mar Marr Mart Mat Maz Med Mend Merc Mes Min Mir Mol
    Monc Mont Mor Mosq Muñ Mur Nav Neg Nog Num Och Olm Ord Orel Ort Osor Oyarz Pach Pal Pant Par Ped Pel Peñ Per
    Pic Pin Pol Port Prad Quir Quint Ram Reb Reg Ren Ret Riq Riv Rob Roc Rod Rom Ros Rub Ruf Saav Sag Sal Samb
    Sand Sant Sarm Sep Serr Sif Sol Sot Suár Tab Tap Tej Tel Tol Torr Tos Trev Ug Ul Ur Urb Urr Vac Val Vald Var
    Vel Ver Vid Vig Vill Vizc Yañ Yrig Zab Zal Zamb Zap Zav Zub Zul Zur""".split()
)
_SURNAME_ENDINGS = tuple(
    """abal abarri acho ada ado agán aga al ala ales algo ana ando anza añes ara arate arena ares ario arte asco
    ate avar azo eche eda edo ega egui eira ejo ela elas ell ellano enas endi ente ento era eres ero erra esca
    eta etti etxe eza iaga ialdo ibar icano icher ides iego ieta igas igoyen ilde illa illo ina inaga inos ique
    irre isco ista itegui ivia izo oa obal oitia ola olaza oldi onda one oque ordi orena oreno ories osa ote
    otto ovi ozco uaga uceda ucci udia ueta ulo umendi una urbe uri urria usti uti uza""".split()
)

_FOREIGN_STEMS = tuple(
    """Ab Ak Al Ander Bach Bel Berg Bj Bog Bran Brun Chal Chris Clau Coo Dal Daw Dem Drag Dub Ed El Er Fal Fitz
    Fred Gal Gn Gries Grif Guar Haa Hal Ham Hen Hol Ib Jab Jan Kam Kar Kim Klop Kov Kras Kul Lam Lew Lind Luk Mac
    Mat Mb Mil Mits Mod Mül Nak Ned Niel Now Od Ok Ol Pav Pet Pjan Pog Qua Rab Ras Rib Rob Sak Sch Sha Sim Smol
    Stan Svens Szcz Tch Ter Thom Tsi Ul Ung Van Verm Wal Wes Wil Wój Xh Yam Zid Zie""".split()
)
_FOREIGN_MIDDLES = ("", "a", "ach", "e", "el", "er", "i", "ik", "in", "is", "o", "om", "or", "u", "un", "y")
_FOREIGN_ENDINGS = tuple(
    """bach bauer berg borg cki court don dou dsen dze ek escu ev feld ff ford gaard ge ghi gton ham hito inho jão
    ka kaya kis kov ksson kura lain lli ly mann mba mond mori mund nen nho nier nov ović poulos quist rell rron
    sá sic ski son stein ström teau ton tti tsu ux vic vsky ward wicz wood yan yev zzi""".split()
)
_FOREIGN_GIVEN = tuple(
    """Adam Aleksandar Andrea Anton Antoine Arthur Ben Bernd Bukayo Christian Cody Declan Dominik Dušan Erik
    Ethan Federico Filip Florian Gianluca Harry Ibrahim Jack Jamal James Jan Jude Jürgen Karim Kenji Kylian Lars
    Luka Marcus Mateus Michael Mohamed Nils Olivier Paulo Pierre Robin Ryan Sadio Sandro Stefan Takumi Theo Tim
    Vinicius Virgil William Youssef""".split()
)

_PLACE_STEMS = tuple(
    """Alba Alca Alme Aran Arro Bala Barra Bena Berro Brisa Cala Calde Campo Cana Carbo Casta Cedre Cerro Cima
    Colme Corra Costa Cuesta Dehe Encina Espi Fuen Gala Garza Guada Herra Hierba Hondo Huerta Jara Lagu Lava
    Llano Loma Luna Made Mani Mata Mesa Mira Mole Monte Mora Nava Nogue Olive Palme Peña Piedra Pina Pobla
    Porte Prade Puerto Quebra Quinta Ribe Roble Roca Rosa Sala Sauce Selva Sierra Tama Tierra Torre Trigue
    Urba Valde Vega Venta Verde Villa Viña Zarza""".split()
)
_PLACE_ENDINGS = tuple(
    """blanca bella brava buena cal cera cino clara cruces dera dero dilla dina dorada dosa fina firme flor fría
    franca fuerte gales grande gresa guera hermosa honda jera leda leja lero leta lina longa lores lucía lunga
    mayor melia mera mina mora mosa nares nera nilla nueva quera quila quina rada ral rales rama redo rejo res
    rica rilla ronda rosa rubia sal seca sera serena silla sola sombra suelta tera tilla tinar torna tosa tuna
    vaca vera verde viana viento vieja zal zano zuela""".split()
)
_FOREIGN_PLACE_STEMS = tuple(
    """Aber Amster Bever Birk Bord Brat Brem Brig Charl Cov Darm Dort Duis Edin Eint Frei Fulk Gelsen Glad Gren Ham
    Hel Karls Kop Krak Lam Lever Liver Lokere Mad Magde Man Marse Mech Midd Mont Newc Nor Nott Oster Ports Roch
    Rost Rotter Salz Sheff Stras Stutt Sunder Swan Toul Trond Utre Vall Wat West Wolf Wolver Zag Zur""".split()
)
_FOREIGN_PLACE_ENDINGS = tuple(
    """berg borg bourg brook burg by castle chester dam deaux don dorf field ford furt gart gen grad ham hampton
    haven heim hof hoven ingen ington land lin mouth mund nes nik pool port rid sk sli stadt stal ston sund tal ton
    ville wick wood""".split()
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
        return _select(
            (a + b + c for a in _FOREIGN_STEMS for b in _FOREIGN_MIDDLES for c in _FOREIGN_ENDINGS), unseen
        )
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
