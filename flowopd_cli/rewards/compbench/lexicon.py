"""The words that the built-in tagger of ``phrases.py`` knows: closed classes whole, open ones as pictures need them.

A word that is in none of these sets is a noun.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words("a an another any each every no some that the these this those")
POSSESSIVES = _words("her his its my our their whose your")
PRONOUNS = _words("he herself him himself i it itself me she them themselves they us we what which who whom you")
AUXILIARIES = _words(
    """am are be been being can could did do does had has have is may might must shall should was were will
    would"""
)
PREPOSITIONS = _words(
    """about above across after against along amid among around as at before behind below beneath beside besides
    between beyond by down during for from in inside into like near of off on onto out outside over past since
    through throughout to toward towards under underneath until up upon via with within without"""
)
CONJUNCTIONS = _words("and but nor or")
SUBORDINATORS = _words("although because if though when where while")
NUMBERS = _words("dozen eight eleven five four hundred nine one seven six ten three twelve two")
ADVERBS = _words(
    """again almost alone also always apart away both else even here indoors just more most nearby never not now
    often otherwise outdoors quite so still then there together too upstairs very"""
)
# Words in -ly that are no adverbs.
NOT_ADVERBS = _words(
    """assembly belly butterfly curly daily dragonfly early elderly family fly friendly holy jelly jockey likely
    lily lively lonely lovely only silly supply ugly unlikely"""
)
COLORS = _words(
    """beige black blue bright brown colorful crimson cyan dark gold golden gray green grey ivory magenta maroon
    multicolored navy orange pink purple red scarlet silver tan teal turquoise violet white whitish yellow"""
)
# Adjectives that are nouns when no noun follows: "a red square", "the dark".
NOMINAL = COLORS | _words("cold oval plain right round square")
ADJECTIVES = COLORS | _words(
    """abstract adventurous ancient angry angular bald bare big blank blond bold brave bravest brief brilliant
    broad bulky bumpy busy calm celestial cheap cheerful chilly choppy circular clean clear clever cloudy cold
    colossal comfortable compact conical cool cozy crazy crisp crispy crooked crunchy cubic curious curly curvy
    cute cylindrical daily damp dead deep delicate delicious dense different dim dirty distant dizzying dramatic
    dry dull dusty eager early earthy easy elderly electronic elegant empty enormous even fair famous fancy fast
    fat favorite fiery fine firm flat fluffy foggy fragrant free fresh friendly full funny furry fuzzy gentle
    geometric giant glad glossy gooey grand grassy greasy great hairy handsome happy hard hardcover hardworking
    healthy heavy hexagonal high hollow holy hot huge human icy indoor intact intricate iridescent jagged juicy
    keen kind large last late lazy leafy likely little lively lonely long loose loud lovely low lumpy lush
    luxurious majestic many maternal matte mature messy metallic mini miniature misty modern modest moist muddy
    murky narrow nasty natural neat nervous new next nice noisy oblong odd old only opaque open ornate other
    outdoor oval own pale patient pentagonal perfect picturesque pillowy plain playful pleasant plump plush polite
    poor precious pretty prickly proud pungent pure pyramidal quick quiet rainy rapid rare raw ready rear
    rectangular reedy rich right ripe rocky romantic rotten rough round rounded rude rugged rusty sad safe salty
    same sandy savory scary seasonal serene serious shallow sharp sheer shiny short shy silky silly simple single
    sleek slender slim slimy sloped slow slushy small smart smooth snowy soft sole solid sour spare sparse
    spherical spicy spiky spiral square stainless steady steep sticky stiff stormy straight strange streamlined
    striped strong stunning sturdy stylish sudden sugary sunny sure sweet swift tall tame tart tasty tender
    textured thick thin thirsty thorny tidy tight tiny tired torn tough translucent transparent triangular ugly
    uneven unique upper urban vast velvety vertical vibrant vintage vivid warm weak weird wet whole wide wild
    windy wise wonderful wooden woolen worn wrong young zen"""
)
ADJECTIVE_ENDINGS = ("ous", "ful", "less", "able", "ible", "ish", "ical", "esque", "ive", "ic")
# Nouns with the ending of an adjective.
NOT_ADJECTIVES = _words(
    """archive armful attic bible brush cable ceramic clinic comic crucible detective dish dive drive fabric
    finish fish garlic goldfish handful hive locomotive magic marble mechanic mosaic mouthful music native olive
    picnic plastic polish public radish relative relish rubbish spoonful stable table topic traffic tunic varnish
    vegetable"""
)
# Nouns in -ed and -ing, and gerunds that open a compound noun ("cutting board").
NOT_PARTICIPLES = _words(
    """airbed anything baking bed bobsled bowling breed building camping ceiling clothing cooking cutting darling
    deed dining drawing duckling dumpling earring engineering evening everything feed fishing flooring flowerbed
    frosting gardening hiking icing king lightning living magnifying measuring meeting mixing morning need nothing
    painting parking picking pudding railing reed ring rocking sapling seed sewing shed shopping shred sibling
    skating skiing sled sling something speed spring stitching stocking storytelling string swimming thing topping
    vending washing watering wedding weed wing"""
)
VERBS = _words(
    """ate attract attracts became beckon began blew bring brings broke brought built carries carry cast caught
    chose contain contains create creates depict depicts draw draws drew drove eat eats fell flew flow found gave
    goes grew grow grows held hidden hung illuminate illuminates include includes keep keeps kept knew lay lean
    leans led lie lies lit made make makes nibble provide provides ran read sang sank sat shone sit sits slept
    soar soars sped spoke sprang spun stood strode struck swam swim swims swung take takes taught tell tells threw
    told took wear wears went woke wore write writes wrote"""
)
# Verbs only after a noun.
VERBS_OR_NOUNS = _words(
    """bake bakes beat boil boils burst clamp cook cooks cover covers crack cracks cut decorate display displays
    face faces feature features flash flashes flies float floats fly hang hangs hold holds jot left look looks
    measure measures mix mixes nap naps park perch pound pounds pour pours reads release releases rest rests ride
    rides rise rises rose run runs serve serves shape shapes shine shines show shows slice slices smell spread
    stack stand stands stir stirs surround swing swings taste tastes touch touches walk walks wrap wraps"""
)
