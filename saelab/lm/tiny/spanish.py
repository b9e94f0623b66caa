"""The words of the grammar's second language, whose articles and adjectives agree with the noun.

The columns of every table are masculine singular, masculine plural, feminine singular, feminine
plural, as far as the class has them.
"""

# Word lists read best as running text.
# ruff: noqa: SIM905

ARTICLES = ("el", "los", "la", "las")
INDEFINITE = ("un", "unos", "una", "unas")

_MASCULINE = """gato perro libro niño coche vaso barco zapato pueblo cuadro caballo vecino maestro
plato banco queso""".split()
_FEMININE = """casa mesa silla niña puerta ventana playa carta manzana vaca escuela vecina maestra
camisa botella lámpara""".split()
MASCULINE_SINGULAR = tuple(_MASCULINE)
MASCULINE_PLURAL = tuple(f"{noun}s" for noun in _MASCULINE)
FEMININE_SINGULAR = tuple(_FEMININE)
FEMININE_PLURAL = tuple(f"{noun}s" for noun in _FEMININE)
NOUNS = (MASCULINE_SINGULAR, MASCULINE_PLURAL, FEMININE_SINGULAR, FEMININE_PLURAL)

_STEMS = "roj blanc negr pequeñ viej nuev alt baj bonit limpi".split()
ADJECTIVES = tuple(tuple(f"{stem}{ending}" for stem in _STEMS) for ending in ("o", "os", "a", "as"))

SINGULAR_VERBS = tuple("duerme canta corre cae brilla llega espera vuelve descansa vive".split())
PLURAL_VERBS = tuple(f"{verb}n" for verb in SINGULAR_VERBS)
VERBS = (SINGULAR_VERBS, PLURAL_VERBS)
COPULAS = ("es", "son")
ADVERBS = tuple(
    "siempre aquí hoy bien lejos mañana pronto tarde nunca despacio cerca fuera".split()
)
OTHER = ("de", "y")
