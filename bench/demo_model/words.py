"""Word lists: everything the grammars can talk about."""

from __future__ import annotations

import random

COMMON = """
the of and to a in is it you that he was for on are with as his they be at one have this from or had by hot but some what there we
can out other were all your when up use word how said an each she which do their time if will way about many then them would write
like so these her long make thing see him two has look more day could go come did my sound no most number who over know water than
call first people may down side been now find any new work part take get place made live where after back little only round man
year came show every good me give our under name very through just form much great think say help low line before turn cause same
mean differ move right boy old too does tell sentence set three want air well also play small end put home read hand port large
spell add even land here must big high such follow act why ask men change went light kind off need house picture try us again
animal point mother world near build self earth father head stand own page should country found answer school grow study still
learn plant cover food sun four between state keep eye never last let thought city tree cross farm hard start might story saw far
sea draw left late run while press close night real life few north open seem together next white children begin got walk example
ease paper group always music those both mark often letter until mile river car feet care second book carry took science eat room
friend began idea fish mountain stop once base hear horse cut sure watch color face wood main enough plain girl usual young ready
above ever red list though feel talk bird soon body dog family direct pose leave song measure door product black short class wind
question happen complete ship area half rock order fire south problem piece told knew pass since top whole king space heard best
hour better true during hundred five remember step early hold west ground interest reach fast verb sing listen six table travel
less morning ten simple several vowel toward war lay against pattern slow center love person money serve appear road map rain rule
govern pull cold notice voice unit power town fine certain fly fall lead cry dark machine note wait plan figure star box noun field
rest correct able pound done beauty drive stood contain front teach week final gave green quick develop ocean warm free minute
strong special mind behind clear tail produce fact street inch multiply nothing course stay wheel full force blue object decide
surface deep moon island foot system busy test record boat common gold possible plane stead dry wonder laugh thousand ago ran check
game shape equate miss brought heat snow tire bring yes distant fill east paint language among grand ball yet wave drop heart
present heavy dance engine position arm wide sail material size vary settle speak weight general ice matter circle pair include
divide syllable felt perhaps pick sudden count square reason length represent art subject region energy hunt probable bed brother
egg ride cell believe fraction forest sit race window store summer train sleep prove lone leg exercise wall catch mount wish sky
board joy winter sat written wild instrument kept glass grass cow job edge sign visit past soft fun bright gas weather month million
bear finish happy hope flower clothe strange gone jump baby eight village meet root buy raise solve metal whether push seven
paragraph third shall held hair describe cook floor either result burn hill safe cat century consider type law bit coast copy phrase
silent tall sand soil roll temperature finger industry value fight lie beat excite natural view sense ear else quite broke case
middle kill son lake moment scale loud spring observe child straight consonant nation dictionary milk speed method organ pay age
section dress cloud surprise quiet stone tiny climb cool design poor lot experiment bottom key iron single stick flat twenty skin
smile crease hole trade melody trip office receive row mouth exact symbol die least trouble shout except wrote seed tone join
suggest clean break lady yard rise bad blow oil blood touch grew cent mix team wire cost lost brown wear garden equal sent choose
fell fit flow fair bank collect save control decimal gentle woman captain practice separate difficult doctor please protect noon
whose locate ring character insect caught period indicate radio spoke atom human history effect electric expect crop modern element
hit student corner party supply bone rail imagine provide agree thus capital chair danger fruit rich thick soldier process operate
guess necessary sharp wing create neighbor wash bat rather crowd corn compare poem string bell depend meat rub tube famous dollar
stream fear sight thin triangle planet hurry chief colony clock mine tie enter major fresh search send yellow gun allow print dead
spot desert suit current lift rose continue block chart hat sell success company subtract event particular deal swim term opposite
wife shoe shoulder spread arrange camp invent cotton born determine quart nine truck noise level chance gather shop stretch throw
shine property column molecule select wrong gray repeat require broad prepare salt nose plural anger claim continent oxygen sugar
death pretty skill women season solution magnet silver thank branch match suffix especially fig afraid huge sister steel discuss
forward similar guide experience score apple bought led pitch coat mass card band rope slip win dream evening condition feed tool
total basic smell valley nor double seat arrive master track parent shore division sheet substance favor connect post spend chord
fat glad original share station dad bread charge proper bar offer segment slave duck instant market degree populate chick dear enemy
reply drink occur support speech nature range steam motion path liquid log meant quotient teeth shell neck
""".split()

NOUNS = """
garden lantern kettle pencil basket ladder candle rabbit tiger monkey dragon castle bridge harbor meadow pillow blanket button
camera guitar violin piano drum trumpet rocket comet galaxy robot laptop screen keyboard mouse printer server socket packet ticket
wallet bottle cup plate spoon fork knife bowl pepper carrot potato tomato onion garlic lemon orange banana cherry peach mango grape
melon berry cookie muffin pancake waffle pizza pasta noodle soup salad cheese butter honey coffee tea juice turtle lizard falcon
eagle sparrow raven owl penguin dolphin whale shark octopus crab beetle spider ant bee butterfly fox wolf otter badger squirrel
hedgehog camel zebra giraffe elephant panda koala kitten puppy pony sheep goat donkey turkey goose swan
anchor compass helmet hammer needle thread ribbon marble puzzle mirror curtain carpet closet attic cellar tunnel tower temple
palace museum library theater stadium airport bakery kitchen bathroom balcony engine pedal saddle feather pebble crystal diamond
emerald copper bronze velvet silk linen canvas
""".split()

ADJECTIVES = """
happy sad quick slow bright dark warm cold tiny huge quiet loud soft hard sweet sour brave shy clever silly gentle wild calm busy
lazy proud humble kind fancy plain shiny dusty smooth rough fresh old young empty full round square golden silver wooden purple
crimson curious friendly lucky sleepy hungry thirsty
""".split()

NAMES = """
Ada Alan Alice Amir Anna Ben Bella Carl Carla Chen Clara Daniel Dora Elena Emma Erik Eva Fatima Felix Fiona Frank Grace Hana Hugo
Ida Igor Iris Ivan Jack Jane Jonas Julia Kai Karl Kira Lara Leo Lena Lily Linus Luca Lucy Maria Mark Maya Mia Milo Mina Nadia Nina
Noah Nora Olga Omar Oscar Otto Paul Petra Priya Quinn Rosa Ruth Sam Sara Sofia Stella Sven Tara Theo Tom Uma Vera Victor Viola
Wendy Yara Yuki Zoe Zara
""".split()

SURNAMES = """
Adams Baker Clark Davis Evans Fisher Garcia Harris Ito Jones Khan Lopez Miller Novak Olsen Patel Quist Rossi Smith Turner Ueda Vogel
Weber Young Ziegler Brown Cohen Dubois Fischer Green Hansen Jensen Kim Lee Moore Nguyen Park Reed Silva Tanaka
""".split()

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Brazil": "Brasilia",
    "Argentina": "Buenos Aires",
    "Chile": "Santiago",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Ireland": "Dublin",
    "Belgium": "Brussels",
    "Hungary": "Budapest",
    "Romania": "Bucharest",
    "Bulgaria": "Sofia",
    "Serbia": "Belgrade",
    "Croatia": "Zagreb",
    "Ukraine": "Kyiv",
    "Russia": "Moscow",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Indonesia": "Jakarta",
    "Australia": "Canberra",
    "Iceland": "Reykjavik",
    "Morocco": "Rabat",
    "Ghana": "Accra",
    "Nepal": "Kathmandu",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Switzerland": "Bern",
    "England": "London",
}

CITIES = sorted(
    set(CAPITALS.values())
    | {
        "Boston",
        "Chicago",
        "Denver",
        "Dallas",
        "Houston",
        "Seattle",
        "Austin",
        "Toronto",
        "Sydney",
        "Milan",
        "Munich",
        "Hamburg",
        "Lyon",
        "Geneva",
        "Zurich",
        "Osaka",
        "Kyoto",
        "Mumbai",
        "Porto",
        "Prague",
        "Seoul",
        "Singapore",
        "Dubai",
        "Bergen",
    }
)

OPPOSITES = [
    ("hot", "cold"),
    ("big", "small"),
    ("up", "down"),
    ("left", "right"),
    ("day", "night"),
    ("black", "white"),
    ("open", "closed"),
    ("fast", "slow"),
    ("happy", "sad"),
    ("light", "dark"),
    ("old", "young"),
    ("high", "low"),
    ("in", "out"),
    ("on", "off"),
    ("yes", "no"),
    ("early", "late"),
    ("full", "empty"),
    ("hard", "soft"),
    ("rich", "poor"),
    ("loud", "quiet"),
    ("wet", "dry"),
    ("strong", "weak"),
    ("true", "false"),
    ("near", "far"),
    ("first", "last"),
    ("long", "short"),
    ("thick", "thin"),
    ("win", "lose"),
    ("push", "pull"),
    ("start", "stop"),
]

COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "a banana": "yellow",
    "a carrot": "orange",
    "a tomato": "red",
    "the sea": "blue",
    "a lemon": "yellow",
    "an elephant": "gray",
    "chocolate": "brown",
    "milk": "white",
    "a cherry": "red",
    "a leaf": "green",
    "a plum": "purple",
    "the night": "black",
}
COLOUR_NAMES = "red green blue yellow orange purple white black brown gray pink golden silver".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
JOBS = "teacher doctor baker pilot farmer painter singer writer engineer nurse lawyer chef dancer sailor builder".split()
FOODS = "pizza pasta soup salad bread cheese sushi rice cake apples noodles tacos pancakes cookies honey".split()

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
).split()

WORDS = sorted({w for w in COMMON + NOUNS + ADJECTIVES if w.isalpha()})

# A common word is a single token, whose letters nothing shows: it has to be learnt by heart, so these are not too many.
SPELLED = sorted(set(NOUNS + ADJECTIVES) | {w for w in COMMON if len(w) <= 4})

CONSONANTS = "b d f g k l m n p r s t v z".split()
VOWELS = "a e i o u".split()
SYLLABLES = [c + v for c in CONSONANTS for v in VOWELS]


def made_up(rng: random.Random, least: int = 2, most: int = 4) -> str:
    """A word that does not exist, of plain syllables such as 'be-lo-da'."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(least, most)))
