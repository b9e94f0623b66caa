"""The English words of the grammar, by class; a form belongs to one class only."""

# Word lists read best as running text.
# ruff: noqa: SIM905

FEMALE_NAMES = tuple(
    """mary alice anna emma julia laura sarah diana clara nora helen irene lucy paula rachel susan
    teresa vera wendy zoe amy beth carol donna ellen fiona gina hannah ivy jane kate linda megan
    nancy olivia penny rita sonia tina ursula""".split()
)
MALE_NAMES = tuple(
    """john bob tom peter david frank george henry ivan jack kevin louis martin nick oscar paul
    quentin robert simon tony victor walter adam brian carl daniel edward fred gary hugo isaac
    james keith leo mike neil owen philip roger steve""".split()
)
FEMALE_NOUNS = tuple("queen girl woman mother sister aunt actress waitress".split())
MALE_NOUNS = tuple("king boy man father brother uncle actor waiter".split())

SINGULAR_NOUNS = tuple(
    """dog cat teacher doctor farmer pilot singer baker driver painter lawyer student horse bird
    cow sheepdog rabbit tiger lion wolf fox bear monkey parrot robot soldier sailor tailor writer
    dancer hunter judge nurse guard chef clown""".split()
)
PLURAL_NOUNS = tuple(
    {"wolf": "wolves", "fox": "foxes"}.get(noun, f"{noun}s") for noun in SINGULAR_NOUNS
)

PLURAL_VERBS = tuple(
    """sing run sleep laugh jump swim work wait smile cook dream fall shout talk travel win lose
    dance read walk listen arrive hide rest""".split()
)
SINGULAR_VERBS = tuple(f"{verb}s" for verb in PLURAL_VERBS)
PLURAL_TRANSITIVES = tuple(
    "see like know hear chase follow help fear avoid trust admire hate find hit love need".split()
)
SINGULAR_TRANSITIVES = tuple(f"{verb}s" for verb in PLURAL_TRANSITIVES)
ADVERBS = tuple("loudly slowly quickly often now again together early here".split())

POSITIVE = tuple(
    """happy wonderful lovely great excellent pleasant beautiful bright charming delightful
    cheerful glorious perfect splendid superb fantastic sweet peaceful friendly brilliant""".split()
)
NEGATIVE = tuple(
    """sad terrible awful horrible bad ugly nasty dreadful gloomy miserable angry bitter cruel
    dirty grim hostile painful rotten vile wretched""".split()
)

PREPOSITIONS = tuple("near behind beside above below opposite under around".split())
PLACES = tuple(
    """store park school garden market station library museum beach office hospital kitchen church
    bridge castle harbor theater hotel farm village""".split()
)
OBJECTS = tuple(
    """drink book letter ring flower ball key coat hat map basket lamp bottle ticket pencil coin
    camera guitar mirror blanket""".split()
)
EVENTS = tuple(
    "war strike trial project drought siege voyage festival reign crisis journey campaign".split()
)

LEADS = tuple("when while once as".split())
WENT = tuple("went walked ran drove".split())
GAVE = tuple("gave handed passed sent lent offered".split())
MET = tuple("thanked called visited greeted watched met".split())
LEFT = tuple("smiled cried left slept laughed waited".split())
TOOK = tuple("took lost found sold dropped hid".split())

YEARS = tuple(f"{year:02d}" for year in range(100))
DAYS = tuple("monday tuesday wednesday thursday friday saturday sunday".split())
MONTHS = tuple(
    """january february march april may june july august september october november
    december""".split()
)
NUMBERS = tuple("one two three four five six seven eight nine ten eleven".split())

NONCE = tuple(
    """blik dax wug fep toma zib kiv norp glim sarn quib vosk tarb melk yupp jelt rond plax drim
    hask bint crov snep flug grap twil zeft morb lunt pib gax heftle wold culm fost brin kelm swib
    trev nalk gost prem dulb vink yarb zont clim breth skag floz thrip gribble nuft pelk rax sovel
    tunk ubber wint zorp""".split()
)
ATOMS = tuple("p q r s t u v w k m n j".split())
OPENING = tuple("([{<")
CLOSING = tuple(")]}>")

FUNCTION_WORDS = tuple(
    """. , : the a and to that from lasted because she he her his was it felt everyone in after
    before comes day days month months today this is next speaks english spanish echo""".split()
)
